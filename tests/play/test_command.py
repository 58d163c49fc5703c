"""`batchnorm play` writes the page and opens it; without a page, one line names the remedy."""

import os
import subprocess
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchnorm import play
from tests.support.commands import call

SHELL = '<!doctype html>\n<html lang="en">\n<meta name="docs" content="">'


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Addresses that a browser was asked to open; the page is a stand-in, without sources."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: found.append(address) or True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "built.html").write_text(SHELL, encoding="utf-8")
    monkeypatch.setattr(play, "BUILT", tmp_path / "built.html")
    monkeypatch.setattr(play, "SOURCES", tmp_path / "none")
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return call(monkeypatch, "play", *arguments)


def test_it_writes_the_page_and_opens_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, opened: list[str]
) -> None:
    assert run(monkeypatch) == 0
    written = tmp_path / "play" / "index.html"
    assert written.read_text(encoding="utf-8") == SHELL
    assert opened == [written.as_uri()]
    assert capsys.readouterr().out == f"{Path('play') / 'index.html'}\n"


def test_language_folder_and_no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[str]) -> None:
    assert run(monkeypatch, "--lang", "ko", "--output", "a/b c", "--no-open") == 0
    assert '<html lang="ko">' in (tmp_path / "a" / "b c" / "index.html").read_text(encoding="utf-8")
    assert opened == []


def test_no_browser_to_be_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert run(monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.strip().endswith("index.html")
    assert err == "batchnorm: no browser was found here: open the page yourself\n"


def test_an_unknown_language_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    assert run(monkeypatch, "--lang", "xx") == 2
    assert "'xx' is not one of 'en', 'ko'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="lang='xx': expected one of en, ko"):
        play.write_page(Path("x"), "xx")


def test_a_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    Path("file").write_text("")
    assert run(monkeypatch, "--output", "file") == 2
    assert capsys.readouterr().err == "batchnorm: cannot write to file: File exists\n"


def test_the_address_of_the_docs_is_escaped(tmp_path: Path, opened: list[str]) -> None:
    path = play.write_page(tmp_path / "x", docs='../"><script>')
    assert '<meta name="docs" content="../&quot;&gt;&lt;script&gt;">' in path.read_text(encoding="utf-8")


def test_an_installation_without_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    play.BUILT.unlink()
    assert run(monkeypatch) == 2
    assert (
        "this installation has no page to play with: it was made from a checkout before `make play`"
        in capsys.readouterr().err
    )
    assert opened == []


def test_a_clone_without_npm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    play.BUILT.unlink()
    play.SOURCES.mkdir()
    monkeypatch.setenv("PATH", "")
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "batchnorm: play: the page is built with npm, which is not here: install Node.js 20 or newer and try again"
    )


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[str]) -> Callable[[str], None]:
    """A clone with an npm of its own: `clone(script)` writes it."""
    play.BUILT.unlink()
    play.SOURCES.mkdir()
    (play.SOURCES / "main.js").write_text("")
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def write(script: str) -> None:
        for name in ("npm", "node"):
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)

    return write


def test_a_clone_builds_the_page_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clone: Any, opened: list[str]
) -> None:
    clone(f'echo "$0 $*" >> calls\n[ "$1" = ci ] || echo \'<html lang="en">\' > {play.BUILT}')
    assert run(monkeypatch) == 0
    assert "building the page, with npm" in capsys.readouterr().err
    calls = (play.SOURCES / "calls").read_text().splitlines()
    assert [line.split("/")[-1].split()[:2] for line in calls] == [["npm", "ci"], ["node", "build.mjs"]]
    assert len(opened) == 1


def test_an_old_page_is_built_again_and_a_new_one_is_not(monkeypatch: pytest.MonkeyPatch, clone: Any) -> None:
    clone(f"echo new > {play.BUILT}")
    play.BUILT.write_text("old")
    os.utime(play.BUILT, (1, 1))
    assert run(monkeypatch, "--no-open") == 0
    assert Path("play/index.html").read_text() == "new\n"
    clone("exit 1")
    assert run(monkeypatch, "--no-open") == 0


def test_an_old_page_is_shown_where_no_new_one_can_be_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clone: Any
) -> None:
    clone("echo no network >&2; exit 1")
    play.BUILT.write_text("old")
    os.utime(play.BUILT, (1, 1))
    assert run(monkeypatch, "--no-open") == 0
    assert Path("play/index.html").read_text() == "old"
    assert "the page is older than its sources: `npm ci` in " in capsys.readouterr().err


def test_a_build_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clone: Any
) -> None:
    clone("echo 'npm error code ENOTFOUND' >&2; echo more >&2; exit 1")
    assert run(monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("batchnorm: play: `npm ci` in ")
    assert last.endswith(" failed: npm error code ENOTFOUND")


def test_the_page_stays_out_of_git() -> None:
    root = Path(play.__file__).parents[3]
    if not (root / ".git").exists():
        pytest.skip("not a clone")
    done = subprocess.run(
        ["git", "check-ignore", "src/batchnorm/play/page.html", "src/batchnorm/play/page/node_modules/uplot"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert len(done.stdout.splitlines()) == 2
