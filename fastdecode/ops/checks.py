"""Checks that several operations share. Each raises ValueError naming the argument, the value and its index.

Shapes, dtypes and devices are checked here for every backend. What tensors hold is checked in Python for the reference,
and for the triton backend on the CPU; the C library checks it itself, in the same words and before it writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array, as_tensor, is_array

FLOAT_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of logits, weights, keys and values, with their numbers in the C interface."""

BYTE_DTYPES = (torch.int8, torch.float8_e4m3fn)
"""Dtypes of weights that take one byte each."""


def check_tensor(
    name: str, value: Array, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, like: str = "logits"
) -> Tensor:
    """Checks shape, dtype and device, and returns the array as a tensor, made contiguous.

    ``like``: the argument, named in the error, whose device this one must have.
    """
    if not isinstance(value, Tensor):
        value = as_tensor(name, value)
    check_dense(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be {shape}")
    if value.dtype != dtype:
        raise ValueError(f"{name}.dtype = {value.dtype}: must be {dtype}")
    if value.device != device:
        raise ValueError(f"{name}.device = {value.device}: must be {device}, as for {like}")
    # is_neg and is_contiguous are cheaper than resolve_neg and contiguous that change nothing.
    if value.is_neg():
        value = value.resolve_neg()
    return value if value.is_contiguous() else value.contiguous()


def check_dense(name: str, value: Tensor) -> None:
    """Raises ValueError naming a tensor that is sparse or nested."""
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)
        raise ValueError(f"{name}: must be a dense tensor, got one that is {kind}")


def check_float_tensor(name: str, value: Array, layout: str) -> Tensor:
    """Checks a float32 tensor and returns it made contiguous.

    ``layout``: names of its dimensions, as "rows, k". Each but the first must be at least 1.
    """
    if not isinstance(value, Tensor):
        value = as_tensor(name, value)
    check_dense(name, value)
    if value.dim() != layout.count(",") + 1 or 0 in value.shape[1:]:
        raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be ({layout})")
    return check_tensor(name, value, tuple(value.shape), torch.float32, value.device)


def check_token_vector(name: str, value: Array, layout: str) -> Tensor:
    """Checks a tensor of one dimension, named in ``layout``, of int64, and returns it made contiguous."""
    if not isinstance(value, Tensor) and is_array(value):
        value = as_tensor(name, value)
    if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.int64:
        what = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: must be ({layout},) int64, got {what}")
    check_dense(name, value)
    return value.contiguous()


def check_stored(
    name: str,
    value: Array,
    layout: str,
    device: torch.device,
    like: str,
    dtypes: Collection[torch.dtype] = FLOAT_DTYPES,
    written: bool = False,
) -> Tensor:
    """Checks a tensor that is never copied, as weights and pages: dense, and of one of ``dtypes``. Returns it.

    ``layout``: names of its dimensions, as "vocab, hidden". ``like``: as for `check_tensor`. ``written``: as for
    `as_tensor`.
    """
    if not isinstance(value, Tensor):
        value = as_tensor(name, value, written)
    if value.dim() != layout.count(",") + 1:
        raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be ({layout})")
    if value.dtype not in dtypes:
        which = "float32, bfloat16 or float16"
        if len(dtypes) > len(FLOAT_DTYPES):
            which = "float32, bfloat16, float16, int8 or float8_e4m3fn"
        elif len(dtypes) == 1:
            which = str(*dtypes)
        raise ValueError(f"{name}.dtype = {value.dtype}: must be {which}")
    if value.device != device:
        raise ValueError(f"{name}.device = {value.device}: must be {device}, as for {like}")
    if value.layout != torch.strided or not value.is_contiguous() or value.is_neg():
        raise ValueError(f"{name}: must be dense, as .contiguous() makes it")
    return value


def check_streams(streams: Array, device: torch.device) -> Tensor:
    """Checks a (groups, S) int32 tensor on ``device`` and returns it made contiguous."""
    if not isinstance(streams, Tensor):
        streams = as_tensor("streams", streams)
    if streams.dim() != 2 or streams.shape[1] < 1:
        raise ValueError(f"streams.shape = {tuple(streams.shape)}: must be (groups, S), S >= 1")
    return check_tensor("streams", streams, streams.shape, torch.int32, device)


def check_table(name: str, table: Tensor | None, rule: str, valid: Callable[[float], bool]) -> None:
    """Raises ValueError naming the first value of a (groups, S) tensor that is not valid; None is valid."""
    for g, row in enumerate([] if table is None else table.tolist()):
        for k, value in enumerate(row):
            if not valid(value):
                raise ValueError(f"{name}[{g}, {k}] = {value:g}: must be {rule}")


def check_rows(streams: Tensor | None, rows: int) -> None:
    """Raises ValueError for a stream that is neither −1 nor in [0, rows)."""
    check_table("streams", streams, f"a row in [0, {rows}), or -1", lambda row: -1 <= row < rows)
