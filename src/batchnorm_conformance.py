"""The options of the conformance suite, for pytest: ``pytest --pyargs batchnorm.conformance --impl package:Class``.

pytest loads this module at every start, so it stands outside of the package, which imports torch; and it adds nothing
to runs of other tests.
"""

import sys
from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the options if the command names the suite."""
    if not any("batchnorm.conformance" in argument for argument in sys.argv):
        return
    group = parser.getgroup("batch norm conformance")
    group.addoption("--impl", default="torch.nn:BatchNorm2d", help="the class to test, as package:Class")
    group.addoption("--sync", default=None, help="a class that shares statistics between ranks, as package:Class")
