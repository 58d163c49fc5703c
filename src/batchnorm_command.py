"""The `batchnorm` command. It stands outside the package, whose import takes a second or two: Ctrl-C may come then."""

import sys
from types import TracebackType

INTERRUPTED = 130


def main() -> None:
    """Runs the command line. Ctrl-C ends it without a traceback, while modules are imported too."""
    try:
        from batchnorm.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def guard_import() -> None:
    """The same for `python -m batchnorm`: Python imports the package, and torch with it, before `__main__` runs.

    Python sets sys.argv[0] to "-m" while it looks for the module, and to the module's path when it runs it.
    """
    if sys.argv[:1] == ["-m"] and {"batchnorm", "-mbatchnorm"} & set(sys.orig_argv):
        sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    main()
