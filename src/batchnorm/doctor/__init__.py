"""The doctor: finds faults of a network's batch norms, and reports each with its evidence and a cure."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchnorm.core.sharing import resolve
from batchnorm.tools.sweep import Feed, feed_by_default

from . import rules_checkpoint, rules_data, rules_ranks, rules_training
from .findings import Finding, Report, Rule, report
from .measuring import measure
from .states import LayerState, of_model
from .watch import TroubleError, TroubleWarning, Watch, watch

__all__ = [
    "RULES",
    "Finding",
    "Report",
    "Rule",
    "TroubleError",
    "TroubleWarning",
    "Watch",
    "diagnose",
    "diagnose_states",
    "watch",
]

NOTE_ON_STATE_DICTS = (
    "a state dict contains neither momentum nor eps: foreign-momentum and foreign-eps are not checked, and other rules "
    "take eps = 1e-05; `batchnorm doctor module:factory --checkpoint FILE` checks them in the model"
)

RULES: tuple[Rule, ...] = (*rules_checkpoint.RULES, *rules_data.RULES, *rules_ranks.RULES, *rules_training.RULES)


def diagnose(
    model: nn.Module,
    batches: Any = None,
    *,
    feed: Feed = feed_by_default,
    limit: int | None = 32,
    process_group: Any = None,
    progress: bool | None = None,
) -> Report:
    """Finds faults of the model's batch norms (torch's or ours) in their stored numbers and, if given, in data.

    Each batch goes through the model twice, in evaluation and in training. Only the batch norms change their mode;
    dropout stays off. On two batches the layers are then switched from training to evaluation one by one, to measure
    each layer's part of the gap. One training step runs forward and backward. Afterwards modes, buffers, gradients,
    hooks and random generators are restored, also after an interruption.

    Args:
        model: a model with batch norms, torch's or ours; it is unchanged afterwards.
        batches: batches like those of training: a list, a DataLoader, an iterator, or a function that returns one.
        feed: called as feed(model, batch). The default calls model(batch): with the first element of a tuple or list,
            and with the items of a dict as keyword arguments.
        limit: the largest number of batches; None for all.
        process_group: True (all ranks) or a group, to compare the running statistics of its ranks.
        progress: True for a progress bar; by default if stderr is a terminal and rich is installed.

    Returns:
        A `Report`: findings with rule, severity, layers, evidence, likely cause and cure; `show()`, `to_json()`,
        `save("doctor.html")`.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: `batches` is empty.

    Examples:
        >>> import torch
        >>> import batchnorm as bn
        >>> bn.diagnose(torch.nn.BatchNorm1d(3)).findings[0].rule
        'never-updated'
    """
    states = of_model(model)
    base = diagnose_states(states)
    findings, layers, measured = list(base.findings), base.layers, {}
    if group := resolve(process_group):
        findings += rules_ranks.ranks_disagree(rules_ranks.gather(states, group))
    if batches is not None:
        found = measure(model, batches, feed, limit, progress)
        findings += [f for rule in rules_data.RULES for f in rule(found)]
        layers = {name: layers.get(name, {}) | rules_data.numbers(found, name) for name in found.layers}
        measured = {"output": {"gap": found.gap.relative}, "notes": (*base.notes, *found.notes)}
    return report(findings, layers, **measured)


def diagnose_states(layers: list[LayerState]) -> Report:
    """Applies every checkpoint rule to the states of a model or a file; each network in a file is checked by itself."""
    networks = [[s for s in layers if s.network == name] for name in dict.fromkeys(s.network for s in layers)]
    findings = []
    for rule in rules_checkpoint.RULES:
        evidence = {name: seen for network in networks for name, seen in rule.find(network).items()}
        findings += [rule.finding(evidence)] if evidence else []
    notes = (NOTE_ON_STATE_DICTS,) if any(s.eps is None for s in layers) else ()
    return report(findings, {s.name: s.numbers() for s in layers}, notes=notes)
