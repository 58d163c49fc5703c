"""The examples for frameworks run with the frameworks: elsewhere they skip themselves."""

import importlib.util
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
    done = subprocess.run([sys.executable, f"examples/{name}.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stdout
