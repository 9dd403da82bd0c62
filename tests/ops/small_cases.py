"""Small weights of every type, and what they are in float64, decoded from the words of fastdecode.h by numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastdecode.ops import SmallWeights, round_to_int8

KINDS = {
    "int8": ("int8", 0, False),
    "int8x16": ("int8x16", 0, False),
    "int4": ("int4", 32, False),
    "int4 with offsets": ("int4", 32, True),
    "int4 of 64": ("int4", 64, False),
    "int4 of 128 with offsets": ("int4", 128, True),
    "q8_0": ("q8_0", 0, False),
    "q4_0": ("q4_0", 0, False),
}
"""Names to type, group, and whether there are offsets."""

_BYTES = {"int8": (1, 1), "int8x16": (32, 32), "int4": (32, 16), "q8_0": (32, 34), "q4_0": (32, 18)}
_IN_PANELS = ("int8x16", "int4")


def small(kind: str, features: int, k: int, seed: int = 0) -> SmallWeights:
    """Random bytes, the extreme ones among them, and scales of both signs."""
    type, group, with_offset = KINDS[kind]
    random = np.random.default_rng(seed)
    block, size = _BYTES[type]
    panels = -(-features // 16)
    shape = (panels, 16 * (k // block * size)) if type in _IN_PANELS else (features, k // block * size)
    data = random.integers(0, 256, shape, dtype=np.uint8)
    if type == "int8x16":
        scale = torch.from_numpy(random.normal(0.0, 0.02, (panels, 16)).astype(np.float32))
        return SmallWeights(type, k, torch.from_numpy(data.view(np.int8)), scale, features=features)
    if type == "int8":
        scale = random.normal(0.0, 0.02, features).astype(np.float32)
        return SmallWeights(type, k, torch.from_numpy(data.view(np.int8)), torch.from_numpy(scale))
    if type == "int4":
        groups = -(-k // group)
        scale = torch.from_numpy(random.normal(0.0, 0.1, (panels, groups, 16)).astype(np.float16))
        offset = torch.from_numpy(random.normal(0.0, 0.3, (panels, groups, 16)).astype(np.float32))
        return SmallWeights(type, k, torch.from_numpy(data), scale, offset if with_offset else None, group, features)
    blocks = data.reshape(features, k // 32, size)
    blocks[..., :2] = random.normal(0.0, 0.1, blocks.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
    return SmallWeights(type, k, torch.from_numpy(data))


def with_scales(weights: SmallWeights, value: float) -> SmallWeights:
    """The same values with this scale everywhere."""
    if weights.scale is not None:
        return replace(weights, scale=torch.full_like(weights.scale, value))
    data = weights.data.clone().view(len(weights), -1, _BYTES[weights.type][1])
    data[..., :2] = torch.tensor([value]).half().view(torch.uint8)
    return replace(weights, data=data.view(len(weights), -1))


def with_values(weights: SmallWeights, byte: int) -> SmallWeights:
    """The same scales with this byte as each value, or pair of values."""
    data = weights.data.clone()
    if weights.type in ("q8_0", "q4_0"):
        data.view(len(weights), -1, _BYTES[weights.type][1])[..., 2:] = byte
    else:
        data.view(torch.uint8)[:] = byte
    return replace(weights, data=data)


def with_feature(weights: SmallWeights, other: SmallWeights, feature: int) -> SmallWeights:
    """``weights`` with this feature of ``other``."""
    parts = {}
    for name in ("data", "scale", "offset"):
        part, new = getattr(weights, name), getattr(other, name)
        if part is None:
            continue
        part = part.clone()
        if weights.type in _IN_PANELS:
            together = 4 if name == "data" else 1
            shape = (len(part), -1, 16, together)
            part.view(shape)[feature // 16, :, feature % 16] = new.view(shape)[feature // 16, :, feature % 16]
        else:
            part[feature] = new[feature]
        parts[name] = part
    return replace(weights, **parts)


def decoded(weights: SmallWeights) -> tuple[np.ndarray, np.ndarray]:
    """Value times scale, and offset, both (features, k) float64. A weight is their sum."""
    features, k = weights.shape
    found, offsets = np.zeros((features, k)), np.zeros((features, k))
    data = weights.data.numpy()
    block, size = _BYTES[weights.type]
    if weights.type in _IN_PANELS:
        return _decoded_panels(weights, data)
    for f in range(features):
        for i in range(k):
            at, place = i // block * size, i % block
            if weights.type == "int8":
                found[f, i] = float(data[f, i]) * float(weights.scale[f])
                continue
            if weights.type == "q8_0":
                value = float(data[f, at + 2 + place].view(np.int8))
            else:
                byte = int(data[f, at + size - 16 + place % 16])
                value = (byte % 16 if place < 16 else byte // 16) - 8.0
            found[f, i] = value * float(data[f, at : at + 2].copy().view(np.float16)[0])
    return found, offsets


def _decoded_panels(weights: SmallWeights, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, k = weights.shape
    found, offsets = np.zeros((features, k)), np.zeros((features, k))
    for f in range(features):
        panel, place = (weights.first + f) // 16, (weights.first + f) % 16
        for i in range(k):
            if weights.type == "int8x16":
                value = float(data[panel, 64 * (i // 4) + 4 * place + i % 4])
                found[f, i] = value * float(weights.scale[panel, place])
                continue
            byte = int(data[panel, 64 * (i // 8) + 4 * place + i % 4])
            group = i // weights.group
            value = (byte % 16 if i % 8 < 4 else byte // 16) - 8.0
            found[f, i] = value * float(weights.scale[panel, group, place])
            if weights.offset is not None:
                offsets[f, i] = float(weights.offset[panel, group, place])
    return found, offsets


def product(x: Tensor, weights: SmallWeights, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x · weightsᵀ + bias of the rounded x in float64, and the sums of the terms' magnitudes."""
    rounded = round_to_int8(x).double()
    scaled, offset = (torch.from_numpy(part) for part in decoded(weights))
    exact = rounded @ (scaled + offset).T
    size = rounded.abs() @ (scaled.abs() + offset.abs()).T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    return exact, size


def assert_close(got: Tensor, exact: Tensor, size: Tensor) -> None:
    """Of float32 sums, whose terms have a few roundings each: the largest relative error of them all."""
    assert got.dtype == torch.float32
    assert got.shape == exact.shape
    assert got.isfinite().all()
    assert bool(((got.double() - exact).abs() <= 2e-6 * size).all()), ((got - exact).abs() / size).max()
