"""The activations of `swiglu` by name."""

from __future__ import annotations

from typing import Any

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
"""With their numbers in the C interface."""


def check_activation(name: Any) -> None:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation = {name!r}: must be 'silu', 'gelu_tanh' or 'gelu'")
