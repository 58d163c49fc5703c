"""Record a call of our layers as one node of a torch.fx graph."""

from typing import Any

from torch import fx, nn


def as_leaf(layer: nn.Module, whole: Any, input: fx.Proxy, *others: Any) -> Any:
    """Record a call of the layer as one node of a torch.fx graph, as torch's own layers are recorded.

    Tracers record a layer as one node only if its class is in torch's package. They trace through all others.

    Raises:
        TypeError: the layer is the whole model, or its class overrides `whole`, the forward that calls this function.
    """
    name: str = input.tracer.path_of_module(layer)  # type: ignore[attr-defined]  # only `GraphAppendingTracer` lacks it
    if not name or type(layer).forward is not whole:
        cure = "put it into an nn.Sequential" if not name else "pass a Tracer whose is_leaf_module is True for it"
        why = "is the whole model" if not name else "overrides forward"
        raise TypeError(f"torch.fx cannot record {type(layer).__name__}, which {why}: {cure}")
    names = ("residual", "mask", "lengths")
    more = {key: value for key, value in zip(names, others, strict=True) if value is not None}
    residual = (more.pop("residual"),) if "residual" in more else ()
    return input.tracer.create_proxy("call_module", name, (input, *residual), more)
