"""`attend` as PyTorch code."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.pages import Pages, check_page_values


@torch.no_grad()
def attend_reference(queries: Tensor, pages: Pages, scale: float) -> Tensor:
    """out = Σᵢ pᵢ · valueᵢ with p = softmax over the row's tokens i of scale · query · keyᵢ. In float32.

    Raises ValueError for bad values in the page table or lengths.
    """
    check_page_values(pages, -1)
    rows, heads, head_dim = queries.shape
    kv_heads, slots = pages.keys.shape[1:3]
    width = pages.table.shape[1]
    there = torch.arange(width * slots, device=queries.device) < pages.lengths[:, None]  # (rows, tokens)
    needed = there[:, ::slots]
    table = torch.where(needed, pages.table, 0).long()

    def of_rows(stored: Tensor) -> Tensor:
        """(rows, kv_heads, 1, tokens, head_dim), 0 where there is no token."""
        slots_of_rows = stored[table].float().permute(0, 2, 1, 3, 4).reshape(rows, kv_heads, 1, width * slots, head_dim)
        return torch.where(there[:, None, None, :, None], slots_of_rows, 0.0)

    grouped = queries.view(rows, kv_heads, heads // kv_heads, 1, head_dim)
    scores = (grouped @ of_rows(pages.keys).mT) * scale
    p = scores.masked_fill(~there[:, None, None, None], -torch.inf).softmax(-1)
    return (p @ of_rows(pages.values)).view(rows, heads, head_dim)
