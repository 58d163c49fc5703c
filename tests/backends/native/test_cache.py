"""Directories that cannot be written or trusted, file systems without locks, folders that killed builds leave."""

import errno
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from tests.support.builds import Place, finish

# The superuser may write where the mode forbids it, unless it gives up the capability.
PREFIX = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def private_directory(place: Place) -> Path:
    return place.temporary / f"batchnorm-{os.geteuid()}"


@pytest.fixture
def read_only(place: Place) -> Place:
    """A home that its processes cannot write, if they start with PREFIX."""
    if PREFIX and not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv")
    place.home.chmod(0o555)
    return place


def test_a_read_only_home(read_only: Place) -> None:
    path, answer, notices = finish(read_only.start(prefix=PREFIX))
    assert path.parent == private_directory(read_only)
    assert answer == 42
    assert f"in {path.parent} until that is emptied" in notices
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not list(read_only.home.iterdir())
    assert finish(read_only.start(prefix=PREFIX)) == (path, 42, ""), "the second start finds it"


def test_a_library_in_a_read_only_home_is_used(place: Place) -> None:
    path, _ = place.build()
    for directory in (place.cache, place.home):
        directory.chmod(0o555)
    assert finish(place.start(prefix=PREFIX)) == (path, 42, "")


def test_no_directory_can_be_written(read_only: Place) -> None:
    private_directory(read_only).mkdir(mode=0o500)
    message = read_only.refused(prefix=PREFIX)
    assert message.count("Permission denied") == 2
    assert "set BATCHNORM_CACHE" in message


@pytest.mark.parametrize("name", ["BATCHNORM_CACHE", "XDG_CACHE_HOME"])
def test_a_chosen_directory(place: Place, name: str) -> None:
    path, _ = place.build(**{name: str(place.folder / "chosen")})
    assert path.parent == place.folder / "chosen" / ("batchnorm" if name == "XDG_CACHE_HOME" else "")
    assert not list(place.home.iterdir())


def test_a_cache_below_a_file(place: Place) -> None:
    (place.folder / "file").touch()
    path, notices = place.build(BATCHNORM_CACHE=str(place.folder / "file" / "cache"))
    assert path.parent == private_directory(place)
    assert "until that is emptied" in notices


@pytest.mark.parametrize("trap", ["link", "open to all", "another owner", "file"])
def test_a_temporary_directory_that_is_not_this_users_alone(place: Place, trap: str) -> None:
    """Nothing is built there, and a library that lies there is not loaded."""
    (place.folder / "file").touch()
    unwritable = {"BATCHNORM_CACHE": str(place.folder / "file" / "cache")}
    path, _ = place.build(**unwritable)  # a good library, so that only the directory is at fault
    directory = path.parent
    if trap == "link":
        directory.rename(place.folder / "theirs")
        directory.symlink_to(place.folder / "theirs")
    elif trap == "open to all":
        directory.chmod(0o777)
    elif trap == "file":
        shutil.rmtree(directory)
        directory.touch()
    elif os.geteuid() == 0:
        os.chown(directory, 65534, 65534)
    else:
        pytest.skip("only root can give a directory away")
    message = place.refused(**unwritable)
    assert str(directory) in message
    assert "set BATCHNORM_CACHE" in message
    assert len(place.compiled()) == 2


def test_a_file_system_without_locks(native: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert native.library(place.sources).is_file()


def test_a_lock_that_is_never_released(native: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that was forked during a build holds the lock after the builder has died."""
    place.cache.mkdir(parents=True)
    lock = native.describe(place.sources).path.with_suffix(".lock")
    monkeypatch.setattr(native.cache, "PATIENCE", 0.3)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start = time.monotonic()
        assert native.library(place.sources).is_file()
        assert 0.3 < time.monotonic() - start < 30


def test_folders_of_dead_builds_are_removed_and_of_living_ones_not(native: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = cache / "a.so"
    names = {"a.so-dead.building": 0, "b.so-alive.building": 60, "b.so-dead.building": 4000}
    for name, age in names.items():
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    with native.cache.working_folder(target, held=True) as folder:
        assert sorted(path.name for path in cache.iterdir()) == sorted(["b.so-alive.building", folder.name])
    (cache / "a.so-other.building").mkdir()
    with native.cache.working_folder(target, held=False):
        assert (cache / "a.so-other.building").exists(), "without the lock, another build may be at work there"


def test_describe(native: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.describe(place.sources)
    assert (before.built, before.reason, before.compiler) == (False, None, str(place.compiler))
    assert not place.log.exists(), "no compiler runs to describe it"
    path = native.library(place.sources)
    after = native.describe(place.sources)
    assert (after.built, after.path, after.digest) == (True, path, before.digest)
    assert before.path == path
    monkeypatch.setenv("CXX", "/nonexistent")
    assert native.describe(place.sources) == native.Status(True, path, after.digest, None, None)
    path.unlink()
    assert "CXX=/nonexistent" in native.describe(place.sources).reason
    monkeypatch.setenv("BATCHNORM_NATIVE", "0")
    assert "BATCHNORM_NATIVE=0" in native.describe(place.sources).reason
