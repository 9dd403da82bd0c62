"""`rope_append` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.pages import Pages, check_page_values
from fastdecode.ops.rope_append.head_norm import HeadNorm


def rope_append_triton(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    """Raises ValueError for a bad page or length on the CPU; on a GPU its row stores nothing, its queries are NaN."""
    from fastdecode.triton_kernels.rope_append import launch_rope_append

    if qkv.device.type == "cpu":
        check_page_values(pages, 0)
    queries: Tensor = launch_rope_append(qkv, cos, sin, pages, q_norm, k_norm, epsilon)
    return queries
