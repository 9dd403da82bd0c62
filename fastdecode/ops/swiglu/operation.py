"""`swiglu`: checks its argument, chooses a backend, calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import check_float_tensor
from fastdecode.ops.swiglu.activations import check_activation
from fastdecode.ops.swiglu.cpu import swiglu_cpu
from fastdecode.ops.swiglu.reference import swiglu_reference
from fastdecode.ops.swiglu.triton import swiglu_triton
from fastdecode.ops.tracing import is_traced

_RUN = {"reference": swiglu_reference, "cpu": swiglu_cpu, "triton": swiglu_triton}


def swiglu(gate_up: Array, *, activation: str = "silu", backend: str | None = None) -> Tensor:
    """activation(gate) · up, the middle of a gated MLP: (rows, inner) float32; no gradients.

        gate_up     (rows, 2 · inner) float32: in each row first the gate g, then the up projection
        activation  "silu": g / (1 + e⁻ᵍ)
                    "gelu_tanh": g / 2 · (1 + tanh(√(2/π) · (g + 0.044715 g³))), transformers' gelu_pytorch_tanh
                    "gelu": g / 2 · (1 + erf(g / √2))
        backend     "reference" | "cpu" | "triton"; None picks by device

    The bits of a row's result do not depend on the other rows or the number of threads. Raises ValueError naming the
    argument.
    """
    if is_traced(gate_up):
        traced: Tensor = torch.ops.fastdecode.swiglu(gate_up, activation=activation, backend=backend)
        return traced
    check_activation(activation)
    gate_up = check_float_tensor("gate_up", gate_up, "rows, 2 * inner")
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up.shape = {tuple(gate_up.shape)}: must be (rows, 2 * inner)")
    backend = choose_step_backend(backend, gate_up.device)
    record_backend(backend)
    return _RUN[backend](gate_up, activation)
