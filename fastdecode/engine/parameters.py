"""Sampling parameters of one modality of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from fastdecode.ops.scalars import LARGEST_FLOAT, shown

SMALLEST_FLOAT = 2.0**-149
"""Of float32, in which the sampler computes."""

SMALLEST_TEMPERATURE = 1e-30
"""Logits that are divided by less can overflow."""


@dataclass(frozen=True)
class Sampling:
    """Parameters of one modality, in the units of `fastdecode.ops.sample`. ``temperature`` 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def override(self, values: Mapping[str, Any], name: str, do_sample: bool) -> Sampling:
        """A copy with ``values`` (a user's ``text=`` or ``image=``) replaced. ``ValueError`` names what is wrong.

        A modality samples if the call does, or if ``values`` ask for it (``do_sample=True``, or a temperature, top_k,
        top_p or min_p).
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"{name}={shown(values)}: give a dict of sampling parameters, such as {name}=dict(top_p=0.9)"
            )
        known = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample"}
        for key in values:
            if key not in known:
                raise ValueError(f"{name}[{key!r}] is not a sampling parameter; known are {', '.join(sorted(known))}")
        asked = any(values.get(key) is not None for key in ("temperature", "top_k", "top_p", "min_p"))
        wants = values.get("do_sample")
        if wants is not None and not isinstance(wants, bool):
            raise ValueError(f"{name}['do_sample']={wants!r}: give True or False")
        samples = (do_sample or asked) if wants is None else bool(wants)
        mine = {key: value for key, value in values.items() if key != "do_sample" and value is not None}
        merged = replace(self, **mine).checked(f"{name}.")
        if not samples:
            merged = replace(merged, temperature=0.0)
        elif self.temperature == 0.0 and "temperature" not in mine:
            merged = replace(merged, temperature=1.0)
        return merged

    def checked(self, where: str = "") -> Sampling:
        """Return self. ``ValueError`` names a parameter that is out of range."""
        rules = {
            "temperature": (0.0, LARGEST_FLOAT, "at least 0, and finite"),
            "top_k": (0, math.inf, "0 (off) or a whole number above it"),
            "top_p": (0.0, 1.0, "between 0 and 1"),
            "min_p": (0.0, 1.0, "between 0 and 1"),
            "repetition_penalty": (SMALLEST_FLOAT, LARGEST_FLOAT, "more than 0, and finite"),
        }
        for key, (low, high, right) in rules.items():
            value = getattr(self, key)
            kind = Integral if key == "top_k" else Real
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{where}{key}={shown(value)} is out of range: it must be {right}")
        if 0.0 < self.temperature < SMALLEST_TEMPERATURE:
            right = f"0 (the likeliest token), or at least {SMALLEST_TEMPERATURE:g}"
            raise ValueError(f"{where}temperature={self.temperature!r} is out of range: it must be {right}")
        return replace(self, top_k=min(int(self.top_k), 2**31 - 1))  # more is off, as in transformers
