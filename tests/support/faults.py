"""Faults, each injected into one training step, and their expected results.

`python tests/support/faults.py` writes the table.

The layer has three channels and has seen one good batch; faults go into channel 1. `test_faults.py` injects
each on both backends, and checks what no fault may change: the other channels, the modes, the next step.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import batchnorm as bn

NAN, INF = float("nan"), float("inf")
NONE, ONE, EVERY = frozenset[int](), frozenset({1}), frozenset({0, 1, 2})
STATISTICS = ("running_mean", "running_var")
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


@dataclass
class Step:
    """One training step to be spoiled."""

    layer: bn.BatchNorm
    x: Tensor
    residual: Tensor
    grad: Tensor
    mask: Tensor | None = None
    lengths: Tensor | None = None
    context: Any = field(default_factory=nullcontext)
    interrupted: bool = False


@dataclass(frozen=True)
class Seen:
    """The result of a fault: an error, or channels with values that are not finite; and the state of the layer."""

    raises: type[BaseException] | None = None
    output: frozenset[int] = NONE  # channels of y that are not finite
    gradient: frozenset[int] = NONE  # channels of the gradients of x, γ and β that are not finite
    kept: frozenset[int] = NONE  # channels whose running statistics were not updated
    lost: frozenset[int] = NONE  # channels whose running statistics are not finite now
    skipped: bool = False  # counted in skipped_batches, and reported in a warning that names the channels
    counted: bool = True  # in num_batches_tracked


Injection = Callable[[Step], Any]


@dataclass(frozen=True)
class Fault:
    place: str
    what: str
    inject: Injection
    seen: Seen
    paths: tuple[str, ...] = ("plain", "masked", "virtual", "renorm")


def put(name: str, value: float) -> Injection:
    """`value` in one place of channel 1 of a tensor of the step, or of the layer."""

    def inject(s: Step) -> None:
        t = getattr(s, name) if hasattr(s, name) else getattr(s.layer, name)
        t.data[(0, 1, 0) if t.dim() == 3 else 1] = value

    return inject


def swap(name: str, make: Callable[[Tensor], Any]) -> Injection:
    """Replace a tensor of the step or of the layer by one made from it, or from the input."""

    def inject(s: Step) -> None:
        owner = s if hasattr(s, name) else s.layer
        setattr(owner, name, make(s.x if name in ("mask", "lengths") else getattr(owner, name)))

    return inject


def crop(samples: int, positions: int = 4) -> Injection:
    def inject(s: Step) -> None:
        s.x, s.residual, s.grad = (t[:samples, :, :positions] for t in (s.x, s.residual, s.grad))

    return inject


def also(inject: Injection, **options: Any) -> Injection:
    """A fault in a layer with other options."""
    return lambda s: (inject(s), s.layer.set_options(**options))


def interrupted(context: Callable[[bn.BatchNorm], Any]) -> Injection:
    """Ctrl-C in a `with`, after a forward pass."""
    return lambda s: (setattr(s, "context", context(s.layer)), setattr(s, "interrupted", True))


@contextmanager
def all_contexts(layer: bn.BatchNorm) -> Iterator[None]:
    with bn.paused(layer), bn.domain(layer, "night"), bn.accumulate(layer, 2), bn.backend("reference"):
        yield


@contextmanager
def no_memory(_: bn.BatchNorm) -> Iterator[None]:
    """The output cannot be made, on any backend."""
    fail = {"side_effect": MemoryError("no memory")}
    with (
        mock.patch("batchnorm.backends.reference.normalize", **fail),
        mock.patch("batchnorm.backends.aten.by_batch", **fail),
        mock.patch("batchnorm.core.ops.forward", **fail),
        mock.patch("batchnorm.core.ops.normalize", **fail),
    ):
        yield


def weights(third: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.tensor([1.0, 1.0, third, 1.0]).expand(len(x), 4)


def meta(t: Tensor) -> Tensor:
    return nn.Parameter(t.to("meta")) if isinstance(t, nn.Parameter) else t.to("meta")


def refused(error: type[BaseException]) -> Seen:
    return Seen(error, kept=EVERY, counted=False)


WRONG, VALUE, KEPT = refused(RuntimeError), refused(ValueError), Seen(kept=EVERY)
SKIPPED = Seen(output=ONE, gradient=ONE, kept=ONE, skipped=True)
UNMASKED, MASKS = ("plain", "virtual", "renorm"), ("masked", "virtual", "renorm")
BY_BATCH = ("plain", "masked", "virtual")

# fmt: off
FAULTS = [
    Fault("input", "NaN in one value", put("x", NAN), SKIPPED),
    Fault("input", "Inf in one value", put("x", INF), SKIPPED),
    Fault("input", "a value whose square overflows", put("x", 1e30), Seen(kept=ONE, skipped=True)),
    Fault("input", "NaN in all values", lambda s: s.x.fill_(NAN), Seen(None, EVERY, EVERY, EVERY, skipped=True)),
    Fault("input", "NaN where the mask is 0", lambda s: s.x[:, :, 3].fill_(NAN), Seen(), ("masked",)),
    Fault("input", "NaN, with nonfinite='raise'", also(put("x", NAN), nonfinite="raise"), refused(FloatingPointError)),
    Fault("input", "NaN, with nonfinite='propagate' (as torch)", also(put("x", NAN), nonfinite="propagate"),
          Seen(output=ONE, gradient=ONE, lost=ONE)),
    Fault("input", "a constant channel", lambda s: s.x[:, 1].fill_(5.0), Seen()),
    Fault("input", "no samples", crop(0), KEPT, UNMASKED),
    Fault("input", "one value per channel", crop(1, 1), VALUE, UNMASKED),
    Fault("input", "one value per channel, with single='population'", also(crop(1, 1), single="population"), KEPT,
          UNMASKED),
    Fault("input", "another number of channels", swap("x", lambda x: x[:, :2]), WRONG),
    Fault("input", "only one dimension", swap("x", lambda x: x[:, 0, 0]), VALUE),
    Fault("input", "integers", swap("x", lambda x: x.long()), refused(NotImplementedError)),
    Fault("input", "float64 for a float32 layer", swap("x", lambda x: x.double()), WRONG),
    Fault("input", "on another device", swap("x", meta), WRONG),
    Fault("weight", "NaN", put("weight", NAN), Seen(output=ONE, gradient=ONE)),
    Fault("weight", "Inf", put("weight", INF), Seen(output=ONE, gradient=ONE)),
    Fault("weight", "on another device", swap("weight", meta), WRONG),
    Fault("bias", "NaN", put("bias", NAN), Seen(output=ONE)),
    Fault("residual", "NaN in one value", put("residual", NAN), Seen(output=ONE)),
    Fault("residual", "another shape", swap("residual", lambda r: r[:, :, :2]), WRONG),
    Fault("residual", "on another device", swap("residual", meta), WRONG),
    Fault("gradient", "NaN in one value", put("grad", NAN), Seen(gradient=ONE)),
    Fault("gradient", "Inf in one value", put("grad", INF), Seen(gradient=ONE)),
    Fault("gradient", "a sum beyond float32", lambda s: s.grad[:, 1].fill_(3e38), Seen(gradient=ONE)),
    Fault("statistics", "a mean that is NaN already", put("running_mean", NAN), Seen(lost=ONE), BY_BATCH),
    Fault("statistics", "a mean that is NaN already", put("running_mean", NAN), Seen(None, ONE, ONE, lost=ONE),
          ("renorm",)),
    Fault("statistics", "a variance that is Inf already", put("running_var", INF), Seen(lost=ONE), BY_BATCH),
    Fault("statistics", "on another device", swap("running_var", meta), WRONG),
    Fault("mask", "selects no value", swap("mask", lambda x: torch.zeros(6, 4)), KEPT, MASKS),
    Fault("mask", "selects one value per channel", swap("mask", lambda x: torch.eye(24)[0].view(6, 4)), KEPT, MASKS),
    Fault("mask", "another shape", swap("mask", lambda x: torch.ones(5, 4)), VALUE, MASKS),
    Fault("mask", "a negative weight", swap("mask", weights(-1.0)), VALUE, MASKS),
    Fault("mask", "a NaN", swap("mask", weights(NAN)), VALUE, MASKS),
    Fault("mask", "an Inf", swap("mask", weights(INF)), VALUE, MASKS),
    Fault("mask", "complex", swap("mask", lambda x: torch.ones(6, 4, dtype=torch.complex64)), VALUE, MASKS),
    Fault("mask", "with a gradient", swap("mask", lambda x: torch.ones(6, 4, requires_grad=True)), VALUE, MASKS),
    Fault("mask", "on another device", swap("mask", lambda x: torch.ones(6, 4, device="meta")), WRONG, MASKS),
    Fault("lengths", "longer than the input", swap("lengths", lambda x: torch.tensor([4, 4, 4, 4, 4, 9])), VALUE,
          UNMASKED),
    Fault("lengths", "negative", swap("lengths", lambda x: torch.tensor([4, 4, 4, 4, 4, -1])), VALUE, UNMASKED),
    Fault("lengths", "not integers", swap("lengths", lambda x: torch.ones(6)), VALUE, UNMASKED),
    Fault("lengths", "together with a mask", swap("lengths", lambda x: torch.ones(6).long()), VALUE, ("masked",)),
    Fault("memory", "not enough for the output", lambda s: setattr(s, "context", no_memory(s.layer)),
          refused(MemoryError)),
    Fault("Ctrl-C", "in bn.paused", interrupted(bn.paused), refused(KeyboardInterrupt)),
    Fault("Ctrl-C", "in bn.accumulate", interrupted(lambda m: bn.accumulate(m, 2)), refused(KeyboardInterrupt)),
    Fault("Ctrl-C", "in bn.domain", interrupted(lambda m: bn.domain(m, "night")), refused(KeyboardInterrupt)),
    Fault("Ctrl-C", "in bn.backend", interrupted(lambda m: bn.backend("reference")), Seen(KeyboardInterrupt)),
    Fault("Ctrl-C", "in all of them, nested", interrupted(all_contexts), refused(KeyboardInterrupt)),
]
# fmt: on


def prepare(path: str) -> Step:
    """A layer that has seen one good batch, and all that a second step needs."""
    g = torch.Generator().manual_seed(1)
    first, x, residual, grad = torch.randn(4, 6, 3, 4, generator=g) * torch.tensor([[1.0], [2.0], [3.0]]) + 1
    mask = torch.tensor([True, True, True, False]).expand(6, 4) if path == "masked" else None
    options = {"virtual": {"virtual_batch_size": 4}, "renorm": {"renorm": bn.Renorm(2.0, 1.0)}}
    layer = bn.BatchNorm(3, **options.get(path, {}))
    layer(first, mask=mask)
    return Step(layer, x, residual, grad, mask)


def observe(s: Step) -> tuple[Seen, str]:
    """Run the step; returns its result, and the message of the error or the warning."""
    layer, error, seen = s.layer, None, Seen()
    before, batches = [copy.deepcopy(getattr(layer, name)) for name in STATISTICS], int(layer.num_batches_tracked)
    x = s.x.detach().requires_grad_(s.x.is_floating_point())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with s.context:
                y = layer(x, s.residual, s.mask, s.lengths)
                if s.interrupted:
                    raise KeyboardInterrupt
            y.backward(s.grad)
            gradients = not_finite(x.grad) | not_finite(layer.weight.grad) | not_finite(layer.bias.grad)
            seen = Seen(None, not_finite(y), gradients)
        except (Exception, KeyboardInterrupt) as e:
            error, seen = e, Seen(type(e))
    after = [getattr(layer, name) for name in STATISTICS]
    remembered = {
        "kept": EVERY.intersection(*(equal(a, b) for a, b in zip(after, before, strict=True))),
        "lost": NONE.union(*map(not_finite, after)),
        "skipped": layer.skipped_batches > 0,
        "counted": int(layer.num_batches_tracked) > batches,
    }
    words = "; ".join(str(w.message) for w in said) if error is None else f"{type(error).__name__}: {error}"
    return Seen(seen.raises, seen.output, seen.gradient, **remembered), words


def not_finite(t: Tensor) -> frozenset[int]:
    """The channels with a value that is not finite."""
    if t.is_meta:
        return NONE
    channels = t.detach().movedim(1, 0).flatten(1) if t.dim() > 1 else t.detach().unsqueeze(1)
    return frozenset((~channels.isfinite().all(1)).nonzero().flatten().tolist())


def equal(a: Tensor, b: Tensor) -> frozenset[int]:
    """The channels that are equal in both; all of them for tensors without values, which cannot be written."""
    return EVERY if a.is_meta else frozenset(((a == b) | (a.isnan() & b.isnan())).nonzero().flatten().tolist())


def table() -> str:
    """The page of the docs."""
    lines = [
        "# Faults",
        "",
        "This page shows the effects of one bad training step on a layer. The layer has the channels 0, 1 and 2, and",
        "has been trained on one good batch. A fault of one channel is put into channel 1. The third column lists the",
        "layers that were tested: `plain`, `masked` (called with `mask=`), `virtual` (`virtual_batch_size=4`),",
        "`renorm` (`renorm=bn.Renorm(2, 1)`), or all four.",
        "",
        "`python tests/support/faults.py` writes this page, and `tests/test_faults.py` checks every row on two",
        "backends. It also checks that the layer is still in training mode, not frozen and not paused, that the other",
        "channels get the running statistics that they would have without the fault, and that the next good batch",
        "works.",
        "",
        "| place | fault | layers | effect | running statistics |",
        "|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        step = prepare(fault.paths[0])
        fault.inject(step)
        seen, words = observe(step)
        paths = "all" if len(fault.paths) == 4 else ", ".join(fault.paths)
        cells = fault.place, fault.what, paths, happens(seen, words), remembered(seen)
        lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |")
    return "\n".join([*lines, ""])


def happens(seen: Seen, words: str) -> str:
    if seen.raises:
        return f"`{words.rstrip(': ')}`"
    where = {"output": seen.output, "gradient": seen.gradient}
    bad = [f"{name} of {channels(which)} not finite" for name, which in where.items() if which]
    bad = bad or ["finite output and gradient"]
    return "; ".join([*bad, "a warning names the channels"] if seen.skipped else bad)


def remembered(seen: Seen) -> str:
    what = f"not updated in {channels(seen.kept)}" if seen.kept else "updated as usual"
    what = "not updated" if seen.kept == EVERY else what
    what = f"not finite in {channels(seen.lost)}" if seen.lost else what
    count = "" if seen.counted else "; the batch is not counted"
    return what + count + ("; counted in `skipped_batches`" if seen.skipped else "")


def channels(which: frozenset[int]) -> str:
    return "every channel" if which == EVERY else f"channel {', '.join(map(str, sorted(which)))}"


if __name__ == "__main__":
    PAGE.write_text(table())
