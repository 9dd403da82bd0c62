"""`rope_append`: new ids' queries and keys normed and rotated, their keys and values stored in pages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.checks import check_tensor
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import (
    STORED_DTYPES,
    Pages,
    check_float_tensor,
    check_page_values,
    check_pages,
    choose_step_backend,
)
from fastdecode.ops.step_triton import rope_append_triton


class HeadNorm(NamedTuple):
    """(heads, head_dim) each, or None: without a weight no norm, without a bias an RMS norm, else a layer norm."""

    weight: Tensor | None
    bias: Tensor | None


def rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    q_norm: Tensor | None = None,
    q_norm_bias: Tensor | None = None,
    k_norm: Tensor | None = None,
    k_norm_bias: Tensor | None = None,
    epsilon: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """One new id per row: norms and rotates its queries and key, stores key and value behind the row's ids.

        qkv           (rows, (heads + 2 · kv_heads) · head_dim) float32: queries, keys, values; head_dim is even
        cos           (rows, head_dim) float32 of the new ids' positions
        sin           (rows, head_dim) float32, the first half negated
        keys, values  (pages, kv_heads, page_slots, head_dim) float32 | bfloat16 | float16, dense; written
        table         (rows, width) int32, stride(1) == 1: as for `attend`
        lengths       (rows,) int64: ids stored so far. Does not grow here
        q_norm, …     (head_dim,) or (heads, head_dim), for k (kv_heads, head_dim), float32: weights and biases of norms
                      of each head. No weight: no norm; no bias: an RMS norm; else a layer norm
        epsilon       of these norms
        backend       "reference" | "cpu" | "triton"; None picks by device

    Returns the queries (rows, heads, head_dim) float32; no gradients. Two rows must not share a slot that is written,
    which is not checked. Raises ValueError naming the argument, value and index, with nothing written. On a GPU triton
    does not wait to look at table and lengths: a row with a bad one stores nothing, and its queries are NaN.
    """
    if is_traced(qkv):
        traced: Tensor = torch.ops.fastdecode.rope_append(
            qkv,
            cos,
            sin,
            keys,
            values,
            table,
            lengths,
            q_norm=q_norm,
            q_norm_bias=q_norm_bias,
            k_norm=k_norm,
            k_norm_bias=k_norm_bias,
            epsilon=epsilon,
            backend=backend,
        )
        return traced
    qkv = check_float_tensor("qkv", qkv, "rows, (heads + 2 * kv_heads) * head_dim")
    rows, device = len(qkv), qkv.device
    pages = check_pages(keys, values, table, lengths, rows, device, "qkv")
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    if head_dim % 2:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: head_dim must be even")
    if qkv.shape[1] % head_dim or heads < 1 or heads % kv_heads:
        raise ValueError(
            f"qkv.shape = {tuple(qkv.shape)}: must be (rows, (heads + {2 * kv_heads}) * {head_dim}) with heads a "
            f"multiple of {kv_heads}"
        )
    cos = check_tensor("cos", cos, (rows, head_dim), torch.float32, device, "qkv")
    sin = check_tensor("sin", sin, (rows, head_dim), torch.float32, device, "qkv")
    norms = (
        _check_norm("q_norm", q_norm, q_norm_bias, (heads, head_dim), device),
        _check_norm("k_norm", k_norm, k_norm_bias, (kv_heads, head_dim), device),
    )
    backend = choose_step_backend(backend, device)
    record_backend(backend)
    if backend == "reference":
        check_page_values(pages, 0)
        return rope_append_reference(qkv, cos, sin, pages, *norms, epsilon)
    if backend == "triton":
        return rope_append_triton(qkv, cos, sin, pages, *norms, epsilon)
    queries = torch.empty(rows, heads, head_dim, dtype=torch.float32, device="cpu")
    weights = [0 if t is None else t.data_ptr() for norm in norms for t in norm]
    core().rope_append(
        (
            *(rows, heads, kv_heads, head_dim, STORED_DTYPES[keys.dtype], torch.get_num_threads()),
            *(qkv.data_ptr(), *weights, epsilon, cos.data_ptr(), sin.data_ptr()),
            *(*pages.fields, keys.data_ptr(), values.data_ptr(), queries.data_ptr()),
        )
    )
    return queries


def _check_norm(
    name: str, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, int], device: torch.device
) -> HeadNorm:
    if weight is None and bias is not None:
        raise ValueError(f"{name} = None: must not be where there is a {name}_bias")
    parts: list[Tensor | None] = []
    for part_name, part in ((name, weight), (f"{name}_bias", bias)):
        if isinstance(part, Tensor) and part.dim() == 1 and len(part) == shape[1]:
            part = part.expand(shape)
        parts.append(None if part is None else check_tensor(part_name, part, shape, torch.float32, device, "qkv"))
    return HeadNorm(*parts)


@torch.no_grad()
def rope_append_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: Pages, q_norm: HeadNorm, k_norm: HeadNorm, epsilon: float
) -> Tensor:
    """x = its norm per head; rotated = x · cos + x with its halves exchanged · sin; all in float32."""
    keys, values, table, lengths = pages
    kv_heads, slots, head_dim = keys.shape[1:]
    q, k, v = qkv.view(len(qkv), -1, head_dim).split([qkv.shape[1] // head_dim - 2 * kv_heads, kv_heads, kv_heads], 1)
    page = table.gather(1, (lengths // slots)[:, None])[:, 0].long()
    keys[page, :, lengths % slots] = _rotated(_normed(k, k_norm, epsilon), cos, sin).to(keys.dtype)
    values[page, :, lengths % slots] = v.to(values.dtype)
    return _rotated(_normed(q, q_norm, epsilon), cos, sin)


def _normed(x: Tensor, norm: HeadNorm, epsilon: float) -> Tensor:
    """(rows, heads, head_dim): (x − mean) / √(variance + epsilon) · weight + bias, x / √(mean of x² + epsilon) ·
    weight, or x.
    """
    if norm.weight is None:
        return x
    if norm.bias is not None:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * norm.weight
    return x if norm.bias is None else x + norm.bias


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + x.roll(x.shape[-1] // 2, -1) * sin[:, None]
