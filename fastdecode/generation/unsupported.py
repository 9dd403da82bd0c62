"""What fastdecode does not decode itself and transformers can: the error that says so, and handing such a call over."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from transformers.utils import logging

from fastdecode.ops.scalars import shown

logger = logging.get_logger(__name__)

FALLBACKS = ("transformers", "error")


class Unsupported(ValueError):
    """fastdecode does not decode this, and transformers' own loop can. ``reason``: a clause without an end.
    ``advice``: what to change so that fastdecode does.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason, self.advice = reason, advice

    def refused(self, text_only: bool) -> ValueError:
        """The error of a door that cannot hand a call over. Python prints its note below a traceback; the command line
        and the server, where `fastdecode.generate` is no way out, show the error alone.
        """
        error = ValueError(str(self))
        if text_only:
            error.add_note("fastdecode.generate hands such a call of text to transformers")
        return error


@dataclass(frozen=True)
class HandedOver:
    """What `explain` returns for a call that transformers' own loop would decode: ``reason`` says why."""

    reason: str
    mode: str = "text-only"
    decoder: str = "transformers' own loop"
    decoded_by: str = "transformers"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return f"mode              {self.mode}\ndecoder           {self.decoder}, because {self.reason}"


def check_fallback(fallback: Any) -> None:
    """``ValueError`` unless ``fallback`` is one of `FALLBACKS`."""
    if fallback not in FALLBACKS:
        raise ValueError(
            f"fallback={shown(fallback)}: give 'transformers', which decodes what fastdecode does not, or 'error'"
        )


def check_hand_over(error: Unsupported, fallback: str, text_only: bool, given: list[str]) -> None:
    """Raises what stands against handing a call over: ``error`` itself in a mode that draws or with
    ``fallback="error"``; ``ValueError`` if options were ``given`` that transformers does not have.
    """
    if not text_only or fallback == "error":
        raise error
    if given:
        names = " and ".join(given)
        raise ValueError(f"{error}; or leave out {names}: then transformers' own loop decodes this call") from None


def say_once(reason: str) -> None:
    """Log that a call is handed over, once per reason."""
    logger.warning_once(f"transformers' own loop decodes this call, because {reason}")
