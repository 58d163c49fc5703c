"""The arguments of a batch norm, and their checks. Errors name what was expected, what was passed, and the remedy."""

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

from batchnorm.core.rules import Rules
from batchnorm.core.torch_internals import dispatch_mode_active, transformed, unwatched


class Call(NamedTuple):
    """The arguments of a batch norm."""

    input: Tensor
    residual: Tensor | None
    mask: Tensor | None
    lengths: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None  # running statistics
    var: Tensor | None
    by_batch: bool  # True: normalise by the batch; False: by the running statistics
    eps: float
    rules: Rules


def validate(call: Call, shared: bool) -> None:
    """Raise an error for a call that is not valid; with `shared`, one value is enough: other ranks may have more."""
    input, rules, eps = call.input, call.rules, call.eps
    if not isinstance(input, Tensor):
        raise TypeError(f"expected a tensor (N, C, *), got {type(input).__name__}; pass torch.as_tensor(input)")
    check_number("eps", eps)
    for what, given in (("residual", call.residual), ("mask", call.mask), ("lengths", call.lengths)):
        if given is not None and not isinstance(given, Tensor):
            raise TypeError(f"expected {what} to be a tensor, got {type(given).__name__}; pass torch.as_tensor({what})")
    for name, t in (
        ("the input", input),
        ("residual", call.residual),
        ("mask", call.mask),
        ("lengths", call.lengths),
        ("running_mean", call.mean),
        ("running_var", call.var),
        ("weight", call.weight),
        ("bias", call.bias),
    ):
        if t is not None:
            check_memory(name, t)
    if not input.is_floating_point():
        raise NotImplementedError(
            f"batch_norm needs a floating-point input, got {input.dtype}; convert it, for example with .float()"
        )
    if (call.mean is None) != (call.var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if eps < 0 or (call.by_batch and eps == 0):
        raise ValueError(f"eps must be {'positive in training' if call.by_batch else 'non-negative'}, got {eps}")
    channels = input.shape[1] if input.dim() > 1 else 0
    dtype, device = input.dtype, input.device
    for name, t in (
        ("running_mean", call.mean),
        ("running_var", call.var),
        ("weight", call.weight),
        ("bias", call.bias),
    ):
        if t is None:
            continue
        if t.numel() != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {t.numel()}: input of shape {tuple(input.shape)} has "
                f"{channels} channels (dimension 1)"
            )
        if t.dtype is not dtype and (t.dtype is not torch.float32 or dtype is torch.float64):
            _wrong_dtype(name, t.dtype, dtype)
        if t.device != device:
            _wrong_device(name, t, input)
    if input.dim() < 2 and input.numel() > 0:
        raise IndexError(f"batch_norm needs an input of shape (N, C, *), got {tuple(input.shape)}: it has no channels")
    if call.by_batch and input.dim() > 1 and rules.single == "error" and not shared:
        _check_single(input, rules)
    residual = call.residual
    if residual is not None and not residual.is_floating_point():
        boolean = residual.dtype is torch.bool
        cure = "pass a mask by its name, mask=" if boolean else f"convert it: residual.to({dtype})"
        raise TypeError(f"expected a floating-point residual, as the input, got {residual.dtype}; {cure}")
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(
            f"expected residual of shape {tuple(input.shape)}, as the input, got {tuple(residual.shape)}; pass a mask "
            "by its name, mask="
        )
    if residual is not None and residual.device != device:
        _wrong_device("residual", residual, input)
    if call.by_batch and call.mean is None and (rules.renorm is not None or rules.single == "population"):
        wants = "renorm" if rules.renorm is not None else "single='population'"
        raise ValueError(f"{wants} needs running statistics: pass them, or track_running_stats=True to the layer")
    if call.mask is not None or call.lengths is not None:
        _check_mask(input, call.mask, call.lengths)


def check_number(name: str, value: Any) -> None:
    """Raise a TypeError if a setting is not a number."""
    if value is None or isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def in_words(error: Exception, input: Any, label: str | None) -> Exception | None:
    """A clearer error for `error` from a call with `input`, or None to keep `error`.

    `label` is the layer's path in the model, or None.
    """
    if not isinstance(input, Tensor) and isinstance(error, AttributeError):
        error = TypeError(f"expected a tensor (N, C, *), got {type(input).__name__}; pass torch.as_tensor(input)")
        return error if label is None else TypeError(f"{label}: {error}")
    plain = type(error) in (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)  # made from one text
    return type(error)(f"{label}: {error}") if plain and label and label not in str(error) else None


