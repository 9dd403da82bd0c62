"""A decode step's operations through the Triton kernels, which are imported, and compiled, when they are first used.

For checked arguments. Values in tensors are checked on the CPU alone: on a GPU the kernels do what the operations say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fastdecode.ops.step_checks import Pages, check_page_values, check_tokens

if TYPE_CHECKING:
    from fastdecode.ops.linear import Matrix
    from fastdecode.ops.rope_append import HeadNorm


def linear_triton(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    from fastdecode.triton_kernels.linear import launch_linear

    out: Tensor = launch_linear(x, matrices)
    return out


def rms_norm_triton(
    x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    from fastdecode.triton_kernels.rms_norm import launch_rms_norm

    out: Tensor | tuple[Tensor, Tensor] = launch_rms_norm(x, weight, epsilon, residual)
    return out


def swiglu_triton(gate_up: Tensor) -> Tensor:
    from fastdecode.triton_kernels.swiglu import launch_swiglu

    out: Tensor = launch_swiglu(gate_up)
    return out


def embed_triton(tokens: Tensor, weight: Tensor) -> Tensor:
    from fastdecode.triton_kernels.embed import launch_embed

    if tokens.device.type == "cpu":
        check_tokens(tokens, len(weight))
    out: Tensor = launch_embed(tokens, weight)
    return out


def rope_append_triton(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    from fastdecode.triton_kernels.rope_append import launch_rope_append

    if qkv.device.type == "cpu":
        check_page_values(pages, 0)
    queries: Tensor = launch_rope_append(qkv, cos, sin, pages, q_norm, k_norm, epsilon)
    return queries


def attend_triton(queries: Tensor, pages: Pages, scale: float) -> Tensor:
    from fastdecode.triton_kernels.attend import launch_attend

    if queries.device.type == "cpu":
        check_page_values(pages, -1)
    out: Tensor = launch_attend(queries, pages, scale)
    return out
