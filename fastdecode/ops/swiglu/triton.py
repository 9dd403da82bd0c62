"""`swiglu` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def swiglu_triton(gate_up: Tensor, parts: Any = None) -> Tensor:
    """``parts``: of the result, from `parts_for`; they are written too."""
    from fastdecode.triton_kernels.swiglu import launch_swiglu

    out: Tensor = launch_swiglu(gate_up, parts)
    return out
