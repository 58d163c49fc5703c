"""The environment in the terminal: one line per fact, and a table of the devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show(found: dict[str, Any], console: Console) -> None:
    """Prints the machine, the state of the native library with its reason, and the backends of each device."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for name, fact in _facts(found).items():
        console.print(Text.assemble((f"{name:<16}", "dim"), fact), soft_wrap=True)
    table = Table("device", "plain batch norm", "other options", "why", box=SIMPLE_HEAD, pad_edge=False)
    for device in found["devices"]:
        table.add_row(*(Text(device[column]) for column in ("device", "plain", "options", "why")))
    console.print(table)


def _facts(found: dict[str, Any]) -> dict[str, str]:
    native = found["native"]
    return {
        "batchnorm": found["batchnorm"],
        "Python": found["python"],
        "torch": found["torch"],
        "processor": f"{found['processor']}, {found['cores']} cores, {found['instructions']}",
        "threads": str(found["threads"]),
        "compiler": found["compiler"] or "none",
        "cache": found["cache"] or "no writable directory",
        "native kernels": native["state"] + (f": {native['reason']}" if native["reason"] else ""),
        **({"library": native["library"]} if native["state"] == "ready" else {}),
    }
