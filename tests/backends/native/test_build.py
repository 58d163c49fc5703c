"""The shared library: one build for many processes, a new one for each change, errors in words."""

import os
import signal
import time

import pytest

from tests.support.builds import Place, alive, finish, until


def test_eight_processes_that_start_cold_build_once(place: Place) -> None:
    results = [finish(process) for process in [place.start() for _ in range(8)]]
    assert {answer for _, answer, _ in results} == {42}
    assert len({path for path, _, _ in results}) == 1
    assert sorted(name for _, name in place.compiled()) == ["kernels.cpp", "ops.cpp"]
    assert sum("compiling" in notices for _, _, notices in results) == 1
    assert sum(notices == "" for _, _, notices in results) == 7
    assert place.kept() == [results[0][0].name], "no lock, no working folder stays"


def test_a_second_start_runs_no_compiler(place: Place) -> None:
    first, notices = place.build()
    assert notices.startswith("batchnorm: compiling its CPU kernels for this machine, once")
    assert notices.endswith(" s\n")
    assert notices.count("\n") == 1
    runs = place.log.read_text()
    # Another compiler, or none at all, changes nothing about a library that is there.
    assert place.build(CXX="/nonexistent") == (first, "")
    assert place.log.read_text() == runs


def test_sources_are_compiled_at_the_same_time(place: Place) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one core")
    place.slow.touch()
    process = place.start()
    until(lambda: len(place.compiled()) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


@pytest.mark.parametrize("other", ["kernels.cpp", "value.h", "new.h", "cpuinfo", "torch", "CXXFLAGS"])
def test_a_change_makes_a_new_library(place: Place, other: str) -> None:
    """A change of a source, a header, the processor, torch or the flags; and back again without a build."""
    file = {"cpuinfo": place.cpuinfo, "torch": place.folder / "torch/__init__.py"}.get(other, place.sources / other)
    before = file.read_text() if file.exists() else ""
    file.touch()
    first, _ = place.build()
    changes = {"cpuinfo": ("sse", "sse avx"), "torch": ("2.99.0", "2.99.1")}
    file.write_text(before.replace(*changes[other]) if other in changes else before + "// changed\n")
    second, notices = place.build(**({"CXXFLAGS": "-DCHANGED"} if other == "CXXFLAGS" else {}))
    assert first != second
    assert "compiling" in notices
    file.write_text(before)
    assert place.build() == (first, "")


def test_what_changes_from_second_to_second_makes_no_new_library(place: Place) -> None:
    first, _ = place.build()
    place.cpuinfo.write_text(place.cpuinfo.read_text().replace("2000", "2001") + "flags\t: of another core\n")
    assert place.build() == (first, "")


def test_killed_in_the_middle_then_started_again(place: Place) -> None:
    place.slow.touch()
    builder = place.start()
    until(place.compiled)
    builder.kill()
    builder.communicate()
    assert all("TMPDIR=" in line and line.endswith(".building") for line in place.log.read_text().splitlines())
    try:
        assert any(name.endswith(".building") for name in place.kept()), "the kill came too late to test anything"
        place.slow.unlink()
        path, _ = place.build()
        assert place.kept() == [path.name]
    finally:
        end(place)


def test_a_waiting_process_takes_over_from_a_killed_one(place: Place) -> None:
    place.slow.touch()
    builder = place.start()
    until(place.compiled)
    waiting = place.start()
    time.sleep(0.5)
    assert waiting.poll() is None
    place.slow.unlink()
    builder.kill()
    try:
        assert finish(waiting)[1] == 42
        builder.communicate()
    finally:
        end(place)


def test_control_c_ends_the_compilers_and_leaves_nothing(place: Place) -> None:
    place.slow.touch()
    builder = place.start()
    until(place.compiled)
    builder.send_signal(signal.SIGINT)  # to this process only, as `kill` and notebooks do
    _, err = builder.communicate(timeout=30)
    assert builder.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    until(lambda: not any(alive(group) for group, _ in place.compiled()))  # a signal takes a moment
    assert not [name for name in place.kept() if not name.endswith(".lock")]
    place.slow.unlink()
    place.build()


def test_a_switched_off_backend(place: Place) -> None:
    place.build()
    assert "BATCHNORM_NATIVE=0" in place.refused(BATCHNORM_NATIVE="0")


def end(place: Place) -> None:
    """Ends the compilers that a killed build has left."""
    for group, _ in place.compiled():
        if alive(group):
            os.killpg(group, signal.SIGKILL)
