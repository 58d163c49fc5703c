"""`python run.py FILE`: a program whose imports may import torchvision, as Lightning's metrics do."""

import runpy
import sys
from contextlib import suppress

from tests.support import zoo


def make_torchvision_importable() -> None:
    """Leave out what torchvision cannot register beside a torch that it was not built for."""
    with suppress(ImportError):  # it is not installed, and nobody asks for it
        zoo.package("torchvision")


if __name__ == "__main__":
    make_torchvision_importable()
    runpy.run_path(sys.argv[1], run_name="__main__")
