"""The four primitives, and the forward and backward pass of the plain case, as launches of kernels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends.reference import BY_OUTPUT
from batchnorm.backends.triton import kernels, plan
from batchnorm.backends.triton.arguments import Input, counters, current, mask_of, prepare, tables, vector
from batchnorm.backends.triton.plan import Plan


class Launch(NamedTuple):
    """A kernel, its grid, and its arguments by name, in order."""

    kernel: Any
    plan: Plan
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)


def start(launch: Launch) -> None:
    """Start a kernel on the current stream."""
    launch.kernel[(launch.plan.programs,)](**launch.arguments, num_warps=launch.plan.warps)


_start: Callable[[Launch], None] = start


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect the launches of this context instead of starting them; tensors may be on the meta device."""
    global _start
    launches: list[Launch] = []
    _start = launches.append
    try:
        yield launches
    finally:
        _start = start


def _run(kernel: Any, chosen: Plan, given: Input, **arguments: Any) -> None:
    """Launch a kernel with the sizes of the input and the plan, as far as it takes them."""
    A, C, S, GROUP = given.sizes
    sizes = {"A": A, "C": C, "S": S, "GROUP": GROUP, "SPLITS": chosen.splits, "PER": chosen.per}
    cut = {"ROWS": chosen.view.rows, "P": chosen.P, "Q": chosen.Q, "WIDE": chosen.wide, "MERGED": chosen.merged}
    every = arguments | sizes | cut
    _start(Launch(kernel, chosen, {name: every[name] for name in kernel.arg_names}))


NO_POPULATION: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "batches", "skipped"))
NO_POPULATION |= {"momentum": 0.0, "limit": 0.0, "CUMULATIVE": False, "SKIP": False}


