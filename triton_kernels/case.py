"""One configuration in which a kernel is shipped, to be compiled without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments by name (more may be named), its constants and launch options."""

    kernel: Any
    types: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def configuration(self) -> str:
        """What tells it from the kernel's other cases."""
        stored = [name for name in ("logits", "weight", "weight0", "keys") if name in self.kernel.arg_names]
        parts = [self.types[name].removeprefix("*") for name in stored]
        parts += [name if value is True else f"{name}={value}" for name, value in self.constexprs.items() if value]
        return " ".join([*parts, f"warps={self.options['num_warps']}"])
