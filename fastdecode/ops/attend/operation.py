"""`attend`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.attend.cpu import attend_cpu
from fastdecode.ops.attend.reference import attend_reference
from fastdecode.ops.attend.triton import attend_triton
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import check_float_tensor
from fastdecode.ops.pages import check_pages
from fastdecode.ops.scalars import real_number
from fastdecode.ops.tracing import is_traced

_RUN = {"reference": attend_reference, "cpu": attend_cpu, "triton": attend_triton}


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    table: Array,
    lengths: Array,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Attention of one query per row and head over the row's tokens: (rows, heads, head_dim) float32; no gradients.

        queries       (rows, heads, head_dim) float32; heads is a multiple of kv_heads
        keys, values  (pages, kv_heads, page_slots, head_dim) float32 | bfloat16 | float16, dense
        table         (rows, width) int32, stride(1) == 1: the page table. Token i of row r is in slot i % page_slots of
                      page table[r, i // page_slots]. Entries after the row's last page are not read
        lengths       (rows,) int64, at least 1: number of tokens of each row
        scale         factor of the products of queries and keys. None: 1 / √head_dim
        backend       "reference" | "cpu" | "triton"; None picks by device

    Query head h attends to head h // (heads // kv_heads) of the keys. Slots without a token of the row are not read.
    The bits of a row's result do not depend on the other rows, on the numbers and the size of its pages, or on the
    number of threads. Raises ValueError naming the argument, value and index. On a GPU the triton backend does not wait
    to read table and lengths: a row with a bad value is NaN, and nothing outside the pages is read.
    """
    if is_traced(queries):
        traced: Tensor = torch.ops.fastdecode.attend(queries, keys, values, table, lengths, scale, backend=backend)
        return traced
    queries = check_float_tensor("queries", queries, "rows, heads, head_dim")
    rows, heads, head_dim = queries.shape
    pages = check_pages(keys, values, table, lengths, rows, queries.device, "queries")
    keys = pages.keys
    kv_heads = keys.shape[1]
    if keys.shape[3] != head_dim:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: must end with {head_dim}, as for queries")
    if heads % kv_heads:
        raise ValueError(f"queries.shape = {tuple(queries.shape)}: must have a multiple of {kv_heads} heads")
    scale = head_dim**-0.5 if scale is None else real_number("scale", scale)
    backend = choose_step_backend(backend, queries.device)
    record_backend(backend)
    return _RUN[backend](queries, pages, scale)
