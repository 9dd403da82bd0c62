"""Checks of the arguments of a decode step's operations. Each raises ValueError naming the argument and the value.

As in `checks`: values are checked here for all but the C library, which checks them itself, in the same words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.backends import choose_backend
from fastdecode.ops.checks import LOGITS_DTYPES, check_tensor

STORED_DTYPES = LOGITS_DTYPES
"""Of weights, keys and values, as the C library numbers them."""

BYTE_DTYPES = (torch.int8, torch.float8_e4m3fn)
"""Of weights that are stored in a byte each."""


def choose_step_backend(backend: str | None, device: torch.device) -> str:
    """The backend to run; ValueError if one is named that has no kernels of these operations."""
    chosen = choose_backend(backend, device.type)
    if chosen in ("cpu", "reference", "triton"):
        return chosen
    if backend is None:
        return "reference"
    raise ValueError(f"backend = {backend!r}: has no such operation; must be cpu, triton or reference")


def check_float_tensor(name: str, value: Tensor, layout: str) -> Tensor:
    """A float32 tensor, made contiguous, with as many sizes as ``layout`` has, all but the first at least 1."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: must be a tensor, got {type(value).__name__}")
    if value.dim() != layout.count(",") + 1 or 0 in value.shape[1:]:
        raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be ({layout})")
    return check_tensor(name, value, tuple(value.shape), torch.float32, value.device)


def check_stored(
    name: str,
    value: Tensor,
    layout: str,
    device: torch.device,
    like: str,
    dtypes: Collection[torch.dtype] = STORED_DTYPES,
) -> Tensor:
    """A dense tensor of one of ``dtypes`` with as many sizes as ``layout`` has: never copied."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: must be a tensor, got {type(value).__name__}")
    if value.dim() != layout.count(",") + 1:
        raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be ({layout})")
    if value.dtype not in dtypes:
        which = "float32, bfloat16 or float16"
        if len(dtypes) > len(STORED_DTYPES):
            which = "float32, bfloat16, float16, int8 or float8_e4m3fn"
        raise ValueError(f"{name}.dtype = {value.dtype}: must be {which}")
    if value.device != device:
        raise ValueError(f"{name}.device = {value.device}: must be {device}, as for {like}")
    if value.layout != torch.strided or not value.is_contiguous() or value.is_neg():
        raise ValueError(f"{name}: must be dense, as .contiguous() makes it")
    return value


def check_tokens(tokens: Tensor, vocab: int) -> None:
    for r, token in enumerate(tokens.tolist()):
        if not 0 <= token < vocab:
            raise ValueError(f"tokens[{r}] = {token}: must be an id in [0, {vocab})")


class Pages(NamedTuple):
    """Keys and values, and where rows have them: checked but for the values of ``table`` and ``lengths``."""

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor

    @property
    def fields(self) -> tuple[int, ...]:
        """As the C library takes them, but for keys and values."""
        keys, table = self.keys, self.table
        return (
            keys.shape[0],
            keys.shape[2],
            table.data_ptr(),
            max(table.stride(0), table.shape[1]),  # of a single row torch may say anything
            table.shape[1],
            self.lengths.data_ptr(),
        )


def check_pages(
    keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, rows: int, device: torch.device, like: str
) -> Pages:
    """Pages for so many rows, their values not yet checked."""
    layout = "pages, kv_heads, page_slots, head_dim"
    check_stored("keys", keys, layout, device, like)
    check_stored("values", values, layout, device, like)
    if 0 in keys.shape[1:]:
        raise ValueError(f"keys.shape = {tuple(keys.shape)}: must be ({layout})")
    if values.shape != keys.shape:
        raise ValueError(f"values.shape = {tuple(values.shape)}: must be {tuple(keys.shape)}, as for keys")
    if values.dtype != keys.dtype:
        raise ValueError(f"values.dtype = {values.dtype}: must be {keys.dtype}, as for keys")
    if not isinstance(table, Tensor) or table.dim() != 2 or table.shape[0] != rows:
        what = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(f"table.shape = {what}: must be ({rows}, pages of the longest row)")
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise ValueError(f"table.stride(1) = {table.stride(1)}: must be 1")
    check_tensor("table", table[:0], (0, table.shape[1]), torch.int32, device, like)
    if rows > 1 and table.stride(0) < table.shape[1]:
        table = table.contiguous()
    return Pages(keys, values, table, check_tensor("lengths", lengths, (rows,), torch.int64, device, like))


def check_page_values(pages: Pages, last: int) -> None:
    """Rows' ids up to the one ``last`` behind their length lie in pages that exist."""
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