def moments(x: Tensor, virtual_batch_size: int = 0, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and m2 of each virtual batch and channel, (G, C) in float64."""
    given = prepare(x, virtual_batch_size)
    with current(x):
        out = x.new_empty((3, given.view.groups, given.view.channels), dtype=torch.float64)
        weights, kind = mask_of(given, mask)
        _moments(given, out, mask=weights, MASK=kind, FINISH=False, eps=0.0, **NO_POPULATION)
    return out[0], out[1], out[2]


def _moments(given: Input, out: Tensor, **arguments: Any) -> None:
    chosen = plan.reduction(given.view, given.x.itemsize)
    size = given.view.groups * chosen.splits * given.view.channels
    table = given.x.new_empty(3 * size, dtype=torch.float64)
    slots = counters(given.x, given.view.groups * chosen.tiles)
    _run(
        kernels.moments_kernel, chosen, given, x=given.x, table=table, counters=slots, out=out, TABLE=size, **arguments
    )  # fmt: skip


def normalize(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """act((x − mean)·scale + shift + residual)."""
    given = prepare(x, virtual_batch_size)
    with current(x):
        (mean, scale, shift), stride = tables(given, mean, scale, shift)
        weights, kind = mask_of(given, mask)
        y = torch.empty_like(given.x)
        _normalize(
            given, y, residual=given.alike(residual, "residual"), mask=weights, MASK=kind, mean=mean, scale=scale,
            shift=shift, weight=None, bias=None, STRIDE=stride, ACTIVATION=activation,
        )  # fmt: skip
    return y


def _normalize(given: Input, y: Tensor, **arguments: Any) -> None:
    chosen = plan.elementwise(given.view, given.x.itemsize)
    _run(kernels.normalize_kernel, chosen, given, x=given.x, y=y, **arguments)


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ g′ and Σ g′·(x − mean), (G, C) in float64."""
    given = prepare(x, virtual_batch_size)
    with current(x):
        (mean, scale, shift), stride = tables(given, mean, scale, shift)
        weights, kind = mask_of(given, mask)
        out = x.new_empty((2, given.view.groups, given.view.channels), dtype=torch.float64)
        _reduce(
            given, given.required(grad, "the gradient"), out, extra=given.alike(residual, "residual"), mask=weights,
            MASK=kind, mean=mean, scale=scale, shift=shift, weight=None, bias=None, dweight=None, dbias=None,
            STRIDE=stride, ACTIVATION=activation, BY_OUTPUT=False,
        )  # fmt: skip
    return out[0], out[1]


def _reduce(given: Input, grad: Tensor, out: Tensor, **arguments: Any) -> None:
    chosen = plan.reduction(given.view, given.x.itemsize)
    size = given.view.groups * chosen.splits * given.view.channels
    table = given.x.new_empty(2 * size, dtype=torch.float64)
    slots = counters(given.x, given.view.groups * chosen.tiles)
    _run(
        kernels.reduce_kernel, chosen, given, grad=grad, x=given.x, table=table, counters=slots, out=out, TABLE=size,
        **arguments,
    )  # fmt: skip


def backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """a·g′ + (b·(x − mean) + c)·mask, and g′ for the residual if there is one."""
    given = prepare(x, virtual_batch_size)
    with current(x):
        (mean, scale, shift, a, b, c), stride = tables(given, mean, scale, shift, a, b, c)
        weights, kind = mask_of(given, mask)
        dx = torch.empty_like(given.x)
        dresidual = None if residual is None else torch.empty_like(given.x)
        _apply(
            given, given.required(grad, "the gradient"), dx, dresidual, extra=given.alike(residual, "residual"),
            mask=weights, MASK=kind, mean=mean, scale=scale, shift=shift, weight=None, bias=None, a=a, b=b, c=c,
            sums=None, share=0.0, STRIDE=stride, ACTIVATION=activation, BY_OUTPUT=False,
        )  # fmt: skip
    return dx, dresidual


def _apply(given: Input, grad: Tensor, dx: Tensor | None, dresidual: Tensor | None, **arguments: Any) -> None:
    chosen = plan.elementwise(given.view, given.x.itemsize)
    _run(kernels.apply_kernel, chosen, given, grad=grad, x=given.x, dx=dx, dresidual=dresidual, **arguments)


# ---- the plain and the frozen case


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped_batches: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str | None,
    skip_nonfinite: bool,
) -> tuple[Tensor, Tensor]:
    """y and the statistics (3, C) that normalised it: the batch's, or a given mean and variance.

    One launch if a channel's values fit on chip, else two. The launches also update the running statistics.
    """
    given = prepare(x)
    with current(x):
        residual = given.alike(residual, "residual")
        weight, bias = vector(given, weight, "weight"), vector(given, bias, "bias")
        statistics, y = x.new_empty((3, given.view.channels), dtype=torch.float64), torch.empty_like(given.x)
        if mean is not None and var is not None:
            by_population(given, statistics, mean, var, eps)
        else:
            moving = _Moving(given, running_mean, running_var, num_batches_tracked, skipped_batches, skip_nonfinite)
            memory = NO_POPULATION if running_mean is None else moving.arguments(momentum)
            whole = plan.whole(given.view, x.itemsize)
            if whole is not None:
                _run(
                    kernels.forward_whole_kernel, whole, given, x=given.x, y=y, residual=residual, weight=weight,
                    bias=bias, counters=counters(x, 0), out=statistics, eps=eps, ACTIVATION=activation, **memory,
                )  # fmt: skip
                moving.close()
                return y, statistics
            _moments(given, statistics, mask=None, MASK=0, FINISH=True, eps=eps, **memory)
            moving.close()
        _normalize(
            given, y, residual=residual, mask=None, MASK=0, mean=statistics[0], scale=statistics[1], shift=None,
            weight=weight, bias=bias, STRIDE=0, ACTIVATION=activation,
        )  # fmt: skip
    return y, statistics


