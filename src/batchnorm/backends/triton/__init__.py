"""Kernels in Triton for CUDA, ROCm and XPU; on CPU tensors under `TRITON_INTERPRET=1`, to check them without a device.

They serve float32, float16 and bfloat16: the primitives, and the forward and backward pass of the plain case. The
reference serves other dtypes. Nothing here is loaded before a call on such a device needs it.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

DEVICES = ("cuda", "xpu")  # torch's name of ROCm devices is cuda too
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def installed() -> bool:
    """True if Triton can be imported; CUDA builds of torch bring it."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """True if Triton interprets its kernels, on tensors of any device, to check them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def reason_against(x: Tensor) -> str | None:
    """The reason why the kernels cannot serve `x`; None if they can."""
    if x.device.type not in DEVICES and not (interpreted() and x.device.type == "cpu"):
        return "it runs on CUDA, ROCm and XPU devices, and on CPU tensors under TRITON_INTERPRET=1"
    if not installed():
        return "the package triton is not installed; CUDA builds of torch bring it, or pip install 'batchnorm[triton]'"
    if x.dtype not in DTYPES:
        return "it computes in float32, for float32, float16 and bfloat16"
    return None
