"""No compiler, a broken one, one that refuses flags, one that never ends."""

import os
import time
from types import ModuleType

import pytest

from tests.support.builds import Place, alive, until


def test_no_compiler_on_path(place: Place) -> None:
    message = place.refused(CXX="", PATH=str(place.sources))
    assert "no C++ compiler on PATH (g++, clang++, c++)" in message
    assert "apt install g++" in message
    assert "set CXX" in message
    assert not place.cache.exists()


def test_the_compiler_is_chosen_as_by_torch_compile(
    native: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.compiler.find() == [str(place.compiler)]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(place.folder))
    for name in ("c++", "clang++", "g++"):  # each goes before those that are there already
        (place.folder / name).symlink_to(place.compiler)
        assert native.compiler.find() == [str(place.folder / name)]


def test_a_chosen_compiler_that_is_not_there_is_not_replaced(place: Place) -> None:
    assert "CXX=/nonexistent/g++" in place.refused(CXX="/nonexistent/g++")


def test_a_compiler_that_is_no_program(place: Place) -> None:
    place.compiler.write_text("not a script")
    assert "cannot be run" in place.refused()


def test_a_compiler_with_arguments(place: Place) -> None:
    place.build(CXX=f"env CCACHE=1 {place.compiler}")
    assert len(place.compiled()) == 2


def test_an_error_shows_the_compilers_words(place: Place) -> None:
    (place.sources / "kernels.cpp").write_text(
        "int kernel() { return moon; }\n" + "int again() { return moon; }\n" * 100
    )
    message = place.refused()
    assert "(status 1)" in message
    assert "error:" in message
    assert "kernels.cpp:1:" in message, "the first error, which later ones have not pushed out"
    assert "set CXX" in message
    assert message.count("\n") < 20


def test_a_failure_is_not_repeated(native: ModuleType, place: Place) -> None:
    place.broken.touch()
    with pytest.raises(native.Unavailable, match="the moon is full") as first:
        native.library(place.sources)
    assert native.describe(place.sources).reason == str(first.value)
    runs = place.log.read_text()
    place.broken.unlink()
    next(place.cache.glob("*.failed")).unlink()
    with pytest.raises(native.Unavailable) as second:  # by memory, for this process
        native.library(place.sources)
    assert str(second.value) == str(first.value)
    assert place.log.read_text() == runs
    assert native.library(place.sources, retry=True).is_file()


def test_eight_processes_with_a_broken_compiler_run_it_once(place: Place) -> None:
    place.broken.touch()
    processes = [place.start() for _ in range(8)]
    assert all("the moon is full" in process.communicate(timeout=60)[1] for process in processes)
    assert len(place.compiled()) <= 2


@pytest.mark.parametrize("remedy", ["retry", "another compiler", "an update", "ten minutes"])
def test_after_a_failure(place: Place, remedy: str) -> None:
    place.broken.touch()
    place.refused()
    place.broken.unlink()
    message = place.refused()  # by the marker, for other processes
    assert "the moon is full" in message
    assert "`batchnorm warmup` tries again at once" in message
    (marker,) = place.cache.glob("*.failed")
    if remedy == "an update":
        os.utime(place.compiler, (0, 0))
    if remedy == "ten minutes":
        os.utime(marker, (time.time() - 601,) * 2)
    if remedy == "another compiler":
        (place.folder / "other").symlink_to(place.compiler)
    chosen = place.folder / "other" if remedy == "another compiler" else place.compiler
    path, _ = place.build(*["retry"][: remedy == "retry"], CXX=str(chosen))
    assert place.kept() == [path.name]


def test_a_compiler_that_never_ends(native: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.slow.touch()
    monkeypatch.setattr(native.compiler, "TIME_LIMIT", 1.0)
    with pytest.raises(native.Unavailable, match="did not end within"):
        native.library(place.sources)
    until(lambda: not any(alive(group) for group, _ in place.compiled()))  # a signal takes a moment


@pytest.mark.parametrize(
    ("refuses", "takes"), [("*-march=native*", "-mcpu=native"), ("*-march=native*|*-mcpu=native*", "")]
)
def test_a_compiler_that_refuses_the_processors_flag(place: Place, refuses: str, takes: str) -> None:
    place.use_compiler(refuses)
    place.build()
    lines = [line for line in place.log.read_text().splitlines() if " -c " in line]
    assert all(takes in line and "-march=native" not in line for line in lines)
    assert takes or not any("native" in word for line in lines for word in line.split() if word.startswith("-m"))


def test_our_flags_come_after_the_users(place: Place) -> None:
    place.build(CXXFLAGS="-O1 -march=x86-64" if os.uname().machine == "x86_64" else "-O1")
    line = next(line for line in place.log.read_text().splitlines() if " -c " in line)
    assert 0 < line.index("-O1") < line.index("-O3") < line.index("-march=native")
