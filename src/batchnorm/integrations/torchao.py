"""torchao's quantisation-aware training over exported graphs, with the eps and momentum of the batch norms kept.

torchao 0.18 sets both to torch's defaults: when it prepares a graph, when it changes its mode, and when it converts it.

Needs torchao; nothing else of the package imports this module.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torchao.quantization import pt2e
from torchao.quantization.pt2e import quantize_pt2e

BATCH_NORM = torch.ops.aten.batch_norm.default
STATISTIC, VARIANCE, MOMENTUM, EPS = 3, 4, 6, 7  # places of arguments: running_mean tells which layer it is
DEFAULT_EPS = 1e-5


def prepare_qat_pt2e(graph: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
    """Call torchao's function of this name, and keep the eps and momentum of every batch norm.

    Args:
        graph: ``torch.export.export(model.train(), inputs).module()``, made in a ``bn.backend("aten")`` context, since
            torchao looks for torch's operator.
        quantizer: as for torchao's function.

    Returns:
        The prepared graph.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from batchnorm.integrations.torchao import prepare_qat_pt2e  # doctest: +SKIP
        >>> with bn.backend("aten"):  # doctest: +SKIP
        ...     graph = torch.export.export(model.train(), inputs).module()
        >>> prepared = prepare_qat_pt2e(graph, quantizer)  # doctest: +SKIP
    """
    return _keeping(lambda: quantize_pt2e.prepare_qat_pt2e(graph, quantizer), graph)


def move_exported_model_to_eval(prepared: fx.GraphModule) -> fx.GraphModule:
    """Call torchao's function of this name, and keep the eps and momentum of every batch norm.

    Args:
        prepared: from `prepare_qat_pt2e`; changed in place.

    Returns:
        The graph in evaluation mode.

    Examples:
        >>> graph = move_exported_model_to_eval(prepared)  # doctest: +SKIP
    """
    return _keeping(lambda: pt2e.move_exported_model_to_eval(prepared), prepared)


def move_exported_model_to_train(prepared: fx.GraphModule) -> fx.GraphModule:
    """Call torchao's function of this name, and keep the eps and momentum of every batch norm.

    Args:
        prepared: from `prepare_qat_pt2e`; changed in place.

    Returns:
        The graph in training mode.

    Examples:
        >>> graph = move_exported_model_to_train(prepared)  # doctest: +SKIP
    """
    return _keeping(lambda: pt2e.move_exported_model_to_train(prepared), prepared)


def _keeping(change: Callable[[], Any], graph: fx.GraphModule) -> fx.GraphModule:
    """Apply `change` to a graph, then restore the momentum and eps of its batch norms."""
    before = {_layer(node): node.args[MOMENTUM : EPS + 1] for node in _norms(graph)}
    changed = change()
    for node in _norms(changed):
        momentum, eps = before[_layer(node)]
        node.args = (*node.args[:MOMENTUM], momentum, eps, *node.args[EPS + 1 :])
    changed.recompile()
    return changed


def convert_pt2e(prepared: fx.GraphModule) -> fx.GraphModule:
    """Call torchao's function of this name, with the same result in evaluation for any eps.

    torchao sets eps to torch's default. Evaluation depends on σ² + eps alone, so the difference is added to σ² first.

    Args:
        prepared: from `prepare_qat_pt2e`, in evaluation mode; it cannot be used afterwards.

    Returns:
        The quantised graph.

    Examples:
        >>> quantised = convert_pt2e(move_exported_model_to_eval(prepared))  # doctest: +SKIP
    """
    for node in _norms(prepared):
        given: Any = node.args
        variance: Any = prepared
        for name in str(given[VARIANCE].target).split("."):
            variance = getattr(variance, name)
        with torch.no_grad():
            variance += given[EPS] - DEFAULT_EPS
        node.args = (*node.args[:EPS], DEFAULT_EPS, *node.args[EPS + 1 :])
    prepared.recompile()
    return quantize_pt2e.convert_pt2e(prepared)


def _layer(norm: fx.Node) -> str:
    """The key of the running mean of a batch norm."""
    statistic: Any = norm.args[STATISTIC]
    return str(statistic.target)


def _norms(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.target is BATCH_NORM]