def move_population(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    skipped: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float | None,
    skip: bool,
) -> None:
    """Update running statistics by a batch's mean and unbiased variance (C,), in one launch.

    It computes what `population.update_in_place` does. Each statistic is computed in float64 and rounded once.
    """
    given = Input(running_mean, plan.view((1, running_mean.numel()), False))
    with current(running_mean):
        moving = _Moving(given, running_mean, running_var, batches, skipped, skip)
        chosen = plan.population(given.view.channels)
        _run(
            kernels.population_kernel, chosen, given, mean=vector(given, mean, "mean"), var=vector(given, var, "var"),
            counters=counters(running_mean, 0), **moving.arguments(momentum),
        )  # fmt: skip
        moving.close()


def by_population(given: Input, statistics: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
    """Fill in the statistics from a given mean and variance (C,)."""
    mean, var = (vector(given, t, name).to(torch.float64) for t, name in ((mean, "mean"), (var, "var")))  # type: ignore[union-attr]
    torch.stack((mean, (var + eps).rsqrt(), var), out=statistics)


class _Moving:
    """The running statistics as the kernels write them: in place, or through contiguous copies."""

    def __init__(
        self,
        given: Input,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        batches: Tensor | None,
        skipped: Tensor | None,
        skip: bool,
    ) -> None:
        if (running_mean is None) is not (running_var is None):
            raise RuntimeError("expected running_mean and running_var, or neither; got one of them")
        self.originals = [running_mean, running_var]
        self.copies = [vector(given, running_mean, "running_mean"), vector(given, running_var, "running_var")]
        self.batches, self.skipped, self.skip = batches, skipped, skip

    def arguments(self, momentum: float | None) -> dict[str, Any]:
        mean, var = self.copies
        assert var is not None
        if momentum is None and self.batches is None:
            raise RuntimeError("a cumulative average (momentum=None) needs num_batches_tracked")
        return {
            "running_mean": mean, "running_var": var, "batches": self.batches, "skipped": self.skipped,
            "momentum": float(momentum or 0.0),
            "limit": min(torch.finfo(dtype).max for dtype in (var.dtype, torch.float32)),  # an argument in float32
            "CUMULATIVE": momentum is None, "SKIP": self.skip,
        }  # fmt: skip

    def close(self) -> None:
        """Write copies back."""
        for original, copy in zip(self.originals, self.copies, strict=True):
            if original is not None and copy is not None and copy is not original:
                original.copy_(copy)


def backward(
    grad: Tensor,
    x: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    eps: float,
    activation: str | None,
    constant: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, the residual, γ and β; empty where they are not needed.

    One launch if a channel's values fit on chip, else two.
    """
    given = prepare(x)
    with current(x):
        empty = x.new_empty(0)
        applies = needs[0] or needs[1]
        dx = torch.empty_like(given.x) if applies else None
        dresidual = torch.empty_like(given.x) if needs[1] else None
        dweight = torch.empty_like(weight) if weight is not None and needs[2] else None
        dbias = torch.empty_like(bias) if bias is not None and needs[3] else None
        arguments: dict[str, Any] = {
            "extra": given.alike(extra, "the residual"), "mean": statistics[0],
            "weight": vector(given, weight, "weight"), "bias": vector(given, bias, "bias"),
            "dweight": dweight, "dbias": dbias, "ACTIVATION": activation,
            "BY_OUTPUT": extra is not None and activation in BY_OUTPUT,
        }  # fmt: skip
        grad = given.required(grad, "the gradient")
        share = 0.0 if constant else given.view.channels / x.numel()
        whole = plan.whole(given.view, x.itemsize)
        if whole is not None:
            _run(
                kernels.backward_whole_kernel, whole, given, grad=grad, x=given.x, dx=dx, dresidual=dresidual,
                rstd=statistics[1], share=share, **arguments,
            )  # fmt: skip
        else:
            arguments |= {"scale": statistics[1], "shift": None, "mask": None, "MASK": 0, "STRIDE": 0}
            sums = x.new_empty((2, given.view.channels), dtype=torch.float64)
            _reduce(given, grad, sums, **arguments)
            if applies:
                _apply(given, grad, dx, dresidual, a=None, b=None, c=None, sums=sums, share=share, **arguments)
    return tuple(empty if t is None else t for t in (dx, dresidual, dweight, dbias))  # type: ignore[return-value]
