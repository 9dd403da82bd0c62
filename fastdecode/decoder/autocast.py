"""What `torch.autocast` is at a moment, so that a decoder computes with what it was made under."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch


class Autocast(NamedTuple):
    """Whether autocast is on for a type of device in this thread, and to which dtype (None where it is off)."""

    device: str
    dtype: torch.dtype | None

    @classmethod
    def now(cls, device: torch.device) -> Autocast:
        on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        return cls(device.type, torch.get_autocast_dtype(device.type) if on else None)

    @property
    def on(self) -> bool:
        return self.dtype is not None

    def context(self) -> AbstractContextManager[Any]:
        """Computes as here, whatever the caller's autocast is."""
        return torch.autocast(self.device, self.dtype, enabled=self.on)

    def __str__(self) -> str:
        return f"torch.autocast to {str(self.dtype).removeprefix('torch.')}" if self.on else "no torch.autocast"
