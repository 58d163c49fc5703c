"""The Python that a panel shows, run as a reader would run it."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import batchnorm as bn


def shown(tab: Any, panel: str) -> str:
    return tab.inner_text(f"#{panel} pre code")


def run(text: str, **names: Any) -> dict[str, Any]:
    """The variables after the lines have run; `names` are the variables before."""
    space = {"torch": torch, "nn": nn, "bn": bn, "DataLoader": DataLoader, **names}
    exec(text, space)
    return space


def call(tab: Any, expression: str, argument: Any = None) -> Any:
    """Call a JavaScript function of the argument, with the engine as `network`; typed arrays are returned as lists."""
    plain = "(v) => JSON.parse(JSON.stringify(v, (_, x) => ArrayBuffer.isView(x) ? Array.from(x, String) : x))"
    return numbers(
        tab.evaluate(
            f"(a) => {{ const {{ network }} = batchnormPlay; return ({plain})(({expression})(a)); }}", argument
        )
    )


def numbers(value: Any) -> Any:
    """Numbers from strings: JSON has no NaN, so the numbers of typed arrays are sent as strings."""
    if isinstance(value, dict):
        return {name: numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(part, str) for part in value):
            return [float(part) for part in value]
        return [numbers(part) for part in value]
    return value


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Assert that two results in float64 agree."""
    found, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (found, expected))
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=tolerance, atol=tolerance, equal_nan=True)
