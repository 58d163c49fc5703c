"""Random calls of layers and operators with tensors of every kind, in this process, which must survive them all.

`python -m tests.support.random_calls FIRST COUNT` prints the number of each call before it begins, so that the parent
can tell which one ended the process. A call may succeed or raise an exception; any other end is a failure.
"""

import random
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import batchnorm as bn

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
SHAPES = [
    (), (3,), (0, 3), (1, 3), (4, 0), (5, 3), (2, 3, 4), (0, 3, 4), (4, 3, 0), (4, 3, 5, 5), (4, 3, 1, 1), (2, 8, 3, 3),
    (1, 3, 2, 2), (2, 3, 4, 2, 2), (2, 3, 1, 2, 1, 2), (33, 17), (3, 16, 9, 7), (64, 3),
]  # fmt: skip
ACTIVATIONS = [None, None, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "mish"]


class Subclass(Tensor):
    """A subclass with torch's default behaviour."""


class Wrapper(Tensor):
    """A subclass without memory of its own, around another tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [a.inner if isinstance(a, Wrapper) else a for a in args]
        return func(*inner, **(kwargs or {}))


def values(r: random.Random, shape: tuple[int, ...], dtype: torch.dtype, positive: bool = False) -> Tensor:
    x = torch.randn(shape) * 3 + 1
    if positive:
        return x.clamp(0, 2).to(dtype)
    if r.random() < 0.1:
        x = torch.where(torch.rand(shape) < 0.1, r.choice([float("nan"), float("inf"), 3e38]), x)
    return x.to(dtype)


def plain(r: random.Random, x: Tensor) -> Tensor:
    return x


def transposed(r: random.Random, x: Tensor) -> Tensor:
    if x.dim() < 2:
        return x
    i, j = r.sample(range(x.dim()), 2)
    return x.transpose(i, j).contiguous().transpose(i, j)


def sliced(r: random.Random, x: Tensor) -> Tensor:
    if x.dim() == 0:
        return x
    return torch.cat([x, x], dim=r.randrange(x.dim()))[tuple(slice(0, n) for n in x.shape)]


def stepped(r: random.Random, x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1)[..., r.randrange(2)]


def expanded(r: random.Random, x: Tensor) -> Tensor:
    if x.dim() == 0 or 0 in x.shape:
        return x
    return (
        x.select(r.randrange(x.dim()), 0).unsqueeze(0).expand(x.shape)
        if len(set(x.shape)) == 1
        else x[:1].expand(x.shape)
    )


def channels_last(r: random.Random, x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


def misaligned(r: random.Random, x: Tensor) -> Tensor:
    """A view that starts one element, or for views of bytes one byte, behind an address that is aligned."""
    flat = torch.empty(x.numel() + 3, dtype=x.dtype)
    view = flat[r.choice([1, 2, 3]) :][: x.numel()].view(x.shape)
    return view.copy_(x)


def without_storage(r: random.Random, x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(r.choice([0, x.untyped_storage().nbytes() // 2]))
    return x


def fake(r: random.Random, x: Tensor) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)


def under_inference(r: random.Random, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def quantized(r: random.Random, x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float().nan_to_num(), 0.1, 10, torch.quint8)


def nested(r: random.Random, x: Tensor) -> Tensor:
    layout = r.choice([torch.jagged, torch.strided])
    return torch.nested.nested_tensor([x, x] if x.dim() else [x.reshape(1)], layout=layout)


Kind = Callable[[random.Random, Tensor], Tensor]
KINDS: list[Kind] = [
    *[plain] * 8, transposed, sliced, stepped, expanded, channels_last, channels_last, misaligned, under_inference,
    fake, quantized, nested,
    lambda r, x: x.to("meta"),
    lambda r, x: x.as_subclass(Subclass),
    lambda r, x: Wrapper(x),
    lambda r, x: nn.Parameter(x),
    lambda r, x: nn.Parameter(x.as_subclass(Subclass)),
    lambda r, x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    lambda r, x: x.to_sparse(),
    lambda r, x: x.to_sparse_csr(),
    lambda r, x: x.to_mkldnn(),
    lambda r, x: torch._neg_view(x),
    lambda r, x: torch.view_as_real(torch.complex(x, x).conj())[..., 1],
    lambda r, x: x.requires_grad_().clone(),
    lambda r, x: torch._to_functional_tensor(x),
    lambda r, x: x.share_memory_(),
]  # fmt: skip


LAYERS_KINDS = [*KINDS, without_storage, without_storage]  # torch's own operations read past the end of those


def tensor(
    r: random.Random,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    calm: float = 0.8,
    positive: bool = False,
    kinds: Sequence[Kind] = KINDS,
) -> Tensor:
    """A tensor that with probability `calm` is a usual one, of the shape and dtype wanted."""
    if r.random() < calm:
        return values(r, shape, dtype, positive)
    if r.random() < 0.1:
        shape = r.choice(SHAPES)
    if r.random() < 0.1:
        dtype = r.choice(DTYPES)
    try:
        return r.choice(kinds)(r, values(r, shape, dtype, positive))
    except Exception:
        return values(r, shape, dtype, positive)


def perhaps(r: random.Random, share: float, make: Callable[[], Any]) -> Any:
    return make() if r.random() < share else None


def layer_call(r: random.Random) -> None:
    """A layer of random options and buffers, called and differentiated."""
    shape, dtype = r.choice(SHAPES), r.choice(DTYPES[:4] * 4 + DTYPES)
    channels = shape[1] if len(shape) > 1 else 3
    layer = bn.BatchNorm(
        channels, momentum=r.choice([0.1, None, 1]), affine=r.random() < 0.8, track_running_stats=r.random() < 0.8,
        activation=r.choice(ACTIVATIONS[:-1]), virtual_batch_size=r.choice([None, None, None, 1, 2, 3]),
        renorm=r.choice([None, None, None, bn.Renorm(2, 3)]), single=r.choice(["error", "population"]),
        nonfinite=r.choice(["skip", "raise", "propagate"]),
        dtype=r.choice([None, None, dtype if dtype.is_floating_point else None]),
    )  # fmt: skip
    for name, held in (*layer._parameters.items(), *layer._buffers.items()):
        if held is not None and r.random() < 0.08:
            kind = tensor(r, tuple(held.shape), held.dtype, calm=0.0, kinds=LAYERS_KINDS)
            if name in layer._parameters:
                layer._parameters[name] = kind  # bypasses the check of the type
            else:
                layer._buffers[name] = kind
    if r.random() < 0.1:
        layer.freeze(affine=r.random() < 0.5)
    layer.train(r.random() < 0.75)
    x = tensor(r, shape, dtype, calm=0.5, kinds=LAYERS_KINDS)
    if r.random() < 0.6 and x.is_leaf and x.dtype.is_floating_point:
        x.requires_grad_()
    residual = perhaps(r, 0.3, lambda: tensor(r, shape, dtype, kinds=LAYERS_KINDS))
    mask = perhaps(r, 0.2, lambda: tensor(r, shape, r.choice([torch.bool, torch.float32]), 0.8, True, LAYERS_KINDS))
    for _ in range(2):
        y = layer(x, residual, mask=mask)
        if y.requires_grad:
            y.backward(tensor(r, tuple(y.shape), y.dtype), retain_graph=True)
            if x.grad is not None and r.random() < 0.3:
                (g,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
                g.sum().backward()


def operator_call(r: random.Random) -> None:
    """An operator with tensors of shapes and kinds that no code has checked before."""
    shape, dtype = r.choice(SHAPES), r.choice(DTYPES[:4])
    channels = shape[1] if len(shape) > 1 else 3
    ops = torch.ops.batchnorm
    size, groups = r.choice([0, 0, 1, 2, 3, 100, -1]), 1
    activation = r.choice(ACTIVATIONS)
    if size > 0 and shape:
        groups = -(-shape[0] // size)
    x = tensor(r, shape, dtype)
    like = lambda: tensor(r, shape, dtype, calm=0.7)  # noqa: E731
    row = lambda d=torch.float32: tensor(r, (channels,), d, calm=0.8)  # noqa: E731
    table = lambda: tensor(r, (r.choice([groups, groups, 1, 5]), channels), torch.float64, calm=0.8)  # noqa: E731
    mask = perhaps(r, 0.3, lambda: tensor(r, r.choice([shape, (1,) * len(shape)]), torch.float32, positive=True))
    residual = perhaps(r, 0.3, like)
    name = r.choice(["forward", "backward", "moments", "normalize", "backward_reduce", "backward_apply", "anchor"])
    if name == "forward":
        given = r.random() < 0.3
        ops.forward(
            x, residual, perhaps(r, 0.7, row), perhaps(r, 0.7, row), perhaps(r, 0.9 * given, row),
            perhaps(r, 0.9 * given, row), perhaps(r, 0.7, row), perhaps(r, 0.7, row),
            perhaps(r, 0.5, lambda: tensor(r, (), torch.int64)), perhaps(r, 0.3, lambda: tensor(r, (), torch.int64)),
            r.choice([0.1, None]), 1e-5, activation, r.random() < 0.5,
        )  # fmt: skip
    elif name == "backward":
        statistics = tensor(r, (r.choice([3, 3, 3, 2]), channels), torch.float64, calm=0.8)
        ops.backward(
            like(), x, residual, perhaps(r, 0.7, row), perhaps(r, 0.7, row), statistics, 1e-5, activation,
            r.random() < 0.3, [r.random() < 0.7 for _ in range(4)],
        )  # fmt: skip
    elif name == "anchor":
        ops.anchor(row(), row(), 1e-5)
    elif name == "moments":
        ops.moments(x, size, mask)
    elif name == "normalize":
        ops.normalize(x, table(), table(), table(), residual, activation, size, mask)
    elif name == "backward_reduce":
        ops.backward_reduce(like(), x, table(), table(), table(), residual, activation, size, mask)
    else:
        ops.backward_apply(
            like(), x, table(), table(), table(), table(), table(), table(), residual, activation, size, mask
        )


def one(seed: int) -> str:
    """Make the call of this number; returns its result in words."""
    torch.manual_seed(seed)
    r = random.Random(seed)
    try:
        (operator_call if r.random() < 0.4 else layer_call)(r)
    except Exception as error:
        return type(error).__name__
    return "succeeded"


def main(first: int, count: int) -> None:
    warnings.simplefilter("ignore")
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        print(one(seed), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
