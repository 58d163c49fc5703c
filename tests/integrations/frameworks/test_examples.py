"""The examples for frameworks run with the frameworks: without these they are skipped."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.support.launch import ROOT

NEEDS = {
    "accelerate_loop": "accelerate",
    "lightning_callback": "lightning",
    "transformers_trainer": "transformers",
    "watch_writers": "tensorboard",
}


@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str) -> None:
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    command = [sys.executable, "tests/integrations/frameworks/run.py", f"examples/{name}.py"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stdout
