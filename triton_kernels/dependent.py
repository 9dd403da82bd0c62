"""Programmatic dependent launch: a kernel begins while the kernel before it ends. GPUs have it from the H100 on.

Every program of a kernel that is launched so calls `begin_dependent` before it reads or writes what other kernels of
the step write or read. What comes before, such as `prefetch` of weights, overlaps with the kernel before.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

VARIABLE = "FASTDECODE_DEPENDENT_LAUNCH"
"""0: kernels wait for each other as usual."""


@triton.jit
def begin_dependent(DEPENDENT: tl.constexpr):
    """Lets the next kernel begin, and waits until all kernels before have ended and what they wrote can be read."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch(pointers):
    """Brings the lines of memory at a tile of addresses into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


def _driver() -> int:
    """The newest CUDA that the driver knows: 12040 is 12.4."""
    version = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


@cache
def _has_it(device: torch.device) -> bool:
    major, _ = torch.cuda.get_device_capability(device)
    cuda = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
    # Older versions do not capture such launches in graphs.
    return major in (9, 10) and cuda >= (12, 4) and _driver() >= 12040


def launches_dependent(tensor: Tensor) -> bool:
    """Whether kernels are launched so on the tensor's device."""
    return tensor.is_cuda and os.environ.get(VARIABLE) != "0" and _has_it(tensor.device)
