"""Private names of torch: only in `core/torch_internals.py`, and each still there."""

import ast
import inspect
from pathlib import Path

import batchnorm
from batchnorm.core import torch_internals

SOURCES = Path(batchnorm.__file__).parent
KNOWN = Path(torch_internals.__file__)


def private_names(source: str) -> list[str]:
    """Dotted names that begin with `torch` or `forward_ad` and have a private part, and imports of such."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module:
            name = node.module
            found += [f"{name}.{a.name}" for a in node.names if name.startswith("torch") and a.name.startswith("_")]
        else:
            continue
        parts = name.split(".")
        if parts[:2] == ["torch", "ops"]:  # operators whose names begin with an underscore are as stable as others
            continue
        if parts[0] in ("torch", "forward_ad") and any(p.startswith("_") and not p.startswith("__") for p in parts):
            found.append(name)
    return found


# The base class of torch's layers, which every user of isinstance knows.
PUBLIC_IN_ALL_BUT_NAME = {"torch.nn.modules.batchnorm._BatchNorm"}


def test_no_other_module_uses_private_names_of_torch() -> None:
    found = {
        f"{path.relative_to(SOURCES)}: {name}"
        for path in SOURCES.rglob("*.py")
        if path != KNOWN
        for name in private_names(path.read_text())
        if name not in PUBLIC_IN_ALL_BUT_NAME
    }
    assert found == set()


def test_the_scan_finds_what_it_looks_for() -> None:
    assert private_names("import torch\ntorch._C._is_tracing()") == ["torch._C._is_tracing", "torch._C"]
    assert private_names("from torch._ops import OpOverload") == ["torch._ops"]
    assert private_names("torch.__version__") == []


def test_every_function_says_what_breaks_without_its_names() -> None:
    functions = [
        f
        for _, f in inspect.getmembers(torch_internals, inspect.isfunction)
        if f.__module__ == torch_internals.__name__
    ]
    assert functions
    for function in functions:
        assert "Without" in (function.__doc__ or ""), function.__name__
