"""Batch normalization for PyTorch: exact, fast, composable, and it shows what it does to your network."""

from batchnorm.functional import batch_norm
from batchnorm.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from batchnorm.moments import Moments
from batchnorm.tools.convert import convert, register, revert

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Moments",
    "SyncBatchNorm",
    "batch_norm",
    "convert",
    "register",
    "revert",
]
