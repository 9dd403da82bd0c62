"""One configuration of a kernel, for compile.py to compile without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DIVISIBLE = ":16"
"""Behind the type of an integer: a multiple of 16. Addresses are always compiled as such."""


@dataclass(frozen=True)
class Case:
    """A kernel, the Triton types of its arguments by name (types of other names are ignored), its constexprs, its
    launch options, and the architectures that it is for.
    """

    kernel: Any
    types: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    arches: tuple[int, ...] = (80, 90)

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def configuration(self) -> str:
        """Text that distinguishes it from the other cases of its kernel."""
        stored = [name for name in ("logits", "weight", "weight0", "keys") if name in self.kernel.arg_names]
        parts = [self.types[name].removeprefix("*") for name in stored]
        parts += [name if value is True else f"{name}={value}" for name, value in self.constexprs.items() if value]
        return " ".join([*parts, f"warps={self.options['num_warps']}"])
