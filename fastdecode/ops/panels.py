"""Matrices in panels: 16 features side by side, so that each lane of a vector multiplies a feature of its own."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 16
"""Features of a panel."""


def padded(rows: Tensor) -> Tensor:
    """``rows`` (features, …) with rows of zeros after them, up to whole panels."""
    missing = -len(rows) % PANEL
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows


def side_by_side(rows: Tensor, together: int = 1) -> Tensor:
    """``rows`` (features, n), ``together`` numbers of a feature at a time: (panels, n / together, 16, together)."""
    rows = padded(rows)
    return rows.view(len(rows) // PANEL, PANEL, rows.shape[1] // together, together).transpose(1, 2).contiguous()


def features_of(panels: Tensor, features: Tensor) -> Tensor:
    """These features (n,) int64 of (panels, m, 16, together), as rows (n, m · together)."""
    return panels[features // PANEL, :, features % PANEL].flatten(1)


def packed_halves(values: Tensor) -> Tensor:
    """(features, k / 2) bytes of half bytes (features, k) uint8 from 0 to 15: each 4 bytes have 4 values in their low
    halves, and the next 4 in their high halves.
    """
    features, k = values.shape
    eights = values.view(features, k // 8, 2, 4)
    return (eights[:, :, 0] | eights[:, :, 1] << 4).view(features, k // 2)


def unpacked_halves(data: Tensor) -> Tensor:
    """The half bytes (features, k) that `packed_halves` packed."""
    features, size = data.shape
    fours = data.view(features, size // 4, 1, 4)
    return torch.cat((fours & 15, fours >> 4), 2).view(features, 2 * size)
