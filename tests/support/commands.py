"""The command line in this process."""

import sys

import pytest

from batchnorm import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs `batchnorm` with the arguments; its exit status."""
    monkeypatch.setattr(sys, "argv", ["batchnorm", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code if isinstance(exited.value.code, int) else 0
