"""Words for error messages."""

from __future__ import annotations

from typing import Any


def kind_of(value: Any) -> str:
    """The type of a wrong argument with its article: "an int", "a list"."""
    name = type(value).__name__
    return f"{'an' if name[:1] in tuple('aeioAEIO') else 'a'} {name}"


def count_of(number: int, thing: str) -> str:
    """A number of things: "1 prompt", "2 prompts"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
