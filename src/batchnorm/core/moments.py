"""Count, mean and squared deviations of a set of values, and their exact merge.

Ranks, virtual batches, data shards and streams of data are all merged here, weighted by count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnorm.backends import reference


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations from the mean, per channel.

    m2 = Σ (x − mean)², so the biased variance is m2 / count. Moments of several sets of values merge exactly.

    Args:
        count: the number of values, or with a mask the sum of their weights; it broadcasts against `mean`.
        mean: (C,), or (G, C) for G groups.
        m2: the same shape: the sum of squared deviations from the mean.

    Examples:
        >>> import torch
        >>> from batchnorm import Moments
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> Moments.of(x)
        Moments(count=3, mean=tensor([2.], dtype=torch.float64), m2=tensor([2.], dtype=torch.float64))

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """

    count: int | Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None = None) -> "Moments":
        """The moments of `x: (N, C, *)` over all dimensions but the second, weighted by `mask` (it broadcasts)."""
        return cls(*reference.moments(x, mask=mask)).channels()

    @property
    def variance(self) -> Tensor:
        """The biased variance m2 / count, by which a batch is normalised."""
        return self.m2 / at_least_one(self.count)

    @property
    def unbiased_variance(self) -> Tensor:
        """The unbiased variance m2 / (count − 1), as in the running statistics."""
        return self.m2 / (self.count - 1)

    def channels(self) -> "Moments":
        """The moments of a single group: (C,) from (1, C)."""
        count = self.count[0] if isinstance(self.count, Tensor) and self.count.dim() else self.count
        return Moments(count, self.mean[0], self.m2[0])

    def pooled(self) -> "Moments":
        """The moments of all groups' values together, (1, C) from (G, C): `merge` over the first dimension."""
        count = torch.zeros_like(self.mean) + self.count
        total = count.sum(0, keepdim=True)
        mean = (count * self.mean).sum(0, keepdim=True) / at_least_one(total)
        between = count * (self.mean - mean).square()
        return Moments(total, mean, (self.m2 + between).sum(0, keepdim=True))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of values together.

        With δ = mean₂ − mean₁: mean = mean₁ + δ·n₂/n and m2 = m2₁ + m2₂ + δ²·n₁·n₂/n.
        Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.

        Examples:
            >>> import torch
            >>> from batchnorm import Moments
            >>> x = torch.arange(10.0).reshape(-1, 1)
            >>> Moments.of(x[:3]).merge(Moments.of(x[3:])).variance.item()
            8.25
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        # `delta` first: the ratio of two integer counts would be float32.
        step = delta * other.count / at_least_one(count)
        return Moments(count, self.mean + step, self.m2 + other.m2 + delta * step * self.count)


def weights_of(x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """The mask, or that of `lengths`, as weights that broadcast over `x: (N, C, *)`; None if all values count."""
    if lengths is not None:
        mask = (torch.arange(x.shape[2], device=x.device) < lengths.unsqueeze(1)).unsqueeze(1)
    if mask is None:
        return None
    mask = mask.unsqueeze(1) if mask.dim() == x.dim() - 1 else mask
    return mask.to(torch.promote_types(x.dtype, torch.float32))


def values_per_channel(x: Tensor) -> int:
    """The number of values in each channel of `x: (N, C, *)`."""
    return x.shape[0] * x.shape[2:].numel()


def at_least_one(count: int | Tensor) -> int | Tensor:
    """`count`, or 1 where it is 0, so that mean and variance of no values are 0 instead of NaN."""
    return count.where(count > 0, 1) if isinstance(count, Tensor) else max(count, 1)
