"""The launches that the launcher can make, recorded while its functions run on the meta device.

Calls differ in what changes the compiled code: layout, tile, dtype, activation, residual, mask, virtual batches, and
whether sizes are multiples of 16. Sizes that lead to the same specialisation need one call.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.backends.reference import ACTIVATIONS, BY_OUTPUT
from batchnorm.backends.triton import launch
from batchnorm.backends.triton.arguments import DTYPES
from batchnorm.backends.triton.launch import Launch

Shape = tuple[int, ...]

# Each of the kernels' tiles in both layouts: planes of one position block and of several, channels that fit on chip and
# that do not, few channels and many, odd sizes and multiples of 16; a volume of more than 2³¹ values last.
PLANES: tuple[Shape, ...] = (
    (32, 64, 112, 112), (32, 512, 7, 7), (64, 256, 14, 14), (128, 1024, 7, 7), (256, 48, 3), (8, 16, 63, 65),
    (2, 3, 300, 301), (2, 16, 8, 8), (1, 1, 48), (1, 2, 40000), (4, 70000, 125, 125),
)  # fmt: skip
ROWS: tuple[Shape, ...] = (
    (32, 64, 56, 56), (4096, 1024), (256, 1024), (64, 37), (5000, 37), (9000, 5), (4096, 16), (2, 3),
    (2, 64, 16, 28, 28), (70000, 33000),
)  # fmt: skip


class Call(NamedTuple):
    """A call of the launcher."""

    shape: Shape
    rows: bool
    dtype: torch.dtype
    activation: str | None = None
    residual: bool = False
    mask: str | None = None  # "positions", "values"
    virtual: int = 0
    affine: tuple[bool, bool] = (True, True)  # γ, β
    memory: torch.dtype = torch.float32  # of the running statistics
    other: torch.dtype | None = None  # of the gradient and the residual, if not the input's

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the call's shape and layout, without values."""
        x = torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.dim()]) if self.rows and x.dim() in formats else x

    def launches(self) -> list[Launch]:
        """The launches of the call: the primitives, and without a mask or virtual batches the plain case too."""
        with launch.recording() as found:
            self._primitives()
            if self.mask is None and not self.virtual:
                self._plain()
        return found

    def _primitives(self) -> None:
        x, grad, channels = self.tensor(), self.tensor(self.other), self.shape[1]
        residual = self.tensor(self.other) if self.residual else None
        mask = None
        if self.mask is not None:
            space = torch.Size(self.shape[2:])
            sizes = (self.shape[0], 1, *space) if self.mask == "positions" else self.shape
            mask = torch.empty(sizes, device="meta")
        _, mean, _ = launch.moments(x, self.virtual, mask)
        details = residual, self.activation, self.virtual, mask
        launch.normalize(x, mean, mean, mean, *details)
        launch.backward_reduce(grad, x, mean, mean, mean, *details)
        launch.backward_apply(grad, x, mean, mean, mean, mean, mean, mean, *details)
        assert mean.shape[1] == channels

    def _plain(self) -> None:
        x, grad = self.tensor(), self.tensor(self.other)
        residual = self.tensor(self.other) if self.residual else None
        vectors = torch.empty(2, self.shape[1], device="meta").unbind()
        weight, bias = (t if there else None for t, there in zip(vectors, self.affine, strict=True))
        mean, var = torch.empty(2, self.shape[1], dtype=self.memory, device="meta").unbind()
        batches, skipped = torch.empty(2, dtype=torch.int64, device="meta").unbind()
        options = 1e-5, self.activation, True
        population = mean, var, batches, skipped
        y, statistics = launch.forward(x, residual, weight, bias, None, None, *population, 0.1, *options)
        launch.forward(x, residual, weight, bias, None, None, *population, None, *options)
        launch.forward(x, residual, None, None, None, None, None, None, None, None, None, *options)
        launch.forward(x, residual, weight, bias, mean, var, None, None, None, None, None, *options)
        extra = (y if self.activation in BY_OUTPUT else residual) if self.residual and self.activation else None
        given = grad, x, extra, weight, bias, statistics, 1e-5, self.activation
        launch.backward(*given, False, [True, self.residual, True, True])
        launch.backward(*given, True, [True, False, False, False])
        launch.backward(*given, False, [False, False, True, True])
        # γ without β, parameters and running statistics of the input's dtype, and a gradient of float32
        launch.forward(x, residual, weight, None, None, None, *population, 0.1, *options)
        own = tuple(None if t is None else t.to(self.dtype) for t in (weight, bias))
        moving = mean.to(self.dtype), var.to(self.dtype), batches, skipped
        launch.forward(x, residual, own[0], own[1], None, None, *moving, 0.1, *options)
        rest = statistics, 1e-5, self.activation, False
        launch.backward(grad, x, extra, weight, None, *rest, [True, self.residual, True, False])
        launch.backward(self.tensor(torch.float32), x, extra, own[0], own[1], *rest, [True, self.residual, True, True])


