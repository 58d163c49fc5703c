"""The options of a batch norm beyond torch's, as one value that is validated once."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from torch import Tensor
from torch import distributed as dist

from batchnorm.backends.reference import ACTIVATIONS

Single = Literal["error", "population"]
NonFinite = Literal["skip", "raise", "propagate"]


@dataclass(frozen=True)
class Renorm:
    """Batch renormalisation: training normalises nearly as evaluation does, by the running statistics within limits.

    x̂ = (x − μ)/σ·r + d with r = σ/σ_pop clipped to [1/r_max, r_max] and d = (μ − μ_pop)/σ_pop clipped to
    [−d_max, d_max], both constants to the gradient. Over the first `warmup` batches the limits grow linearly from
    (1, 0), which is plain batch norm. `num_batches_tracked` counts the batches.

    Args:
        r_max: the limit of r, at least 1.
        d_max: the limit of |d|, at least 0.
        warmup: the number of batches before the limits are fully open; 0 for none.
        gradual: False to keep the limits at (1, 0) during the warm-up and open them at its end, as in CrossQ.

    Raises:
        ValueError: r_max < 1, d_max < 0 or warmup < 0.

    Examples:
        >>> import batchnorm as bn
        >>> layer = bn.BatchNorm(8, renorm=bn.Renorm(r_max=3, d_max=5, warmup=1000))

    Source: Ioffe 2017, "Batch Renormalization" (arXiv:1702.03275), algorithm 1; CrossQ: Bhatt et al.
    (arXiv:1902.05605).
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 0
    gradual: bool = True

    def __post_init__(self) -> None:
        if self.r_max < 1 or self.d_max < 0 or self.warmup < 0:
            raise ValueError(f"expected r_max ≥ 1, d_max ≥ 0 and warmup ≥ 0, got {self}")

    def limits(self, batches: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
        """(r_max, d_max) after `batches` batches; with None, after the warm-up."""
        if batches is None or not self.warmup:
            return self.r_max, self.d_max
        part = (batches / self.warmup).clamp(max=1)
        part = part if self.gradual else part.floor()
        return 1 + (self.r_max - 1) * part, self.d_max * part


class ConvertOptions(TypedDict, total=False):
    """The options as keywords of `convert`, all optional; not `recompute`, which has another meaning in `convert`."""

    activation: str | None
    virtual_batch_size: int | None
    process_group: Any
    renorm: Renorm | None
    single: Single
    nonfinite: NonFinite


class Options(ConvertOptions, total=False):
    """The options as keywords of `set_options`, all optional."""

    recompute: bool


@dataclass(frozen=True)
class Rules:
    """The options beyond torch's arguments.

    Args:
        activation: applied to the output in the same pass.
        virtual_batch_size: samples of a ghost batch.
        process_group: the ranks that share statistics; True for all.
        renorm: batch renormalisation.
        single: one value per channel in training is an "error", or is normalised by the "population".
        nonfinite: the effect of NaN and Inf on the running statistics.
        recompute: True if the output may be computed again for the backward pass.

    Raises:
        ValueError: a value that the option does not accept.
    """

    activation: str | None = None
    virtual_batch_size: int | None = None
    process_group: Any = None
    renorm: Renorm | None = None
    single: Single = "error"
    nonfinite: NonFinite = "skip"
    recompute: bool = True
    # plain: training normalises by the statistics of the whole batch, without renormalisation. common: plain, without a
    # process group, and without an error for batches that are not finite.
    plain: bool = field(init=False, repr=False, compare=False, default=True)
    common: bool = field(init=False, repr=False, compare=False, default=True)

    def __post_init__(self) -> None:
        _one_of("activation", self.activation, None, *ACTIVATIONS)
        size, group = self.virtual_batch_size, self.process_group
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            _refuse("virtual_batch_size", "must be a number of samples ≥ 1, or None", size)
        if group is not None and group is not True and not isinstance(group, dist.ProcessGroup):
            _refuse("process_group", "must be True or a process group, or None", group)
        if self.renorm is not None and not isinstance(self.renorm, Renorm):
            _refuse("renorm", "must be a bn.Renorm, or None", self.renorm)
        _one_of("single", self.single, *get_args(Single))
        _one_of("nonfinite", self.nonfinite, *get_args(NonFinite))
        _one_of("recompute", self.recompute, True, False)
        object.__setattr__(self, "plain", size is None and self.renorm is None)
        object.__setattr__(self, "common", self.plain and group is None and self.nonfinite != "raise")

    def changed(self, **options: Unpack[Options]) -> Self:
        """These rules with some options changed.

        Raises:
            TypeError: an unknown option.
            ValueError: a value that the option does not accept.
        """
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"unknown option {name!r}; there are {', '.join(OPTIONS)}")
        return replace(self, **options)


OPTIONS = tuple(f.name for f in fields(Rules) if f.init)


def _one_of(name: str, value: Any, *values: Any) -> None:
    if value not in values:
        _refuse(name, f"must be one of {', '.join(map(repr, values))}", value)


def _refuse(name: str, wrong: str, value: Any) -> None:
    raise ValueError(f"{name} {wrong}; got {value!r}")
