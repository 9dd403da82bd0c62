"""`rope_append` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.pages import Pages, check_page_values
from fastdecode.ops.rope_append.head_norm import HeadNorm


@torch.no_grad()
def rope_append_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    """Norms each head x, then rotates it: x · cos + (x with its halves exchanged) · sin. In float32.

    Raises ValueError for bad values in the page table or lengths, with nothing written.
    """
    check_page_values(pages, 0)
    keys, values, table, lengths = pages
    kv_heads, slots, head_dim = keys.shape[1:]
    q, k, v = qkv.view(len(qkv), -1, head_dim).split([qkv.shape[1] // head_dim - 2 * kv_heads, kv_heads, kv_heads], 1)
    page = table.gather(1, (lengths // slots)[:, None])[:, 0].long()
    keys[page, :, lengths % slots] = _rotated(_normed(k, k_norm, epsilon), cos, sin).to(keys.dtype)
    values[page, :, lengths % slots] = v.to(values.dtype)
    return _rotated(_normed(q, q_norm, epsilon), cos, sin)


def _normed(x: Tensor, norm: HeadNorm, epsilon: float) -> Tensor:
    """(rows, heads, head_dim): the norm of each head.

    A layer norm is (x − mean) / √(variance + epsilon) · weight + bias; an RMS norm is x / √(mean of x² + epsilon) ·
    weight; without a norm the result is x.
    """
    if norm.weight is None:
        return x
    if norm.bias is not None:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * norm.weight
    return x if norm.bias is None else x + norm.bias


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + x.roll(x.shape[-1] // 2, -1) * sin[:, None]
