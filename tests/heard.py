"""A streamer of transformers that keeps what it hears."""

from typing import Any


class Heard:
    """``puts``: what it was given, as lists; ``None`` at an end."""

    def __init__(self) -> None:
        self.puts: list[Any] = []

    def put(self, value: Any) -> None:
        self.puts.append(value.tolist())

    def end(self) -> None:
        self.puts.append(None)
