"""`attend`: attention of one query per row over its pages of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import (
    STORED_DTYPES,
    Pages,
    check_float_tensor,
    check_page_values,
    check_pages,
    choose_step_backend,
)
from fastdecode.ops.step_triton import attend_triton


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """What the queries of each row find among its ids: (rows, heads, head_dim) float32; no gradients.

        queries       (rows, heads, head_dim) float32; heads is a multiple of kv_heads
        keys, values  (pages, kv_heads, page_slots, head_dim) float32 | bfloat16 | float16, dense
        table         (rows, width) int32, stride(1) == 1: id i of a row lies in slot i % page_slots of its page
                      i // page_slots. Entries behind a row's last page are not read
        lengths       (rows,) int64, at least 1: a row's ids are [0, length)
        scale         of the products of queries and keys. None: 1 / √head_dim
        backend       "reference" | "cpu" | "triton"; None picks by device

    Query head h sees head h // (heads // kv_heads) of the keys. Slots that hold none of a row's ids are not read. A
    row's result is the same bits whatever the other rows, its pages' numbers and sizes, and the number of threads.
    Raises ValueError naming the argument, value and index. On a GPU triton does not wait to look at table and
    lengths: a row with a bad one is NaN, and nothing outside of the pages is read.
    """
    if is_traced(queries):
        traced: Tensor = torch.ops.fastdecode.attend(queries, keys, values, table, lengths, scale, backend=backend)
        return traced
    queries = check_float_tensor("queries", queries, "rows, heads, head_dim")
    rows, heads, head_dim = queries.shape
    pages = check_pages(keys, values, table, lengths, rows, queries.device, "queries")
    kv_heads = keys.shape[1]
    if keys.shape[3] != head_dim:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: must end with {head_dim}, as for queries")
    if heads % kv_heads:
        raise ValueError(f"queries.shape = {tuple(queries.shape)}: must have a multiple of {kv_heads} heads")
    scale = head_dim**-0.5 if scale is None else scale
    backend = choose_step_backend(backend, queries.device)
    record_backend(backend)
    if backend == "reference":
        check_page_values(pages, -1)
        return attend_reference(queries, pages, scale)
    if backend == "triton":
        return attend_triton(queries, pages, scale)
    out = torch.empty(queries.shape, dtype=torch.float32, device="cpu")
    sizes = (rows, heads, kv_heads, head_dim, STORED_DTYPES[keys.dtype], torch.get_num_threads(), scale)
    stored = (keys.data_ptr(), values.data_ptr(), *pages.fields)
    core().attend((*sizes, queries.data_ptr(), *stored, out.data_ptr()))
    return out


@torch.no_grad()
def attend_reference(queries: Tensor, pages: Pages, scale: float) -> Tensor:
    """out = Σᵢ pᵢ · valueᵢ with p = softmax over the row's ids of scale · query · keyᵢ. In float32."""
    rows, heads, head_dim = queries.shape
    kv_heads, slots = pages.keys.shape[1:3]
    width = pages.table.shape[1]
    there = torch.arange(width * slots, device=queries.device) < pages.lengths[:, None]  # (rows, ids)
    needed = there[:, ::slots]
    table = torch.where(needed, pages.table, 0).long()

    def of_rows(stored: Tensor) -> Tensor:
        """(rows, kv_heads, 1, ids, head_dim), 0 where there is no id."""
        ids = stored[table].float().permute(0, 2, 1, 3, 4).reshape(rows, kv_heads, 1, width * slots, head_dim)
        return torch.where(there[:, None, None, :, None], ids, 0.0)

    grouped = queries.view(rows, kv_heads, heads // kv_heads, 1, head_dim)
    scores = (grouped @ of_rows(pages.keys).mT) * scale
    p = scores.masked_fill(~there[:, None, None, None], -torch.inf).softmax(-1)
    return (p @ of_rows(pages.values)).view(rows, heads, head_dim)
