"""Ranks with different running statistics are found, by every rank; ranks that share statistics are clean."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchnorm.doctor.rules_ranks import ranks_disagree
from batchnorm.doctor.states import of_model
from tests.support.patients import trained

# torch 2.13 renames a collective; older ones know the old name only
WARNINGS = ["-W", "error", "-W", "ignore:`torch.distributed.:FutureWarning"]

needs_ranks = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def test_the_distance_is_in_standard_deviations():
    states = of_model(trained(True))
    sigma = (states[1].var + 1e-5).sqrt()
    near, far = (replace(states[1], mean=states[1].mean + d * sigma) for d in (0.05, 0.5))
    assert ranks_disagree([states, [states[0], near, states[2]]]) == []
    (finding,) = ranks_disagree([states, states, [states[0], far, states[2]]])
    assert finding.evidence == {"4": {"σ apart": pytest.approx(0.5)}}
    (finding,) = ranks_disagree([states, [replace(states[0], var=states[0].var * 4), *states[1:]]])
    assert finding.layers == ("1",)


@needs_ranks
def test_two_processes(tmp_path):
    script = Path(__file__).with_name("diagnosed_rank.py")
    ranks = [
        subprocess.Popen([sys.executable, *WARNINGS, script, str(i), tmp_path], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert outputs == ["['ranks-disagree'] []\n"] * 2
