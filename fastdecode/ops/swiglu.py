"""`swiglu`: what lies between the linear layers of a gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import check_float_tensor, choose_step_backend
from fastdecode.ops.step_triton import swiglu_triton


def swiglu(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) · up: (rows, inner) float32; no gradients.

        gate_up  (rows, 2 · inner) float32: a row's gate, then its up
        backend  "reference" | "cpu" | "triton"; None picks by device

    Raises ValueError naming the argument.
    """
    if is_traced(gate_up):
        traced: Tensor = torch.ops.fastdecode.swiglu(gate_up, backend=backend)
        return traced
    gate_up = check_float_tensor("gate_up", gate_up, "rows, 2 * inner")
    rows, width = gate_up.shape
    if width % 2:
        raise ValueError(f"gate_up.shape = {tuple(gate_up.shape)}: must be (rows, 2 * inner)")
    backend = choose_step_backend(backend, gate_up.device)
    record_backend(backend)
    if backend == "reference":
        return swiglu_reference(gate_up)
    if backend == "triton":
        return swiglu_triton(gate_up)
    out = torch.empty(rows, width // 2, dtype=torch.float32, device="cpu")
    core().swiglu(gate_up.data_ptr(), rows, width // 2, out.data_ptr(), torch.get_num_threads())
    return out


@torch.no_grad()
def swiglu_reference(gate_up: Tensor) -> Tensor:
    """out = gate / (1 + e^(−gate)) · up, in float32."""
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
