"""`rope_append` through the C++ library, which checks the values of the page table and lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.checks import FLOAT_DTYPES
from fastdecode.ops.pages import Pages
from fastdecode.ops.pointers import address
from fastdecode.ops.rope_append.head_norm import HeadNorm


def rope_append_cpu(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for bad values, with nothing written."""
    keys, values = pages.keys, pages.values
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    rows, heads = len(qkv), qkv.shape[1] // head_dim - 2 * kv_heads
    queries = torch.empty(rows, heads, head_dim, dtype=torch.float32, device="cpu")
    norms = [address(part) for norm in (q_norm, k_norm) for part in norm]
    core().rope_append(
        (
            *(rows, heads, kv_heads, head_dim, FLOAT_DTYPES[keys.dtype], torch.get_num_threads()),
            *(qkv.data_ptr(), *norms, epsilon, cos.data_ptr(), sin.data_ptr()),
            *(*pages.fields, keys.data_ptr(), values.data_ptr(), queries.data_ptr()),
        )
    )
    return queries
