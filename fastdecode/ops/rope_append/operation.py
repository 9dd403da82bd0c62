"""`rope_append`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array, as_tensor
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import check_float_tensor, check_tensor
from fastdecode.ops.pages import check_pages
from fastdecode.ops.rope_append.cpu import rope_append_cpu
from fastdecode.ops.rope_append.head_norm import HeadNorm
from fastdecode.ops.rope_append.reference import rope_append_reference
from fastdecode.ops.rope_append.triton import rope_append_triton
from fastdecode.ops.scalars import real_number
from fastdecode.ops.tracing import is_traced

_RUN = {"reference": rope_append_reference, "cpu": rope_append_cpu, "triton": rope_append_triton}


def rope_append(
    qkv: Array,
    cos: Array,
    sin: Array,
    keys: Array,
    values: Array,
    table: Array,
    lengths: Array,
    *,
    q_norm: Array | None = None,
    q_norm_bias: Array | None = None,
    k_norm: Array | None = None,
    k_norm_bias: Array | None = None,
    epsilon: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """One new token per row: norms and rotates its queries and key, stores its key and value after the row's tokens.

        qkv           (rows, (heads + 2 · kv_heads) · head_dim) float32: queries, keys, values; head_dim is even
        cos           (rows, head_dim) float32, for the position of each new token
        sin           (rows, head_dim) float32, likewise, with the first half negated
        keys, values  (pages, kv_heads, page_slots, head_dim) float32 | bfloat16 | float16, dense; written
        table         (rows, width) int32, stride(1) == 1: as for `attend`
        lengths       (rows,) int64: number of tokens stored so far; not changed here
        q_norm, …     (head_dim,) or (heads, head_dim), for k (kv_heads, head_dim), float32: weight and bias of the norm
                      of each head. Both: a layer norm. Weight alone: an RMS norm. Neither: no norm
        epsilon       of these norms
        backend       "reference" | "cpu" | "triton"; None picks by device

    Returns the queries (rows, heads, head_dim) float32; no gradients. Two rows must not write to the same slot; this is
    not checked. Raises ValueError naming the argument, value and index, with nothing written. On a GPU the triton
    backend does not wait to read table and lengths: a row with a bad value stores nothing, and its queries are NaN.
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
    epsilon = real_number("epsilon", epsilon)
    qkv = check_float_tensor("qkv", qkv, "rows, (heads + 2 * kv_heads) * head_dim")
    rows, device = len(qkv), qkv.device
    pages = check_pages(keys, values, table, lengths, rows, device, "qkv", written=True)
    keys = pages.keys
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
    return _RUN[backend](qkv, cos, sin, pages, *norms, epsilon)


def _check_norm(
    name: str, weight: Array | None, bias: Array | None, shape: tuple[int, int], device: torch.device
) -> HeadNorm:
    if weight is None and bias is not None:
        raise ValueError(f"{name} = None: must not be where there is a {name}_bias")
    parts: list[Tensor | None] = []
    for part_name, part in ((name, weight), (f"{name}_bias", bias)):
        if part is not None and not isinstance(part, Tensor):
            part = as_tensor(part_name, part)
        if part is not None and part.dim() == 1 and len(part) == shape[1]:
            part = part.expand(shape)
        parts.append(None if part is None else check_tensor(part_name, part, shape, torch.float32, device, "qkv"))
    return HeadNorm(*parts)
