"""`swiglu` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.swiglu.activations import ACTIVATIONS


def swiglu_triton(gate_up: Tensor, activation: str) -> Tensor:
    from fastdecode.triton_kernels.swiglu import launch_swiglu

    out: Tensor = launch_swiglu(gate_up, ACTIVATIONS[activation])
    return out
