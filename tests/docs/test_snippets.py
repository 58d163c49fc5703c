"""Every Python snippet in README and on the pages of the docs runs alone, as a reader would paste it."""

import linecache
import re
from pathlib import Path

import pytest
import torch

from tests.support.snippets import PAGES, ROOT, Snippet, snippets

ALL = [s for page in PAGES for s in snippets(page)]
RUN = [s for s in ALL if not s.includes and s.not_run is None]
# Why a snippet may be left out. A new reason is added here, so that it is read in a review.
REASONS = {
    "needs a GPU",
    "needs Lightning",  # tests/integrations/frameworks/test_lightning.py
    "needs Flower",
    "needs the networks of timm",  # tests/clients/test_zoo.py
    "needs torchao",  # tests/clients/test_quantization.py
    "torch warns that this API is deprecated",  # the same
}


def label(snippet: Snippet) -> str:
    return f"{snippet.page.name}-{snippet.line}"


@pytest.mark.parametrize("snippet", RUN, ids=label)
def test_a_snippet_runs_alone(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # files that a snippet writes
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    for what, code in (("set-up", snippet.setup), ("snippet", snippet.code)):
        file = f"<{what} of {label(snippet)}>"
        # the lines in a traceback, and what torch.fx and inspect read
        linecache.cache[file] = (len(code), None, code.splitlines(True), file)
        exec(compile(code, file, "exec"), names)


@pytest.mark.parametrize("snippet", [s for s in ALL if s.includes], ids=label)
def test_an_included_file_is_an_example_or_the_changelog(snippet: Snippet) -> None:
    """`make examples` runs the examples, so a block that includes one holds nothing else."""
    for name in snippet.includes:
        assert (ROOT / name).is_file(), name
        assert name.startswith("examples/"), f"{name} is not run by make examples"
    rest = re.sub(r'--8<-- ".*"', "", snippet.code)
    assert not rest.strip(), f"code beside an included file is not run: {rest}"


def test_snippets_that_do_not_run_say_why() -> None:
    left = {label(s): s.not_run for s in ALL if s.not_run is not None}
    assert set(left.values()) == REASONS, left
    assert len(left) == len(REASONS), f"too many snippets are not run: {left}"


def test_marks_and_set_up_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="Set-up"\na = 1\n```\n\n```python\nassert a\n```\n\n'
        "<!-- not run: needs a GPU -->\n```python\nb\n```\n\n- a list\n\n    ``` { .python }\n    c\n    ```\n"
        "\n```console\nmake\n```\n",
        encoding="utf-8",
    )
    first, second, third, fourth = snippets(page)
    assert (first.setup, first.not_run) == ("", None)
    assert (second.setup, second.code, second.line) == ("a = 1\n", "assert a\n", 5)
    assert (third.not_run, fourth.not_run, fourth.code) == ("needs a GPU", None, "c\n")
