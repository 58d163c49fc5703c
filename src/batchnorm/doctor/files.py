"""Reads checkpoints of unknown origin as numbers; nothing in them is executed."""

from __future__ import annotations

import importlib
import itertools
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .states import LayerState, layer_state, of_state_dict, printable

LIMIT = 8 * 2**30  # bytes; larger files are refused before they are opened
MAX_MESSAGE = 300  # characters; a parser may quote much of a file that it cannot read
MAX_DEPTH, MAX_ENTRIES = 4, 1000  # containers inside one another, and entries of each that are searched
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the state dict


class BadFileError(ValueError):
    """Raised for a file or model that cannot be diagnosed; the message is one line."""


def read(path: str | Path) -> list[LayerState]:
    """Reads the batch-norm states in a safetensors, ONNX or torch file; raises BadFileError if that fails."""
    path = Path(path)
    kinds: dict[str, Callable[[Path], list[LayerState]]] = {".safetensors": _safetensors, ".onnx": _onnx}
    return _or_bad_file(path.name, lambda: kinds.get(path.suffix, _torch)(_checked(path)))


def build(target: str, checkpoint: str | Path | None = None) -> nn.Module:
    """Makes the model of `module:factory` and loads a checkpoint into it; raises BadFileError if that fails."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's network lies in the working directory
    module, _, factory = target.partition(":")
    model = _or_bad_file(target, lambda: getattr(importlib.import_module(module), factory)())
    if not isinstance(model, nn.Module):
        raise BadFileError(f"{target} gave {type(model).__name__}, expected a torch.nn.Module")
    if checkpoint is not None:
        _or_bad_file(Path(checkpoint).name, lambda: model.load_state_dict(_tensors(_checked(Path(checkpoint)))))
    return model


def _or_bad_file(name: str, read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the parsers do not matter to the diagnosis
            return read()
    except Exception as error:  # a parser may raise anything on malicious bytes; the caller gets one line
        reason = printable(" ".join(str(error).split()))[:MAX_MESSAGE] or type(error).__name__
        raise BadFileError(f"cannot read {printable(name)!r}: {reason}") from error


def _checked(path: Path) -> Path:
    """The path, if the file exists and is not too large, also after unpacking; raises ValueError if not."""
    if path.is_dir():
        raise ValueError("it is a folder; expected a file (.pt, .safetensors or .onnx)")
    if not path.is_file():
        raise ValueError("there is no such file")
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(record.file_size for record in archive.infolist()))
    if size > LIMIT:
        raise ValueError(f"larger than {LIMIT / 2**30:g} GiB")
    return path


def _torch(path: Path) -> list[LayerState]:
    """The layers of every state dict in the file; with several, each name begins with the keys of its state dict."""
    found = dict(_state_dicts(_load(path), ""))
    return [
        layer if len(found) == 1 else replace(layer, name=f"{printable(key_path)}/{layer.name}", network=key_path)
        for key_path, state in found.items()
        for layer in of_state_dict(state)
    ]


def _state_dicts(value: Any, key_path: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields (key path, tensors) of each mapping with running statistics, such as `model` and `ema` of one script."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if any(key.endswith("running_mean") for key in tensors):
            yield key_path, tensors
    many = isinstance(value, list | tuple)
    nested = value.items() if isinstance(value, Mapping) else enumerate(value) if many else ()
    for key, inner in itertools.islice(nested, MAX_ENTRIES):
        if isinstance(inner, Mapping | list | tuple):
            yield from _state_dicts(inner, f"{key_path}/{key}".lstrip("/"), depth + 1)


def _load(path: Path) -> Any:
    """The content of a file of torch.save, read without executing anything."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # the unpickler raises errors of many kinds on bytes that are no pickle
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text or "GLOBAL" in text:
            raise ValueError(
                "it holds pickled objects (a whole module?), and loading those can run any code: "
                "torch.save(model.state_dict(), path) saves the numbers alone, which can be read safely"
            ) from error
        if path.suffix in TORCH_SUFFIXES:
            raise ValueError("it is damaged, incomplete, or not a file of torch.save") from error
        raise ValueError(
            "it is none of the files that can be read: a state dict of torch.save (.pt), .safetensors or .onnx"
        ) from error


def _safetensors(path: Path) -> list[LayerState]:
    """The layers of a safetensors file; only the tensors of batch norms are read."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        prefixes = tuple(k.removesuffix("running_mean") for k in keys if k.endswith("running_mean"))
        own = [k for k in keys if k.rpartition(".")[0] in {p.rstrip(".") for p in prefixes}]
        return of_state_dict({k: file.get_tensor(k) for k in own})


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = _load(path)
    if isinstance(state, Mapping):
        state = next((state[key] for key in NESTED if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping):
        raise ValueError(f"expected a state dict, got {type(state).__name__}")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _onnx(path: Path) -> list[LayerState]:
    """The BatchNormalization nodes of an ONNX file, whose tensors must be stored in the file itself."""
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX files need onnx: pip install onnx") from None
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            own = {key: _array(stored, name) for key, name in zip(ONNX_INPUTS, node.input[1:5], strict=True)}
            settings = {a.name: float(f"{a.f:.6g}") for a in node.attribute}  # stored as float32
            name = printable(node.input[3].removesuffix("running_mean").rstrip(".")) or "(root)"
            momentum = 1 - settings.get("momentum", 0.9)  # ONNX gives the share of the old value
            layers.append(layer_state(name, own, settings.get("epsilon", 1e-5), momentum))
    return layers


ONNX_INPUTS = ("weight", "bias", "running_mean", "running_var")


def _array(stored: Mapping[str, Any], name: str) -> Tensor:
    import onnx

    if name not in stored:
        raise ValueError(f"{name!r} is computed, not stored")
    if stored[name].data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"{name!r} lies in another file: save the model in one")
    return torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())
