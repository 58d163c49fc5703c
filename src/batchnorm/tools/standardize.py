"""Data normalisation as a layer: fitted over a stream in one pass, invertible, and part of the network it feeds."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.core.moments import Moments
from batchnorm.core.sharing import Group, pooled_over_ranks, resolve
from batchnorm.tools import streams

# Values that are processed at a time. On a CPU their float64 copy stays in cache and torch starts no threads: 10⁶×20
# float32 took 0.08 s in pieces of 20,000 values and 1.4 s in pieces of 320,000 on 2 busy cores.
PIECE = {"cpu": 20_480}
PIECE_ELSEWHERE = 1 << 24


class Standardize(nn.Module):
    """Bring every feature of the data to mean 0 and standard deviation 1; `inverse` undoes this.

    y = (x − mean) / σ per feature, with the mean and the standard deviation σ (biased, √(m2/count)) of the values
    seen by `fit` or `partial_fit`. Order and relative distances are kept. NaN is a missing value: it is left out of the
    statistics and stays NaN. A feature that is constant, or was never seen, has σ = 1 (`constant` names them).

    The statistics are float64 buffers, whatever the dtype of the model. A forward pass does not change them: inside a
    network the layer is frozen, in training too, and it is saved and exported with the network (state_dict, export,
    ONNX). With ``running=True`` each forward pass in training first adds its input to the statistics, until `freeze`.

    Args:
        num_features: C, the size of dimension `axis`; None takes it from the first batch of `fit` or `partial_fit`, or
            from a state_dict.
        axis: the dimension of the features; 1 for (N, C) and (N, C, H, W), −1 for (N, L, C).
        clip: the largest |y|, or None; `inverse` cannot restore clipped values.
        running: True to update the statistics in `forward` while training, for example for the observations in
            reinforcement learning.
        device: of the statistics; None for torch's default device.

    Shape:
        input and output of `forward` and `inverse`: any with C at `axis`; same dtype (integers: the default dtype). A
        NumPy array gives a NumPy array.

    Raises:
        RuntimeError: used before it was fitted. ValueError: another number of features, infinite values.

    Examples:
        >>> import torch, batchnorm as bn
        >>> data = torch.tensor([[180.0, 0.5], [160.0, 0.1], [170.0, 0.3]])
        >>> layer = bn.Standardize(2).fit(data)
        >>> layer(data)[:, 0]
        tensor([ 1.2247, -1.2247,  0.0000])
        >>> torch.equal(layer.inverse(layer(data)), data)
        True
        >>> bn.Standardize().fit(data.numpy())(data.numpy())[:, 0].round(4)
        array([ 1.2247, -1.2247,  0.    ], dtype=float32)

    Source: the merge is that of Chan, Golub & LeVeque 1983, equation 2.1.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(
        self,
        num_features: int | None = None,
        *,
        axis: int = 1,
        clip: float | None = None,
        running: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive or None, got {clip}")
        self.num_features, self.axis, self.clip, self.running = num_features, axis, clip, running
        self.names: list[str] | None = None
        for name in ("count", "mean", "m2"):
            self.register_buffer(name, torch.zeros(num_features or 0, dtype=torch.float64, device=device))

    @property
    def moments(self) -> Moments:
        """Count, mean and m2 of the values seen so far, each (C,)."""
        return Moments(self.count, self.mean, self.m2)

    @property
    def scale(self) -> Tensor:
        """σ: (C,), 1 for constant and unseen features."""
        sigma = self.moments.variance.sqrt()
        # below the rounding of the mean itself there is no spread to measure
        return torch.where(sigma > torch.finfo(sigma.dtype).eps * self.mean.abs(), sigma, 1.0)

    @property
    def constant(self) -> list[int] | list[str]:
        """The features whose σ is set to 1: by name if the data had names, by number otherwise."""
        flat = self.moments.variance.sqrt() <= torch.finfo(self.mean.dtype).eps * self.mean.abs()
        numbers = flat.nonzero().flatten().tolist()
        return numbers if self.names is None else [self.names[i] for i in numbers]

    def fit(self, batches: Any, *, columns: list[str] | None = None, process_group: Group | None = None) -> Self:
        """Replace the statistics by those of `batches`, in one pass; constant features cause a warning.

        Args:
            batches: an array, a tensor, a data frame, a path (.parquet, .csv, .npy; read in pieces), or an iterable
                of those, such as a DataLoader (of a batch that is a tuple, the first element).
            columns: of a file or data frame, the columns to use, in this order.
            process_group: True (all ranks) or a process group: each rank has its own batches, or none; all get the
                statistics of all the data.

        Raises:
            ValueError: no values at all, infinite ones, another number of features. After it, or an interrupt, the
                layer is as before.

        Examples:
            >>> import numpy as np, batchnorm as bn
            >>> layer = bn.Standardize(1).fit(np.full((10, 1), 7.0) + np.arange(10).reshape(-1, 1) for _ in range(3))
            >>> layer.mean.item(), layer.count.item()
            (11.5, 30.0)
        """
        total = None
        for x in streams.tensors(batches, columns):
            total = _added(total, self._of(x, None))
        total = _nothing(self) if total is None else total
        if group := resolve(process_group):
            if self.num_features is None:
                raise ValueError("expected Standardize(num_features) with a process group: a rank may have no batch")
            own = Moments(*(t.unsqueeze(0) for t in (total.count, total.mean, total.m2)))  # type: ignore[union-attr]
            total = pooled_over_ranks(own, group, "Standardize").channels()
        if not torch.as_tensor(total.count).any():
            raise ValueError("there was not a single value to fit: the batches are empty, or all values are missing")
        self.names = streams.names_of(batches, columns)
        self._set(total)
        if constant := self.constant:
            warnings.warn(f"features {constant} are constant or were never seen: their σ is set to 1", stacklevel=2)
        return self

    def partial_fit(self, x: Any, mask: Any = None) -> Self:
        """Add the values of one batch to the statistics, without those for which `mask` (it broadcasts) is false.

        Examples:
            >>> import torch, batchnorm as bn
            >>> x = torch.tensor([[1.0], [3.0], [99.0]])
            >>> bn.Standardize(1).partial_fit(x, mask=torch.tensor([[True], [True], [False]])).mean.item()
            2.0
        """
        pieces = streams.tensors(x)
        if mask is not None:  # in one piece, so that each value keeps its mask
            mask, x = (torch.cat(list(values)) for values in (streams.tensors(mask), pieces))
            pieces = iter([x])
        total = self.moments if self.num_features is not None else None
        for piece in pieces:
            total = _added(total, self._of(piece, mask))
        self._set(_nothing(self) if total is None else total)
        return self

    def merge(self, *others: "Standardize | Moments") -> Self:
        """Add the statistics of other layers (shards, workers, clients), as if this layer had seen their data.

        Examples:
            >>> import torch, batchnorm as bn
            >>> a, b = (bn.Standardize(1).partial_fit(torch.tensor(x)) for x in ([[1.0], [2.0]], [[6.0]]))
            >>> a.merge(b).mean.item(), a.count.item()
            (3.0, 3.0)
        """
        if others:
            self._take_width(others[0].mean.numel())
        total = self.moments
        for other in others:
            if other.mean.shape != self.mean.shape:
                raise ValueError(f"expected {self.num_features} features, got {other.mean.numel()}")
            total = total.merge(other if isinstance(other, Moments) else other.moments)
        self._set(total)
        return self

    def freeze(self) -> Self:
        """Stop updating in `forward`, in training too (`running` becomes False)."""
        self.running = False
        return self

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: np.ndarray) -> np.ndarray: ...
    def forward(self, x: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if isinstance(x, np.ndarray):
            return self._on_array(self.forward, x)
        if self.running and self.training:
            self.partial_fit(x.detach())
        high, low, scale, dtype = self._constants(x)
        centered = x - high if low is None else (x.to(high.dtype) - high) - low
        y = (centered / scale).to(dtype)
        return y if self.clip is None else y.clamp(-self.clip, self.clip)

    @overload
    def inverse(self, y: Tensor) -> Tensor: ...
    @overload
    def inverse(self, y: np.ndarray) -> np.ndarray: ...
    def inverse(self, y: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """y·σ + mean: brings outputs of `forward`, or predictions of a network, back to the units of the data."""
        if isinstance(y, np.ndarray):
            return self._on_array(self.inverse, y)
        high, low, scale, dtype = self._constants(y)
        x = y * scale if low is None else y.to(high.dtype) * scale + low
        return (x + high).to(dtype)

    def extra_repr(self) -> str:
        changed = [f"{k}={getattr(self, k)!r}" for k in ("clip", "running") if getattr(self, k)]
        return ", ".join([f"{self.num_features}, axis={self.axis}", *changed])

    def _on_array(self, function: Callable[[Tensor], Tensor], array: np.ndarray) -> np.ndarray:
        """The function of a tensor, applied to a copy of an array of any layout or byte order."""
        tensors = [function(x.to(self.mean.device)).cpu() for x in streams.tensors(np.array(array, order="C"))]
        empty = torch.zeros(array.shape, dtype=torch.get_default_dtype())
        found: np.ndarray = (torch.cat(tensors) if tensors else empty).detach().numpy()
        return found

    def _constants(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, torch.dtype]:
        """The mean, in one part (float64) or two, and σ, shaped to broadcast over `x`; and the dtype of the output."""
        self._check(x)
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        shape = [1] * x.dim()
        shape[self.axis] = -1
        mean, scale = self.mean.reshape(shape), self.scale.reshape(shape)
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing() or self.mean.dtype is torch.float32):
            return mean, None, scale, dtype
        # Runtimes of exported graphs and some devices are slow in float64 or lack it; a mean in two parts is as good.
        wide = torch.promote_types(dtype, torch.float32)
        high = mean.to(wide)
        return high, (mean - high).to(wide), scale.to(wide), dtype

    def _check(self, x: Tensor) -> None:
        if self.num_features is not None and self._width(x) != self.num_features:
            raise ValueError(
                f"expected {self.num_features} features in dimension {self.axis}, got a shape of {tuple(x.shape)}"
            )
        self._need_data()

    def _width(self, x: Tensor) -> int | None:
        """The number of features of x; None if it has no dimension `axis`."""
        return x.shape[self.axis] if -x.dim() <= self.axis < x.dim() else None

    def _need_data(self) -> None:
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and not self._fitted():
            raise RuntimeError("Standardize has not seen any data: call fit or partial_fit, or load a state_dict")

    def _fitted(self) -> bool:
        """True once any value was seen. The answer is cached: the CPU waits for a GPU only once."""
        if not self.__dict__.get("_seen"):
            self._seen = bool(self.count.any())
        return self._seen

    def _of(self, x: Tensor, mask: Tensor | None) -> Moments:
        """The moments of one batch, each (C,), NaN and masked values left out."""
        width = self._width(x)
        if width is None or self.num_features not in (None, width):
            count = "" if self.num_features is None else f"{self.num_features} "
            raise ValueError(f"expected {count}features in dimension {self.axis}, got a batch of {tuple(x.shape)}")
        if mask is not None:
            x = torch.where(mask.to(x.device).bool(), x.to(torch.promote_types(x.dtype, torch.float32)), torch.nan)
        if x.numel() == 0:
            return Moments(*(self.mean.new_zeros(width) for _ in range(3)))
        parts = [_piece(piece) for piece in _pieces(x.detach(), self.axis % x.dim())]
        total = Moments(*(torch.stack(part) for part in zip(*parts, strict=True))).pooled().channels()
        if infinite := (~total.mean.isfinite()).nonzero().flatten().tolist():
            raise ValueError(f"features {infinite} hold infinite values: mask them, or make them NaN to leave them out")
        return total

    def _set(self, total: Moments) -> None:
        self._take_width(len(torch.as_tensor(total.mean)))
        with torch.no_grad():
            for name in ("count", "mean", "m2"):
                getattr(self, name).copy_(getattr(total, name))

    def _take_width(self, width: int) -> None:
        """Set the number of features, if it was not given."""
        if self.num_features is None:
            self.num_features = width
            for name in ("count", "mean", "m2"):
                setattr(self, name, getattr(self, name).new_zeros(width))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        stored = state_dict.get(f"{prefix}mean")
        if isinstance(stored, Tensor) and stored.dim() == 1:
            self._take_width(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the statistics to another device, but keep their dtype: rounding to half precision cannot be undone."""
        lacks_double = fn(torch.zeros(0)).device.type == "mps"
        for name in ("count", "mean", "m2"):
            old = getattr(self, name)
            new = fn(old.float() if lacks_double else old)
            setattr(self, name, new if new.dtype == old.dtype or lacks_double else old.to(new.device))
        return self


def _added(total: Moments | None, part: Moments) -> Moments:
    """The moments of both; ValueError if the batches have different numbers of features."""
    if total is None:
        return part
    if total.mean.shape != part.mean.shape:
        raise ValueError(f"expected {total.mean.numel()} features, as in the batches before, got {part.mean.numel()}")
    return total.merge(part)


def _nothing(layer: Standardize) -> Moments:
    return Moments(*(torch.zeros_like(layer.mean) for _ in range(3)))


def _pieces(x: Tensor, axis: int) -> Iterator[Tensor]:
    """`x` as pieces (A, C, B), with the dimensions before the features in A and those after them in B."""
    if x.dim() == 2 and axis == 1 and x.stride(0) == 1:  # columns as a file stores them
        x, axis = x.t(), 0
    x = x.unsqueeze(-1) if axis == x.dim() - 1 else x.flatten(axis + 1)
    x = x.flatten(0, axis - 1) if axis else x.unsqueeze(0)
    C, B = x.shape[1:]
    values = max(PIECE.get(x.device.type, PIECE_ELSEWHERE) // C, 1)  # of each feature
    for rows in x.split(max(values // B, 1)):
        yield from rows.split(values, dim=2)


def _piece(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and m2 of `x: (A, C, B)`, each (C,): the deviations are taken from the mean, in float64."""
    wide = x.to(torch.float32 if x.device.type == "mps" else torch.float64, copy=True)
    count = torch.full_like(wide[0, :, 0], x.shape[0] * x.shape[2])
    mean = _sum(wide) / count
    if not mean.sum().isfinite():
        seen = ~wide.isnan()
        count = seen.sum((0, 2)).to(wide.dtype)
        mean = _sum(wide.nan_to_num_(0.0, torch.inf, -torch.inf)) / count.clamp(min=1)
        deviation = wide.sub_(mean.reshape(1, -1, 1)).mul_(seen)
    else:
        deviation = wide.sub_(mean.reshape(1, -1, 1))
    return count, mean, _sum(deviation.square_())


def _sum(x: Tensor) -> Tensor:
    """The sum over A and B of (A, C, B), by the routine that is fast for the layout."""
    if x.shape[2] == 1:
        return x.new_ones(x.shape[0]) @ x[:, :, 0]
    return x.sum(2).sum(0)
