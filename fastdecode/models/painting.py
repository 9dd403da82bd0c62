"""From pixels to pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from fastdecode.layout import Grid


class _Decode(nn.Module):
    """Gives the ``decode`` of a model of pictures the form of a forward."""

    def __init__(self, vqmodel: Any) -> None:
        super().__init__()
        self.vqmodel = vqmodel

    def forward(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.vqmodel.decode(codes)
        return pixels


@torch.inference_mode()
def decoded(vqmodel: Any) -> Callable[[Tensor], Tensor]:
    """``vqmodel.decode`` computed in float32, whatever the dtype of its weights, without autocast."""
    whole = _Decode(vqmodel)
    weights = {name: value.float() for name, value in whole.state_dict().items() if value.is_floating_point()}

    def decode(codes: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(codes.device.type, enabled=False):
            pixels: Tensor = functional_call(whole, weights, (codes,), strict=False)
        return pixels

    return decode


def painted(
    grids: Sequence[Grid], device: torch.device, decode: Callable[[Tensor], Tensor], *, rounded: bool = True
) -> list[Image.Image]:
    """``grids`` as pictures, one at a time. ``decode``: codes (1, rows, columns) int64 on ``device`` to pixels."""
    found: list[Image.Image] = []
    for grid in grids:
        codes = torch.tensor(grid.codes, device=device).view(1, grid.rows, grid.columns)
        found += to_pictures(decode(codes), rounded)
    return found


def to_pictures(pixels: Tensor, rounded: bool = True) -> list[Image.Image]:
    """Convert pixels ``(n, 3, H, W)`` float in [-1, 1] (clamped) to RGB pictures. Grey levels are ``rounded``, or else
    cut off, as some processors of transformers do.
    """
    grey = (pixels.float().clamp(-1, 1) + 1) * 127.5
    grey = (grey.round() if rounded else grey).byte()
    return [Image.fromarray(p) for p in grey.permute(0, 2, 3, 1).cpu().numpy()]
