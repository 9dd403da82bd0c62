"""Weights of 8 and 4 bits, which the kernels read as they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.checks import check_stored, check_tensor
from fastdecode.ops.panels import PANEL, features_of, packed_halves, padded, side_by_side, unpacked_halves
from fastdecode.ops.scalars import whole_number


class SmallType(NamedTuple):
    """``number``: in the C interface. ``block`` values of a feature take ``bytes``; a feature has whole blocks only.
    ``panel``: features that lie side by side.
    """

    number: int
    block: int
    bytes: int
    panel: int = 1


SMALL_TYPES = {
    "int8": SmallType(3, 1, 1),
    "int8x16": SmallType(7, 32, 32, PANEL),
    "int4": SmallType(4, 32, 16, PANEL),
    "q8_0": SmallType(5, 32, 34),
    "q4_0": SmallType(6, 32, 18),
}
"""The ways of storing them, by their names."""


ROUNDED_BLOCK = 256
"""Values of x that share a factor when they are rounded to int8."""


@dataclass(frozen=True, eq=False)
class SmallWeights:
    """A matrix (features, k) of small weights, dense on one device.

        type      "int8" | "int8x16" | "int4" | "q8_0" | "q4_0"
        k         values of a feature: for all but int8 a multiple of 32
        data      int8: (features, k) int8. q8_0, q4_0: the bytes of GGUF's blocks, (features, k / 32 · 34) or
                  (features, k / 32 · 18) uint8. int8x16 and int4 lie in panels of 16 features, (panels, 16 · k) int8 or
                  (panels, 8 · k) uint8: 64 bytes hold 4 bytes of each feature, which are 4 values of int8x16, or of
                  int4 4 values in their low halves and the next 4 in their high halves
        scale     int8: (features,) float32. int8x16: (panels, 16) float32. int4: (panels, ⌈k / group⌉, 16) float16.
                  Else None
        offset    int4: (panels, ⌈k / group⌉, 16) float32, or None. Else None
        group     int4: values that share a scale, 32 or a multiple of 64. Else 0
        features  how many there are. None: all that are stored, after ``first``
        first     in panels: features of the first panel that are no part of the matrix, 0 to 15. Else 0

    A weight is value · scale, with value − 8 in place of the value for half bytes, plus the offset if there is one.
    The kernels are fastest with panels. ``ValueError`` names what is wrong.
    """

    type: str
    k: int
    data: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    group: int = 0
    features: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type not in SMALL_TYPES:
            raise ValueError(f"type = {self.type!r}: must be one of {', '.join(SMALL_TYPES)}")
        _, block, size, panel = SMALL_TYPES[self.type]
        object.__setattr__(self, "k", whole_number("k", self.k))
        object.__setattr__(self, "group", whole_number("group", self.group))
        if self.k < 1 or self.k % block:
            rule = "at least 1" if block == 1 else f"a multiple of {block} for {self.type} weights"
            raise ValueError(f"k = {self.k}: must be {rule}")
        if not isinstance(self.data, Tensor):
            raise ValueError(f"data: must be a tensor, got {type(self.data).__name__}")
        dtype = torch.int8 if self.type.startswith("int8") else torch.uint8
        rows = "features" if panel == 1 else "panels"
        check_stored("data", self.data, f"{rows}, bytes", self.data.device, "data", (dtype,))
        if self.data.shape[1] != self.k // block * size * panel:
            shape = f"({rows}, {self.k // block * size * panel})"
            raise ValueError(f"data.shape = {tuple(self.data.shape)}: must be {shape} for k = {self.k} of {self.type}")
        self._check_features(panel)
        self._check_scale()

    def _check_features(self, panel: int) -> None:
        first, stored = whole_number("first", self.first), len(self.data) * panel
        if not 0 <= first < panel:
            raise ValueError(f"first = {first}: must be in [0, {panel}) for {self.type} weights")
        features = max(stored - first, 0) if self.features is None else whole_number("features", self.features)
        if features < 0 or len(self.data) != (-(-(first + features) // panel) if features else 0):
            raise ValueError(
                f"features = {features}, first = {first}: data.shape = {tuple(self.data.shape)} has {stored} features"
            )
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "features", features)

    def _check_scale(self) -> None:
        stored, device = len(self.data), self.data.device
        if self.type == "int4":
            if not 32 <= self.group < 2**31 or (self.group != 32 and self.group % 64):
                raise ValueError(f"group = {self.group}: must be 32 or a multiple of 64 for int4 weights")
            shape: tuple[int, ...] = (stored, -(-self.k // self.group), PANEL)
            dtype = torch.float16
        else:
            shape, dtype = ((stored,) if self.type == "int8" else (stored, PANEL)), torch.float32
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
        return len(self), self.k

    @property
    def nbytes(self) -> int:
        """Bytes of data, scale and offset."""
        parts = (self.data, self.scale, self.offset)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def __len__(self) -> int:
        assert self.features is not None
        return self.features

    def to(self, device: torch.device | str, copy: bool = False) -> SmallWeights:
        """The same on a device; with ``copy`` in memory of its own. Panels of int8 are for CPUs: elsewhere they become
        int8.
        """
        if self.type == "int8x16" and torch.device(device).type != "cpu":
            return self.rows().to(device)
        data, scale, offset = (
            None if part is None else part.to(device, copy=copy) for part in (self.data, self.scale, self.offset)
        )
        assert data is not None
        return replace(self, data=data, scale=scale, offset=offset)

    def __getitem__(self, features: slice) -> SmallWeights:
        """These features, without copying them."""
        try:
            start, stop, step = features.indices(len(self))
        except (AttributeError, TypeError):
            step = 0
        if step != 1:
            raise ValueError(f"features = {features}: must be a slice of whole numbers with steps of 1")
        count, panel = max(stop - start, 0), SMALL_TYPES[self.type].panel
        lo = self.first + start
        which = slice(lo // panel, -(-(lo + count) // panel) if count else lo // panel)
        return self._taken(which, count, lo % panel)

    def of(self, features: Tensor) -> SmallWeights:
        """A copy of these features (n,) int64, each in [0, features)."""
        if not isinstance(features, Tensor) or features.dtype != torch.int64 or features.dim() != 1:
            raise ValueError(f"features: must be (n,) int64, got {features!r}")
        outside = features[(features < 0) | (features >= len(self))]
        if len(outside):
            raise ValueError(f"features: has {int(outside[0])}; must be in [0, {len(self)})")
        if SMALL_TYPES[self.type].panel == 1:
            return self._taken(features, len(features), 0)
        data = side_by_side(self._in_rows(self.data, features, 4), 4).flatten(1)
        assert self.scale is not None
        scale, offset = (
            None if part is None else side_by_side(self._in_rows(part, features, 1)).view(len(data), *part.shape[1:])
            for part in (self.scale, self.offset)
        )
        return replace(self, data=data, scale=scale, offset=offset, features=len(features), first=0)

    def _taken(self, which: slice | Tensor, features: int, first: int) -> SmallWeights:
        data, scale, offset = (None if part is None else part[which] for part in (self.data, self.scale, self.offset))
        assert data is not None
        return replace(self, data=data, scale=scale, offset=offset, features=features, first=first)

    def _in_rows(self, panels: Tensor, features: Tensor | None, together: int) -> Tensor:
        """A part that lies in panels, feature by feature: these features, or all."""
        if features is None:
            features = torch.arange(len(self), device=panels.device)
        m = panels.shape[1:].numel() // (PANEL * together)
        return features_of(panels.view(len(panels), m, PANEL, together), features + self.first)

    def rows(self) -> SmallWeights:
        """int8x16 as int8: a copy, feature by feature."""
        if self.type != "int8x16":
            raise ValueError(f"type = {self.type!r}: must be 'int8x16'")
        assert self.scale is not None
        scale = self._in_rows(self.scale, None, 1).flatten()
        return SmallWeights("int8", self.k, self._in_rows(self.data, None, 4), scale)

    def panels(self) -> SmallWeights:
        """The same weights in panels, as a copy: int8 as int8x16, q4_0 as int4. Those that have no panels, which are
        q8_0 and int8 where k is no multiple of 32, and those that lie in panels already, are returned as they are.
        """
        if self.type == "int8" and self.k % 32 == 0:
            assert self.scale is not None
            data = side_by_side(self.data, 4).flatten(1)
            scale = padded(self.scale).view(len(data), PANEL)
            return SmallWeights("int8x16", self.k, data, scale, features=len(self))
        if self.type == "q4_0":
            blocks = self.data.view(len(self), self.k // 32, SMALL_TYPES["q4_0"].bytes)
            halves = torch.cat((blocks[..., 2:] & 15, blocks[..., 2:] >> 4), -1).view(len(self), self.k)
            scale = blocks[..., :2].contiguous().view(torch.float16).view(len(self), self.k // 32)
            return int4_weights(halves, scale, None, 32)
        return self

    def values(self) -> Tensor:
        """The weights (features, k) in float32, exactly."""
        features = len(self)
        if self.type == "int8":
            assert self.scale is not None
            return self.data.float() * self.scale[:, None]
        if self.type == "int8x16":
            return self.rows().values()
        if self.type == "int4":
            assert self.scale is not None
            halves = unpacked_halves(self._in_rows(self.data, None, 4)).float() - 8.0
            number = torch.arange(self.k, device=self.data.device) // self.group
            values = halves * self._in_rows(self.scale, None, 1).float()[:, number]
            return values if self.offset is None else values + self._in_rows(self.offset, None, 1)[:, number]
        blocks = self.data.view(features, self.k // 32, SMALL_TYPES[self.type].bytes)
        scale = blocks[..., :2].contiguous().view(torch.float16).float()
        whole = blocks[..., 2:].contiguous()
        values = whole.view(torch.int8).float() if self.type == "q8_0" else _halves(whole)
        return (values * scale).view(features, self.k)


def int4_weights(values: Tensor, scale: Tensor, offset: Tensor | None, group: int) -> SmallWeights:
    """int4 of half bytes ``values`` (features, k) uint8 from 0 to 15, whose weights are (value − 8) · scale + offset:
    ``scale`` (features, ⌈k / group⌉) float16, and ``offset`` the same in float32, or None.
    """
    features, k = values.shape
    data = side_by_side(packed_halves(values), 4).flatten(1)
    found = None if offset is None else side_by_side(offset).squeeze(-1)
    return SmallWeights("int4", k, data, side_by_side(scale).squeeze(-1), found, group, features)


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
