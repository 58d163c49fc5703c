"""Statistics shared over a network, with torchrun on two hosts: here two network namespaces."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]


def why_not() -> str | None:
    """Why this machine cannot play two hosts, if it cannot."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    cable = [*NAMESPACE, "ip", "link", "add", "left", "type", "veth", "peer", "name", "right"]
    tried = subprocess.run(cable, capture_output=True, text=True)
    return f"no network namespaces: {tried.stderr.strip()}" if tried.returncode else None


def test_an_example_runs_on_two_hosts() -> None:
    if reason := why_not():
        pytest.skip(reason)
    program = HERE.parents[1] / "examples" / "several_processes.py"
    command = [*NAMESPACE, "sh", str(HERE / "two_hosts.sh"), sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"rank {rank}, ours:" in done.stdout