def _wrong_dtype(name: str, got: torch.dtype, input: torch.dtype) -> NoReturn:
    also = "" if input is torch.float64 else " or torch.float32"
    raise RuntimeError(
        f"mixed dtype: expected {name} to have {input}, as the input,{also and f'{also},'} got {got}: "
        f"convert the input (input.to({got})) or the layer (layer.to({input}))"
    )


def check_memory(name: str, t: Tensor) -> None:
    """Refuse layouts other than dense, and tensors whose storage was freed: reading these would crash the process."""
    if t.is_nested:
        raise RuntimeError(f"{name} is a nested tensor; pad it with .to_padded_tensor(0.0), and pass lengths= or mask=")
    if t.layout is not torch.strided:
        raise RuntimeError(f"expected {name} to be a dense tensor, got {t.layout}; pass .to_dense()")
    if not unwatched() or type(t) not in (Tensor, Parameter) or t.device.type != "cpu" or t.numel() == 0:
        return
    last = t.storage_offset() + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
    held = t.untyped_storage().nbytes()
    if held < (last + 1) * t.element_size():
        raise RuntimeError(
            f"{name} of shape {tuple(t.shape)} needs {(last + 1) * t.element_size()} bytes, and its storage has been "
            f"resized to {held}; if a sharding library freed it, gather the parameters before the forward pass"
        )


def _wrong_device(name: str, t: Tensor, input: Tensor) -> NoReturn:
    """Raise an error for a tensor on another device, which kernels must not read."""
    raise RuntimeError(
        f"expected {name} on {input.device}, as the input, got {t.device}; move the layer or its inputs with .to()"
    )


def _check_single(input: Tensor, rules: Rules) -> None:
    samples = input.shape[0]
    if rules.virtual_batch_size and rules.virtual_batch_size < samples:
        samples = samples % rules.virtual_batch_size or rules.virtual_batch_size
        samples = min(samples, rules.virtual_batch_size)
    if samples * input.shape[2:].numel() == 1:
        which = "" if samples == input.shape[0] else f" and groups of {rules.virtual_batch_size} samples"
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}{which}: one value has "
            "no variance. Use a larger batch, drop the last incomplete one (drop_last=True), .eval(), or "
            "single='population'"
        )


def _check_mask(input: Tensor, mask: Tensor | None, lengths: Tensor | None) -> None:
    if mask is not None and lengths is not None:
        raise ValueError("pass mask or lengths, not both: lengths are a mask")
    if lengths is not None:
        if input.dim() != 3:
            raise ValueError(f"lengths need an input (N, C, L), got {tuple(input.shape)}; pass mask=")
        if lengths.shape != input.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(
                f"expected lengths of shape ({len(input)},) and an integer dtype, got {tuple(lengths.shape)}, "
                f"{lengths.dtype}"
            )
        if lengths.device != input.device:
            _wrong_device("lengths", lengths, input)
        _check_values("lengths", lengths, input.shape[2])
        return
    assert mask is not None
    if mask.device != input.device:
        _wrong_device("mask", mask, input)
    shape = (mask.shape[0], 1, *mask.shape[1:]) if mask.dim() == input.dim() - 1 else tuple(mask.shape)
    if len(shape) != input.dim() or any(m not in (1, n) for m, n in zip(shape, input.shape, strict=True)):
        whole = tuple(input.shape)
        raise ValueError(
            f"expected a mask that broadcasts over the input {whole}, or over {(whole[0], *whole[2:])} for all "
            f"channels alike, got {tuple(mask.shape)}"
        )
    if mask.is_complex() or mask.requires_grad:
        raise ValueError("a mask holds booleans or weights ≥ 0, without a gradient; got " + str(mask.dtype))
    if mask.dtype is not torch.bool:
        _check_values("a mask's weights", mask, torch.finfo(torch.float32).max)


def _check_values(name: str, t: Tensor, most: float) -> None:
    """Check that values are from 0 to `most`; on the CPU only, where this does not wait for a device."""
    traced = torch.compiler.is_compiling() or dispatch_mode_active() or transformed()
    if type(t) is not Tensor or t.device.type != "cpu" or traced or t.numel() == 0:
        return
    low, high = (value.item() for value in t.aminmax())
    if not 0 <= low <= high <= most:  # also False for NaN
        raise ValueError(f"expected {name} from 0 to {most:.6g}, got {low:.6g} to {high:.6g}")
