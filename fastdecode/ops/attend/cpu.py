"""`attend` through the C++ library, which checks the values of the page table and lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core
from fastdecode.ops.checks import FLOAT_DTYPES
from fastdecode.ops.pages import Pages


def attend_cpu(queries: Tensor, pages: Pages, scale: float) -> Tensor:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for bad values."""
    keys, values = pages.keys, pages.values
    rows, heads, head_dim = queries.shape
    out = torch.empty(queries.shape, dtype=torch.float32, device="cpu")
    sizes = (rows, heads, keys.shape[1], head_dim, FLOAT_DTYPES[keys.dtype], torch.get_num_threads(), scale)
    stored = (keys.data_ptr(), values.data_ptr(), *pages.fields)
    core().attend((*sizes, queries.data_ptr(), *stored, out.data_ptr()))
    return out
