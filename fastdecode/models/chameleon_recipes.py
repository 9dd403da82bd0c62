"""The tasks of Chameleon and of its fine-tunes, as their own code does them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers.utils import logging

from fastdecode.guidance import FULL, IMAGES, Guidance, Stream
from fastdecode.models.recipe import PLAIN, Recipe, by_task

logger = logging.get_logger(__name__)

NAMES = ("Chameleon", "Anole", "AA-Chameleon", "Thinking with generated images", "blocks")
"""The checkpoints whose recipes are known."""

END = "<reserved08706>"
"""Ends a turn. The templates have it, and the processor is told not to add it: so a tokenizer makes the same prompt."""

OPTIONS = "facebookresearch/chameleon, Options of chameleon/inference/chameleon.py"
ANOLE = "GAIR-NLP/anole, chameleon/inference/chameleon.py"
THINKING = "GAIR-NLP/thinking-with-generated-images, inference.py"
BLOCKS = "fastdecode demo"

PICTURES = {
    "do_sample": True,
    "guidance": Guidance.instruct(text=3.0, image=1.2),
    "image": {"temperature": 0.7, "top_p": 0.9},
}
WORDS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}


def name_of(name_or_path: str) -> str | None:
    """Which of `NAMES` a checkpoint is, told by its name; None if nothing in it tells."""
    name = name_or_path.lower().replace("\\", "/")
    if re.search(r"twgi|thinking", name) or "anole-7b-hf-2025" in name:
        return "Thinking with generated images"
    if re.search(r"aa[-_]?chameleon", name):
        return "AA-Chameleon"
    if "anole" in name:
        return "Anole"
    if name.rstrip("/").endswith("blocks"):
        return "blocks"
    return "Chameleon" if "chameleon" in name else None


def recipes(model: Any, like: str | None = None) -> dict[str, Recipe]:
    """By task. ``like``: which of `NAMES` the checkpoint is; None: its name tells."""
    name = model.config.name_or_path
    family = like or name_of(name)
    if family is None:
        family = "Chameleon"
        logger.warning_once(
            f"the name of this checkpoint, {name!r}, does not tell which Chameleon it is, so its recipes are those of "
            f"Meta's Chameleon: for another one, give fastdecode.recipe like='Anole', or one of {', '.join(NAMES)}"
        )
    if family == "blocks":
        return _blocks()
    if family == "Thinking with generated images":
        return _thinking(family, model)
    source = {"Chameleon": OPTIONS, "Anole": ANOLE, "AA-Chameleon": f"{ANOLE}; AA-Chameleon publishes none"}[family]
    words = WORDS | ({} if family == "Chameleon" else {"temperature": 1.0})
    half = model.config.max_position_embeddings // 2
    image_only = {"multimodal_generation_mode": "image-only", **PICTURES}
    both = {"multimodal_generation_mode": "interleaved-text-image", **PICTURES, "text": words, "max_new_tokens": half}
    text = {"multimodal_generation_mode": "text-only", "do_sample": True, "text": words, "max_new_tokens": half}
    found = [
        _made(family, "text-to-image", "{text}" + END, image_only, source),
        _made(family, "interleaved", "{text}", both, source),
        _made(family, "caption", "<image>{text}" + END, text, source),
        _made(family, "chat", "{text}" + END, text, source),
    ]
    return by_task(found)


def _made(family: str, task: str, template: str, options: dict[str, Any], source: str, **more: Any) -> Recipe:
    return Recipe.of(family, task, template, options, source, processor=PLAIN, **more)


def _blocks() -> dict[str, Recipe]:
    drawn = {"do_sample": True, "image": {"temperature": 0.85, "top_p": 0.97}}
    careful = {"temperature": 0.7, "top_p": 0.9}
    three_way = Guidance.instruct(text=1.5, image=1.2)
    image_only = {"multimodal_generation_mode": "image-only", "guidance": Guidance.two_way(2.0), **drawn}
    edit = {"multimodal_generation_mode": "image-only", "do_sample": True, "guidance": three_way, "image": careful}
    both = {
        "multimodal_generation_mode": "interleaved-text-image",
        "guidance": three_way,
        "text": {"do_sample": False},
        "image": careful,
        "max_new_tokens": 480,
    }
    text = {"multimodal_generation_mode": "text-only", "do_sample": False, "max_new_tokens": 80}
    found = [
        _made("blocks", "text-to-image", "Draw: {text}" + END, image_only, BLOCKS),
        _made("blocks", "interleaved", "{text}" + END, both, BLOCKS),
        _made("blocks", "edit", "<image>{text}" + END, edit, BLOCKS),
        _made("blocks", "caption", "<image>Describe the picture." + END, text, BLOCKS),
    ]
    return by_task(found)


CRITIQUE = (
    "Generate an image based on the given prompt. Then analyze whether the image matches the prompt, and generate a "
    "better image based on your analysis. The prompt is: {text}"
)


AGAINST = "text in the image, text, lowres"
"""The beginning of its negative prompt; the weight of that stream is 0 in its own settings."""


def _thinking(family: str, model: Any) -> dict[str, Recipe]:
    sampled = {"do_sample": True, "text": {"temperature": 1.0, "top_p": 0.9}, "image": {"temperature": 1.0}}
    normal = Guidance((FULL, IMAGES, Stream("unconditional", bos=False)), (2.0, 1.2, 1.0 - 2.0 - 1.2))
    image_only = {"multimodal_generation_mode": "image-only", "guidance": normal, **sampled}
    half = model.config.max_position_embeddings // 2
    both = {"multimodal_generation_mode": "interleaved-text-image", **sampled, "max_new_tokens": half}
    found = [
        _made(family, "text-to-image", "{text}" + END, image_only, THINKING),
        _made(family, "interleaved", CRITIQUE + END, both, THINKING, guidance_of=_five_way),
    ]
    return by_task(found)


def _five_way(prompt: list[int], tokens_of: Callable[[str], list[int]]) -> Guidance:
    return Guidance.five_way(tokens_of(AGAINST), prompt, full=2.0, image=1.2, against=0.0, toward=5.0)