def every_call() -> Iterator[Call]:
    """Calls that need every specialisation of every tile, for all dtypes and options."""
    layouts = [(shape, False) for shape in PLANES] + [(shape, True) for shape in ROWS]
    for (shape, rows), dtype, residual in itertools.product(layouts, DTYPES, (False, True)):
        for activation in (None, *ACTIVATIONS):
            yield Call(shape, rows, dtype, activation, residual)
        for mask, virtual in (("positions", 0), ("values", 0), (None, max(1, shape[0] // 2))):
            yield Call(shape, rows, dtype, "silu", residual, mask, virtual)


def heaviest() -> Iterator[Call]:
    """For each tile the calls that need the most registers: gelu, a residual, and without or with a mask of values."""
    layouts = [(shape, False) for shape in PLANES] + [(shape, True) for shape in ROWS]
    for (shape, rows), dtype in itertools.product(layouts, (torch.float32, torch.bfloat16)):
        yield Call(shape, rows, dtype, "gelu", True)
        yield Call(shape, rows, dtype, "gelu", True, "values", max(1, shape[0] // 2))


def sample() -> Iterator[Call]:
    """Two calls with every kernel that reads a batch, one of planes and one of rows."""
    yield Call((32, 256, 14, 14), False, torch.float32, "gelu", True)
    yield Call((256, 1024), True, torch.bfloat16, "gelu", True)


def random_calls(seed: int) -> Iterator[Call]:
    """Endless random calls: tiles of any shape, and tensors of any dtypes that go together."""
    draw = random.Random(seed)
    while True:
        size, rank = int(2 ** draw.uniform(4, 24)), draw.randint(0, 2)
        channels, samples = int(2 ** draw.uniform(0, 11)), int(2 ** draw.uniform(1, 9))
        side = max(1, round((size / channels / samples) ** (1 / rank))) if rank else 1
        mask, virtual = draw.choice((None, None, "positions", "values")), draw.choice((0, 0, -(-samples // 3)))
        yield Call(
            (samples, channels, *[side] * rank), draw.random() < 0.5, draw.choice(DTYPES),
            draw.choice((None, *ACTIVATIONS)), draw.random() < 0.5, mask, virtual,
            (draw.random() < 0.5, draw.random() < 0.5), draw.choice((*DTYPES, torch.float64)),
            draw.choice((None, *DTYPES)),
        )  # fmt: skip


def populations() -> list[Launch]:
    """The launches that update running statistics after torch's operator: with and without momentum, by both rules."""
    new_mean, new_var = torch.empty(2, 1000, device="meta").unbind()
    with launch.recording() as found:
        for dtype, momentum, skip in itertools.product(DTYPES, (0.1, None), (True, False)):
            mean, var = torch.empty(2, 1000, dtype=dtype, device="meta").unbind()
            batches, skipped = torch.empty(2, dtype=torch.int64, device="meta").unbind()
            launch.move_population(mean, var, batches, skipped, new_mean, new_var, momentum, skip)
    return found
