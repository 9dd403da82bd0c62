"""`swiglu` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from torch import Tensor


def swiglu_triton(gate_up: Tensor) -> Tensor:
    from fastdecode.triton_kernels.swiglu import launch_swiglu

    out: Tensor = launch_swiglu(gate_up)
    return out
