"""Batch normalization for PyTorch: exact, composable, and it shows what it does to your network."""

# ruff: noqa: E402 (Ctrl-C may come while torch is imported, so the guard comes first)

from batchnorm_command import guard_import

guard_import()

from batchnorm.backends import backend
from batchnorm.backends.native import empty_cache
from batchnorm.core.moments import Moments
from batchnorm.core.rules import Renorm
from batchnorm.doctor import diagnose, watch
from batchnorm.experiment import study
from batchnorm.functional import batch_norm
from batchnorm.integrations import torch_tools
from batchnorm.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from batchnorm.tools.adapt import adapt
from batchnorm.tools.calibrate import calibrate
from batchnorm.tools.conventions import from_flax, from_keras, parameter_groups
from batchnorm.tools.convert import convert, revert
from batchnorm.tools.fold import fold
from batchnorm.tools.merge import merge
from batchnorm.tools.registry import register
from batchnorm.tools.standardize import Standardize
from batchnorm.training.accumulate import accumulate
from batchnorm.training.big_batch import big_batch
from batchnorm.training.domain import domain
from batchnorm.training.freeze import freeze, unfreeze
from batchnorm.training.paused import paused
from batchnorm.training.recompute import recompute

torch_tools.inform()

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Moments",
    "Renorm",
    "Standardize",
    "SyncBatchNorm",
    "accumulate",
    "adapt",
    "backend",
    "batch_norm",
    "big_batch",
    "calibrate",
    "convert",
    "diagnose",
    "domain",
    "empty_cache",
    "fold",
    "freeze",
    "from_flax",
    "from_keras",
    "merge",
    "parameter_groups",
    "paused",
    "recompute",
    "register",
    "revert",
    "study",
    "unfreeze",
    "watch",
]


def __getattr__(name: str) -> str:
    """The version of the package, read only when it is asked for: that takes milliseconds."""
    if name == "__version__":
        from importlib.metadata import version

        return version("batchnorm")
    raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
