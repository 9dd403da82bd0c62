"""placeholder until merged"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenRules:
    bias: tuple[tuple[int, float], ...] = ()

    def phase(self, length: int) -> None:
        return None

    def next_change(self, length: int) -> int | None:
        return None

    def shifted(self, padding: int) -> TokenRules:
        return self
