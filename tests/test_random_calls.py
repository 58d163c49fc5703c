"""1,000 random calls in a separate process: none may end it. `support/random_calls.py` makes them."""

import subprocess
import sys

import pytest

from tests.support.launch import ROOT


@pytest.mark.parametrize("first", [0, 500])
def test_no_call_ends_the_process(first: int) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.support.random_calls", str(first), "500"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    outcomes = [line.split() for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"call {outcomes[-1][0]} ended the process:\n{ran.stderr[-4000:]}"
    assert [int(number) for number, _ in outcomes] == list(range(first, first + 500))
    # calls that all fail at the first check would prove nothing
    assert sum(outcome == "succeeded" for _, outcome in outcomes) > 120
