"""Directories, locks and leftovers of the compiled library, which many processes share."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

WORKING = ".building"  # suffix of the folder that a build works in
PATIENCE = 1000.0  # seconds to wait for another process's build; longer than a build may take
STALE = 3600.0  # seconds after which no build can still use its folder
FAILURE_LASTS = 600.0  # seconds for which other processes trust a failure


def user_directory() -> Path | None:
    """`$BATCHNORM_CACHE`, else `batchnorm` in the user's cache folder; None without a home directory."""
    if chosen := os.environ.get("BATCHNORM_CACHE"):
        return Path(chosen).absolute()
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "batchnorm"
    try:
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "batchnorm"
    except RuntimeError:
        return None


def temporary_directory() -> Path:
    """The directory if the user's cache cannot be written: `batchnorm-UID` in the system's temporary folder."""
    return Path(tempfile.gettempdir()) / f"batchnorm-{os.geteuid()}"


def check_private(directory: Path) -> None:
    """Raises PermissionError unless `directory` is a real directory of this user that no other user can enter.

    The temporary folder is open to all, and code from there is loaded into this process. Another user could have made
    a directory of this name before, or a link to one.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("not a directory that this user alone can enter (owner, mode 0700, no link)")


def find(name: str) -> Path | None:
    """The library of this name in the user's cache or the temporary directory; None if it is in neither."""
    user = user_directory()
    if user and (user / name).is_file():
        return user / name
    with contextlib.suppress(OSError):
        temporary = temporary_directory()
        check_private(temporary)
        if (temporary / name).is_file():
            return temporary / name
    return None


def writable_directory() -> Path:
    """The user's cache, made if it is missing; the temporary directory if the cache cannot be written.

    Raises:
        OSError: neither can be used; the message gives the reason for each.
    """
    reasons = []
    for place in (user_directory, temporary_directory):
        directory = None
        try:
            directory = place()
            if directory is None:
                raise FileNotFoundError("this user has no home directory")
            private = place is temporary_directory
            directory.mkdir(mode=0o700 if private else 0o777, parents=not private, exist_ok=True)
            if private:
                check_private(directory)
            with tempfile.TemporaryFile(dir=directory):
                pass
            if os.statvfs(directory).f_flag & os.ST_NOEXEC:
                raise PermissionError("mounted noexec: no library can be loaded from there")
            return directory
        except OSError as error:
            reason = error.strerror or str(error)
            reasons.append(f"{directory}: {reason}" if directory else reason)
    raise OSError("; ".join(reasons))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock the file `path`; yields False if it cannot be locked.

    The kernel releases the lock of a process that is killed, so a dead process blocks no other. In two cases the build
    continues without the lock: the file system has no locks, or the lock is still held after PATIENCE seconds (a child
    that was forked during a build holds it until it ends). Two builds at once waste time but do no harm, because each
    library appears under its name complete.
    """
    with path.open("a") as file:
        held = _acquire(file)
        try:
            yield held
        finally:
            if held:
                _flock(file, unlock=True)


def _acquire(file: IO[str]) -> bool:
    # Polls instead of waiting in the kernel, so that Ctrl-C works in every thread and the wait is limited.
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _flock(file)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        except OSError:
            return False
        time.sleep(0.05)


def _flock(file: IO[str], unlock: bool = False) -> None:
    import fcntl  # not on Windows

    fcntl.flock(file, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def working_folder(target: Path, held: bool) -> Iterator[Path]:
    """A folder beside `target` to build in, removed at the end; folders that killed builds have left are removed too.

    `held`: this process holds the lock of `target`, so every other folder of that name belongs to a killed build.
    """
    for folder in target.parent.glob(f"*{WORKING}"):
        with contextlib.suppress(OSError):
            dead = held and folder.name.startswith(target.name)
            if dead or time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}-", suffix=WORKING, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(library: Path, target: Path) -> None:
    """Moves a finished library to its name: it appears complete or not at all, even after a power cut."""
    with library.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(library, target)


def failure(target: Path, compiler: str, since: float) -> str | None:
    """The message of a build of `target` that failed with this same compiler after `since`; None if there is none."""
    marker = target.with_suffix(".failed")
    try:
        if marker.stat().st_mtime < since:
            return None
        identity, _, message = marker.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return message if identity == compiler else None


def keep_failure(target: Path, compiler: str, message: str) -> None:
    """Records a failed build, so that the next processes do not each spend half a minute on the same failure."""
    with contextlib.suppress(OSError):
        target.with_suffix(".failed").write_text(f"{compiler}\n{message}", encoding="utf-8")
