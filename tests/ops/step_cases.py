"""Arguments for the operations of a decode step, and their expected results in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def close(got: Tensor, theirs: Tensor, exact: Tensor, factor: float = 1.5, floor: float = 3e-7) -> None:
    """``got`` is no farther from ``exact`` than ``factor`` times torch's own result, in root mean squares: but for two
    or three roundings, since few numbers may happen to be rounded well; for five where there are fewer than eight.
    """
    floor = 2 * floor if exact.numel() < 8 else floor
    assert got.dtype == torch.float32
    assert got.shape == exact.shape
    assert got.isfinite().all()

    def error(x: Tensor) -> float:
        return float((x.double() - exact).square().mean().sqrt())

    assert error(got) <= factor * error(theirs) + floor * float(exact.abs().max())


@dataclass
class Paged:
    """Keys and values of rows in shuffled pages, NaN where there is no id; ``ids`` [rows] of (2, kv_heads, n, d)."""

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor
    ids: list[Tensor]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.table, self.lengths

    def clone(self) -> "Paged":
        return Paged(self.keys.clone(), self.values.clone(), self.table, self.lengths, self.ids)


def paged(
    lengths: list[int], kv_heads: int, head_dim: int, slots: int, dtype: torch.dtype, *, room: int = 0, seed: int = 0
) -> Paged:
    """Rows of so many ids, with pages for ``room`` more; what they hold depends on the seed and the row alone."""
    counts = [max(1, -(-(n + room) // slots)) for n in lengths]
    pages, width = sum(counts) + 2, max(counts, default=0) + 2
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed + slots)).tolist()
    keys = torch.full((pages, kv_heads, slots, head_dim), torch.nan).to(dtype)
    values = keys.clone()
    table = torch.full((len(lengths), width + 1), -7, dtype=torch.int32)[:, :width]
    ids = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = torch.tensor([order.pop() for _ in range(count)])
        generator = torch.Generator().manual_seed(1000 * seed + row)
        ids.append(torch.randn(2, kv_heads, length, head_dim, generator=generator).to(dtype))
        for i in range(length):
            for part, stored in enumerate((keys, values)):
                stored[table[row, i // slots], :, i % slots] = ids[-1][part, :, i]
    return Paged(keys, values, table, torch.tensor(lengths, dtype=torch.int64), ids)


def attention(queries: Tensor, cache: Paged, scale: float, dtype: torch.dtype) -> Tensor:
    """What each row's queries find, in ``dtype``, by torch's own operations."""
    found = []
    for q, (k, v) in zip(queries, cache.ids, strict=True):
        group = len(q) // len(k)
        k, v = (x.to(dtype).repeat_interleave(group, 0) for x in (k, v))
        scores = (q.to(dtype)[:, None] @ k.mT) * scale
        found.append((scores.softmax(-1) @ v)[:, 0])
    return torch.stack(found)


def rotation(positions: Tensor, head_dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """cos and sin (rows, head_dim), the first half of sin negated."""
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
