"""What a batch norm can be told beyond torch's arguments: an answer to each of the five decisions."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

Single = Literal["error", "population"]


@dataclass(frozen=True)
class Renorm:
    """Batch renormalisation: in training too, normalise (nearly) as the population would.

    x̂ = (x − μ)/σ·r + d with r = σ/σ_pop clipped to [1/r_max, r_max] and d = (μ − μ_pop)/σ_pop clipped to
    [−d_max, d_max], both constants to the gradient. Over the first `warmup` batches the limits grow linearly from
    (1, 0), which is plain batch norm; how many there have been is read off `num_batches_tracked`.

    Raises:
        ValueError: r_max < 1, d_max < 0 or warmup < 0.

    >>> import batchnorm as bn
    >>> layer = bn.BatchNorm(8, renorm=bn.Renorm(r_max=3, d_max=5, warmup=1000))

    Source: Ioffe 2017, "Batch Renormalization", algorithm 1.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.r_max < 1 or self.d_max < 0 or self.warmup < 0:
            raise ValueError(f"expected r_max ≥ 1, d_max ≥ 0 and warmup ≥ 0, got {self}")

    def limits(self, batches: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
        """(r_max, d_max) after so many batches, or at the end of the warm-up where that is not known."""
        if batches is None or not self.warmup:
            return self.r_max, self.d_max
        part = (batches / self.warmup).clamp(max=1)
        return 1 + (self.r_max - 1) * part, self.d_max * part


class Running(NamedTuple):
    """A population to move in place while normalising, as the kernels take it."""

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    momentum: float | None
    nonfinite: str


class Options(NamedTuple):
    """The decisions beyond torch's, as `batch_norm` takes them."""

    residual: Tensor | None = None
    activation: str | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None
    virtual_batch_size: int | None = None
    process_group: Any | None = None
    renorm: tuple[float | Tensor, float | Tensor] | None = None
    single: Single = "error"
    running: Running | Literal[False] | None = None  # what kernels may remember on the way; False: nothing will be
    label: str = "batch_norm"  # what errors between ranks call the layer
