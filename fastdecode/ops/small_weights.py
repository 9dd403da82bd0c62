"""Weights of 8 and 4 bits, which the kernels read as they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.checks import check_stored, check_tensor
from fastdecode.ops.scalars import whole_number


class SmallType(NamedTuple):
    """``number``: in the C interface. ``block`` values of a row take ``bytes``; a row has whole blocks only."""

    number: int
    block: int
    bytes: int


SMALL_TYPES = {
    "int8": SmallType(3, 1, 1),
    "int4": SmallType(4, 32, 16),
    "q8_0": SmallType(5, 32, 34),
    "q4_0": SmallType(6, 32, 18),
}
"""The ways of storing them, by their names."""


ROUNDED_BLOCK = 256
"""Values of x that share a factor when they are rounded to int8."""


@dataclass(frozen=True, eq=False)
class SmallWeights:
    """A matrix (features, k) of small weights, dense on one device.

        type     "int8" | "int4" | "q8_0" | "q4_0"
        k        values of a feature: for int4, q8_0 and q4_0 a multiple of 32
        data     int8: (features, k) int8. int4: (features, k / 2) uint8; 16 bytes hold 32 values, the byte i value i in
                 its low half and value i + 16 in its high half. q8_0, q4_0: the bytes of GGUF's blocks, (features,
                 k / 32 · 34) or (features, k / 32 · 18) uint8
        scale    int8: (features,) float32. int4: (features, ⌈k / group⌉) float16. Else None
        offset   int4: (features, ⌈k / group⌉) float32, or None. Else None
        group    int4: values that share a scale, 32 or a multiple of 64. Else 0

    A weight is value · scale, with value − 8 in place of the value for half bytes, plus the offset if there is one.
    ``ValueError`` names what is wrong.
    """

    type: str
    k: int
    data: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    group: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type not in SMALL_TYPES:
            raise ValueError(f"type = {self.type!r}: must be one of {', '.join(SMALL_TYPES)}")
        _, block, size = SMALL_TYPES[self.type]
        object.__setattr__(self, "k", whole_number("k", self.k))
        object.__setattr__(self, "group", whole_number("group", self.group))
        if self.k < 1 or self.k % block:
            rule = "at least 1" if block == 1 else f"a multiple of {block} for {self.type} weights"
            raise ValueError(f"k = {self.k}: must be {rule}")
        if not isinstance(self.data, Tensor):
            raise ValueError(f"data: must be a tensor, got {type(self.data).__name__}")
        dtype = torch.int8 if self.type == "int8" else torch.uint8
        check_stored("data", self.data, "features, bytes", self.data.device, "data", (dtype,))
        if self.data.shape[1] != self.k // block * size:
            shape = f"(features, {self.k // block * size})"
            raise ValueError(f"data.shape = {tuple(self.data.shape)}: must be {shape} for k = {self.k} of {self.type}")
        self._check_scale()

    def _check_scale(self) -> None:
        features, device = self.data.shape[0], self.data.device
        if self.type == "int4":
            if self.group != 32 and (self.group < 64 or self.group % 64):
                raise ValueError(f"group = {self.group}: must be 32 or a multiple of 64 for int4 weights")
            shape: tuple[int, ...] = (features, -(-self.k // self.group))
            dtype = torch.float16
        else:
            shape, dtype = (features,), torch.float32
            if self.group or self.offset is not None:
                raise ValueError(f"group and offset: are for int4 weights, not for {self.type}")
        if self.type in ("q8_0", "q4_0"):
            if self.scale is not None:
                raise ValueError(f"scale: must be None for {self.type} weights, whose blocks hold theirs")
            return
        if self.scale is None:
            raise ValueError(f"scale = None: must be {shape} {dtype} for {self.type} weights")
        object.__setattr__(self, "scale", check_tensor("scale", self.scale, shape, dtype, device, "data"))
        if self.offset is not None:
            offset = check_tensor("offset", self.offset, shape, torch.float32, device, "data")
            object.__setattr__(self, "offset", offset)

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.k

    @property
    def nbytes(self) -> int:
        """Bytes of data, scale and offset."""
        parts = (self.data, self.scale, self.offset)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def __len__(self) -> int:
        return self.data.shape[0]

    def to(self, device: torch.device | str, copy: bool = False) -> SmallWeights:
        """The same on a device; with ``copy`` in memory of its own."""
        data, scale, offset = (
            None if part is None else part.to(device, copy=copy) for part in (self.data, self.scale, self.offset)
        )
        assert data is not None
        return replace(self, data=data, scale=scale, offset=offset)

    def __getitem__(self, features: slice) -> SmallWeights:
        """These features, without copying them."""
        return self._taken(features)

    def of(self, features: Tensor) -> SmallWeights:
        """A copy of these features (n,) int64."""
        return self._taken(features)

    def _taken(self, which: slice | Tensor) -> SmallWeights:
        data, scale, offset = (None if part is None else part[which] for part in (self.data, self.scale, self.offset))
        assert data is not None
        return replace(self, data=data, scale=scale, offset=offset)

    def values(self) -> Tensor:
        """The weights (features, k) in float32, exactly."""
        features = len(self)
        if self.type == "int8":
            assert self.scale is not None
            return self.data.float() * self.scale[:, None]
        if self.type == "int4":
            assert self.scale is not None
            halves = _halves(self.data.view(features, self.k // 32, 16)).view(features, self.k)
            number = torch.arange(self.k, device=self.data.device) // self.group
            values = halves * self.scale.float()[:, number]
            return values if self.offset is None else values + self.offset[:, number]
        blocks = self.data.view(features, self.k // 32, SMALL_TYPES[self.type].bytes)
        scale = blocks[..., :2].contiguous().view(torch.float16).float()
        whole = blocks[..., 2:].contiguous()
        values = whole.view(torch.int8).float() if self.type == "q8_0" else _halves(whole)
        return (values * scale).view(features, self.k)


def _halves(data: Tensor) -> Tensor:
    """(…, 32) float32 values from -8 to 7 of (…, 16) bytes."""
    return torch.cat((data & 15, data >> 4), -1).float() - 8.0


def round_to_int8(x: Tensor) -> Tensor:
    """``x`` (rows, k) float32 as the CPU kernels round it for small weights.

    In each block of 256 values (the last may have fewer) the values become multiples of the block's largest magnitude /
    127, the nearest, ties to even. A block whose largest magnitude is below 2⁻¹⁰⁰ becomes zeros; one with infinity or
    NaN becomes NaN.
    """
    rows, k = x.shape
    blocks = torch.nn.functional.pad(x, (0, -k % ROUNDED_BLOCK)).view(rows, -(-k // ROUNDED_BLOCK), ROUNDED_BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    zero, broken = most < 2.0**-100, ~most.isfinite()
    factor = torch.where(zero, 0.0, torch.full_like(most, 127.0) / most)  # 127.0 / most is rounded twice
    rounded = (blocks * factor).round() * (most / 127.0)
    rounded = torch.where(zero, 0.0, torch.where(broken, torch.nan, rounded))
    return rounded.flatten(1)[:, :k]
