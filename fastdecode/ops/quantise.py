"""From ordinary weights to weights of 8 and 4 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.checks import check_stored
from fastdecode.ops.panels import packed_halves, padded, side_by_side
from fastdecode.ops.scalars import whole_number
from fastdecode.ops.small_weights import SMALL_TYPES, SmallWeights

_PART = 1 << 18
"""Weights that are made small at a time: it bounds the memory of the work, and a processor's cache holds it."""

_SHRINKS = (1.0, 0.95, 0.9, 0.85)
"""Factors of the widest range of int4 that are tried: outliers are cut where the other values gain more."""


@torch.no_grad()
def quantise(weight: Tensor, type: str = "int8", *, group: int = 32, symmetric: bool = True) -> SmallWeights:
    """Round a matrix to small weights.

        weight     (features, k) float32 | bfloat16 | float16
        type       "int8" (one scale for each feature), "int8x16" (the same weights in panels), "int4" (in panels, with
                   one scale for each ``group`` values), or GGUF's "q8_0", "q4_0"
        group      of int4: 32 or a multiple of 64; of other types it has no meaning
        symmetric  of int4: False gives each group an offset too

    int8, int8x16 and q8_0: largest magnitude / 127. int4 and q4_0: of a few scales, the one with the least squared
    error.
    ``ValueError`` names what is wrong; also for infinity or NaN, and for weights too large for a scale in float16.
    """
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight: must be a tensor, got {weight.__class__.__name__}")
    weight = check_stored("weight", weight, "features, k", weight.device, "weight")
    if not isinstance(type, str) or type not in SMALL_TYPES:
        raise ValueError(f"type = {type!r}: must be one of {', '.join(SMALL_TYPES)}")
    features, k = weight.shape
    group = whole_number("group", group) if type == "int4" else SMALL_TYPES[type].block
    if k == 0:
        raise ValueError(f"weight.shape = {features, k}: k must be at least 1")
    if type != "int8" and k % 32:
        raise ValueError(f"weight.shape = {features, k}: k must be a multiple of 32 for {type} weights")
    if type == "int4" and group != 32 and (group < 64 or group % 64):
        raise ValueError(f"group = {group}: must be 32 or a multiple of 64")
    panel = SMALL_TYPES[type].panel
    stored = -(-features // panel)  # panels, or features of a type without
    step = max(1, _PART // (k * panel))
    first = _part(weight.new_zeros(panel, k).float(), type, group, symmetric)
    made = [None if part is None else part.new_empty((stored, *part.shape[1:])) for part in first]
    for i in range(0, stored, step):
        some = weight[i * panel : (i + step) * panel].float()
        parts = _part(some if panel == 1 else padded(some), type, group, symmetric)
        for whole, part in zip(made, parts, strict=True):
            if whole is not None and part is not None:
                whole[i : i + step] = part
    data, scale, offset = made
    assert data is not None
    return SmallWeights(type, k, data, scale, offset, group if type == "int4" else 0, features)


def _part(weight: Tensor, type: str, group: int, symmetric: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Data, scale and offset of some features, in panels whole ones."""
    if not bool(weight.isfinite().all()):
        raise ValueError("weight: must be finite, but it has infinity or NaN")
    if type in ("int8", "int8x16"):
        scale = weight.abs().amax(1) / 127.0
        data = _divided(weight, scale[:, None]).clamp_(-127, 127).to(torch.int8)
        if type == "int8":
            return data, scale, None
        data = side_by_side(data, 4).flatten(1)
        return data, scale.view(len(data), -1), None
    features, k = weight.shape
    if type == "q8_0":
        blocks = weight.view(features, k // 32, 32)
        half = _float16(blocks.abs().amax(-1, keepdim=True) / 127.0)
        data = _divided(blocks, half.float()).clamp_(-127, 127).to(torch.int8)
        return torch.cat((half.view(torch.uint8), data.view(torch.uint8)), -1).flatten(1), None, None
    size = min(group, -(-k // 64) * 64) if type == "int4" else 32
    offsets = type == "int4" and not symmetric
    # The last group is filled up so that its range does not grow, or with what takes no part in the error.
    filling = weight[:, -1:] if offsets else weight.new_zeros(features, 1)
    grouped = torch.cat((weight, filling.expand(features, -k % size)), 1).view(features, -(-k // size), size)
    if offsets:
        return _with_offset(grouped, k)
    best, half = _best(grouped)
    values = (best.flatten(1)[:, :k] + 8.0).to(torch.uint8)
    if type == "int4":
        return _in_panels(values, half.squeeze(-1), None)
    blocks = values.view(features, k // 32, 2, 16)
    blocks = blocks[:, :, 0] | blocks[:, :, 1] << 4
    return torch.cat((half.view(torch.uint8), blocks), -1).flatten(1), None, None


def _in_panels(values: Tensor, scale: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of features of int4: data, scale and offset."""
    data = side_by_side(packed_halves(values), 4).flatten(1)
    return data, side_by_side(scale).squeeze(-1), None if offset is None else side_by_side(offset).squeeze(-1)


def _best(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Values from -8 to 7 of (features, groups, size) weights, and scales (features, groups, 1) float16."""
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    farthest = torch.where(-low > high, low, high)  # it becomes -8, so its side has one value more
    chosen = values = error = None
    for shrink in _SHRINKS:
        half = _float16(farthest * (-shrink / 8.0))
        tried = _divided(grouped, half.float()).clamp_(-8, 7)
        found = (tried * half.float() - grouped).square_().sum(-1, keepdim=True)
        if error is None or values is None or chosen is None:
            chosen, values, error = half, tried, found
            continue
        better = found < error
        values, chosen = torch.where(better, tried, values), torch.where(better, half, chosen)
        error = torch.where(better, found, error)
    assert values is not None
    assert chosen is not None
    return values, chosen


def _with_offset(grouped: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    half = _float16((high - low) / 15.0)
    values = _divided(grouped - low, half.float()).clamp_(0, 15).flatten(1)[:, :k]
    offset = low + 8.0 * half.float()
    return _in_panels(values.to(torch.uint8), half.squeeze(-1), offset.squeeze(-1))


def _divided(values: Tensor, scale: Tensor) -> Tensor:
    """The nearest whole numbers of values / scale; 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, values / scale).round_()


def _float16(scale: Tensor) -> Tensor:
    half = scale.half()
    if not bool(half.isfinite().all()):
        raise ValueError(f"weight: its largest scale, {scale.abs().max().item():g}, is beyond float16")
    return half
