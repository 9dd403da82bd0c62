"""Weights of 4 bits that lie feature by feature, as torchao stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdecode.ops.checks import FLOAT_DTYPES, check_dense, check_stored
from fastdecode.ops.scalars import whole_number


@dataclass(frozen=True, eq=False)
class Int4Rows:
    """A matrix (features, k) of weights of 4 bits, on one device. It is read as it lies.

        data    (features, k / 2) int8 | uint8: two signed values a byte, from −8 to 7, the one with the even number in
                the low half; k is a multiple of 32, and the first address is even
        scale   (⌈k / group⌉, features) float32 | bfloat16 | float16; its rows may be any distance apart
        offset  as the scale, of the same dtype and distance, or None
        group   values of a feature that share a scale and an offset: 32 or a multiple of 64

    A weight is value · scale + offset. ``ValueError`` names what is wrong. Weights of `SmallWeights`, in panels, are
    for CPUs; these are for GPUs.
    """

    data: Tensor
    scale: Tensor
    offset: Tensor | None
    group: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", whole_number("group", self.group))
        if not 32 <= self.group < 2**31 or (self.group != 32 and self.group % 64):
            raise ValueError(f"group = {self.group}: must be 32 or a multiple of 64")
        if not isinstance(self.data, Tensor):
            raise ValueError(f"data: must be a tensor, got {type(self.data).__name__}")
        dtype = torch.uint8 if self.data.dtype == torch.uint8 else torch.int8
        check_stored("data", self.data, "features, bytes", self.data.device, "data", (dtype,))
        if not self.k or self.k % 32:
            raise ValueError(f"data.shape = {tuple(self.data.shape)}: must be (features, k / 2), k a multiple of 32")
        if self.data.data_ptr() % 2 or self.data.storage_offset() % 2:
            raise ValueError("data: must begin at an even address, as .clone() does")
        self._check("scale", self.scale)
        if self.offset is not None:
            self._check("offset", self.offset)
            if self.offset.dtype != self.scale.dtype or self.offset.stride(0) != self.scale.stride(0):
                raise ValueError("offset: must have the dtype of scale, and rows as far apart")

    def _check(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: must be a tensor, got {type(value).__name__}")
        check_dense(name, value)
        shape = (-(-self.k // self.group), len(self.data))
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}.shape = {tuple(value.shape)}: must be {shape}")
        if value.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name}.dtype = {value.dtype}: must be float32, bfloat16 or float16")
        if value.device != self.data.device:
            raise ValueError(f"{name}.device = {value.device}: must be {self.data.device}, as for data")
        if shape[1] > 1 and value.stride(1) != 1:
            raise ValueError(f"{name}: numbers of a row must lie side by side, as .contiguous() makes them")

    @property
    def k(self) -> int:
        return 2 * self.data.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.data), self.k

    @property
    def tensors(self) -> list[Tensor]:
        """Data, scale and offset, if there is one."""
        return [part for part in (self.data, self.scale, self.offset) if part is not None]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, features: slice) -> Int4Rows:
        """These features, without copying them."""
        offset = None if self.offset is None else self.offset[:, features]
        return replace(self, data=self.data[features], scale=self.scale[:, features], offset=offset)

    def values(self) -> Tensor:
        """The weights (features, k) in float32."""
        packed = self.data.view(torch.uint8) ^ 0x88  # half bytes from 0 to 15
        values = torch.stack((packed & 15, packed >> 4), -1).flatten(1).float() - 8.0
        number = torch.arange(self.k, device=self.data.device) // self.group
        values = values * self.scale.float().t()[:, number]
        return values if self.offset is None else values + self.offset.float().t()[:, number]
