"""What the server takes from strangers, and how it refuses the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields


class Refused(Exception):
    """A request is not served: the HTTP ``status``, one sentence that says why, and headers of the answer."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, and of how many may wait.

        body_bytes         of the JSON, pictures in base64 included
        prompt_characters  of the prompt
        images             pictures of a prompt
        image_pixels       width times height of each
        new_tokens         of ``max_new_tokens``; None: as many as the model's context holds
        waiting            when more requests than these wait for rows or pages, others are told to come back
        seconds            from the arrival of a request to its end; it is aborted then

    Raises ValueError for a limit that is not above zero (``images`` and ``waiting`` may be 0).
    """

    body_bytes: int = 16 << 20
    prompt_characters: int = 4000
    images: int = 4
    image_pixels: int = 1 << 24
    new_tokens: int | None = None
    waiting: int = 64
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "new_tokens" and value is None:
                continue
            kinds = (int, float) if name == "seconds" else (int,)
            lowest = 0 if name in ("images", "waiting") else 1
            fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
            if not fits or (value <= 0 if name == "seconds" else value < lowest):
                what = "a number above 0" if name == "seconds" else f"a whole number of at least {lowest}"
                raise ValueError(f"the limit {name} is {value!r}: it must be {what}")
