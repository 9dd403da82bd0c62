"""Pages of keys and values with the page table of a batch of rows, as `attend` and `rope_append` take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array, as_tensor
from fastdecode.ops.checks import check_stored, check_tensor


class Pages(NamedTuple):
    """Pages of keys and values, and which of them belong to which row.

        keys, values  (pages, kv_heads, page_slots, head_dim)
        table         (rows, width) int32: the page table
        lengths       (rows,) int64: number of tokens of each row

    Everything has been checked except the values in ``table`` and ``lengths``; see `check_page_values`.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor

    @property
    def fields(self) -> tuple[int, ...]:
        """What the C library takes of all this, except the addresses of keys and values, in its order."""
        keys, table = self.keys, self.table
        return (
            keys.shape[0],
            keys.shape[2],
            table.data_ptr(),
            max(table.stride(0), table.shape[1]),  # torch may report any stride for a single row
            table.shape[1],
            self.lengths.data_ptr(),
        )


def check_pages(
    keys: Array,
    values: Array,
    table: Array,
    lengths: Array,
    rows: int,
    device: torch.device,
    like: str,
    written: bool = False,
) -> Pages:
    """Pages for ``rows`` rows. Checks shapes, dtypes, devices and layouts, and not the values in the page table.

    ``written``: whether keys and values are written; see `as_tensor`.
    """
    layout = "pages, kv_heads, page_slots, head_dim"
    keys = check_stored("keys", keys, layout, device, like, written=written)
    values = check_stored("values", values, layout, device, like, written=written)
    if 0 in keys.shape[1:]:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: must be ({layout})")
    if values.shape != keys.shape:
        raise ValueError(f"values.shape = {tuple(values.shape)}: must be {tuple(keys.shape)}, as for keys")
    if values.dtype != keys.dtype:
        raise ValueError(f"values.dtype = {values.dtype}: must be {keys.dtype}, as for keys")
    if written and _share_memory(keys, values):
        raise ValueError("values: must not overlap keys")
    if not isinstance(table, Tensor):
        table = as_tensor("table", table)
    if table.dim() != 2 or table.shape[0] != rows:
        raise ValueError(f"table.shape = {tuple(table.shape)}: must be ({rows}, pages of the longest row)")
    if rows > 0 and keys.shape[0] == 0:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: must have at least one page")
    if rows > 0 and table.shape[1] == 0:
        raise ValueError(f"table.shape = {tuple(table.shape)}: must have a page of each row at least")
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise ValueError(f"table.stride(1) = {table.stride(1)}: must be 1")
    check_tensor("table", table[:0], (0, table.shape[1]), torch.int32, device, like)
    if rows > 1 and table.stride(0) < table.shape[1]:
        table = table.contiguous()
    return Pages(keys, values, table, check_tensor("lengths", lengths, (rows,), torch.int64, device, like))


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one size and dtype overlap."""
    return 0 < abs(a.data_ptr() - b.data_ptr()) < a.nbytes or (a.data_ptr() == b.data_ptr() != 0 and a.nbytes > 0)


def check_page_values(pages: Pages, last: int) -> None:
    """Raises ValueError unless the page table has an existing page for each token that is used. Reads device memory.

    ``last``: offset from a row's length to the last token used: −1 to read the stored tokens, 0 to append one.
    """
    count, slots, width = pages.keys.shape[0], pages.keys.shape[2], pages.table.shape[1]
    for r, (length, row) in enumerate(zip(pages.lengths.tolist(), pages.table.tolist(), strict=True)):
        if length < -last or (length + last) // slots >= width:
            raise ValueError(
                f"lengths[{r}] = {length}: must be at least {-last}, and in one of table_width = {width} pages of "
                f"page_slots = {slots}"
            )
        for p in range((length + last) // slots + 1):
            if not 0 <= row[p] < count:
                raise ValueError(f"table[{r}, {p}] = {row[p]}: must be a page in [0, {count})")
