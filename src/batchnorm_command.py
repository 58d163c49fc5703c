"""The `batchnorm` command. It stands outside the package, whose import takes a second or two: Ctrl-C may come then."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Runs the command line. Ctrl-C ends it without a traceback, while modules are imported too."""
    try:
        from batchnorm.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
