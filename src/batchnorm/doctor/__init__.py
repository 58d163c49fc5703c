"""What is wrong with a network's batch norms, in words, with evidence and cure."""

from __future__ import annotations

from torch import nn

from .findings import Finding, Report, report
from .rules_checkpoint import RULES
from .states import LayerState, of_model

__all__ = ["Finding", "Report", "diagnose", "diagnose_states"]


def diagnose(model: nn.Module) -> Report:
    """Finds faults in what the model's batch norms remember, from their state alone; the model is only read.

    >>> import torch
    >>> import batchnorm as bn
    >>> bn.diagnose(torch.nn.BatchNorm1d(3)).findings[0].rule
    'never-updated'
    """
    return diagnose_states(of_model(model))


def diagnose_states(layers: list[LayerState]) -> Report:
    """Applies every checkpoint rule to states read from a model or a file."""
    return report([f for rule in RULES for f in rule(layers)], {s.name: s.numbers() for s in layers})
