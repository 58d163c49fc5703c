"""Commands that README and the docs name exist, with their options and files."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from batchnorm.cli import app
from tests.support.snippets import PAGES, ROOT

COMMAND = re.compile(r"(batchnorm|make|python) \S")


def commands() -> Iterator[tuple[str, str]]:
    """Page and command, of blocks of the console and of code within a line."""
    for page in PAGES:
        for block in MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8")):
            if block.type == "fence" and block.info in ("console", "sh"):
                lines = block.content.splitlines()
            else:
                lines = [token.content for token in block.children or [] if token.type == "code_inline"]
            yield from ((page.name, line) for line in lines if COMMAND.match(line))


ALL = sorted(set(commands()))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def unknown(line: str) -> list[str]:
    """The parts of a command that do not exist."""
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        return [word for word in words if "=" not in word and word not in TARGETS]
    if program == "python":
        if words[0] == "-m":
            path = ROOT / words[1].replace(".", "/")
            roots = path, ROOT / "src" / words[1].replace(".", "/")
            ours = any(p.with_suffix(".py").exists() or p.is_dir() for p in roots)
            return [] if ours or ("." not in words[1] and find_spec(words[1])) else [words[1]]
        return [] if (ROOT / words[0]).exists() else [words[0]]
    group = get_command(app)
    command = group if words[0].startswith("--") else group.commands.get(words[0])  # type: ignore[attr-defined]
    if command is None:
        return [words[0]]
    options = {
        "--help",
        *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)),
    }
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]


@pytest.mark.parametrize(("page", "line"), ALL)
def test_a_command_exists(page: str, line: str) -> None:
    assert not unknown(line), f"{page}: {line}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make study", []),
        ("make tea", ["tea"]),
        ("python examples/padding.py  # a comment", []),
        ("python examples/none.py", ["examples/none.py"]),
        ("python -m benchmarks.networks --write", []),
        ("python -m batchnorm.none", ["batchnorm.none"]),
        ("batchnorm study digits --quick", []),
        ("batchnorm study digits --quack", ["--quack"]),
        ("batchnorm cure", ["cure"]),
        ("batchnorm --version", []),
    ],
)
def test_what_does_not_exist_is_found(line: str, wrong: list[str]) -> None:
    assert unknown(line) == wrong
