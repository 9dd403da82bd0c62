"""Options that come in layers: what is usual, what a job says, what a row says. Later ones go before earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdecode.generation.by_recipe import SAMPLING
from fastdecode.guidance import Guidance

BOTH = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Options that set text and pictures alike, unless ``text`` or ``image`` of the same layer says otherwise."""

GUIDANCE = ("guidance", "guidance_scale")
"""Two names of one thing: a layer that has one replaces both."""

ABSENT = {"text-only": "image", "image-only": "text"}
"""By mode: the modality that it has none of."""

MODE = "multimodal_generation_mode"

USUAL: Mapping[str, Any] = {
    MODE: "interleaved-text-image",
    "guidance": Guidance.instruct(text=1.5, image=1.2),
    **{modality: {"do_sample": True, "temperature": 0.7, "top_p": 0.9} for modality in SAMPLING},
}
"""What rows without a task have if nothing else is said, as ``fastdecode generate`` has it."""


def options_of_row(
    usual: Mapping[str, Any], job: Mapping[str, Any], row: Mapping[str, Any], mode: str
) -> tuple[dict[str, Any], str]:
    """The options of a row, and the mode that it is decoded in.

        usual     what it has if nothing else is said
        job, row  options
        mode      if none of them names one

    What ``usual`` and the job say of a modality that the mode does not have is left out, since the job may have rows
    of other modes. ``ValueError`` if the row itself says it.
    """
    options = layered(usual, job, row)
    found: str = options.get(MODE, mode)
    absent = ABSENT.get(found)
    if absent is not None:
        if absent in row:
            words = "how text is sampled, and image-only writes none"
            words = "how pictures are sampled, and text-only draws none" if absent == "image" else words
            raise ValueError(f"{absent} says {words}: leave it out, or choose another mode")
        options.pop(absent, None)
    if found == "text-only" and not any(name in layer for name in GUIDANCE for layer in (job, row)):
        options.pop("guidance", None)
    return options, found


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """All layers as one. Sampling parameters are replaced one by one, and stand in ``text`` and ``image``."""
    found: dict[str, Any] = {}
    for layer in layers:
        if any(name in layer for name in GUIDANCE):
            for name in GUIDANCE:
                found.pop(name, None)
        common = {name: layer[name] for name in BOTH if name in layer}
        for modality in SAMPLING:
            own = {**common, **(layer.get(modality) or {})}
            if own:
                found[modality] = {**found.get(modality, {}), **own}
        found |= {name: value for name, value in layer.items() if name not in (*BOTH, *SAMPLING)}
    return found
