"""Random requests of every kind for the soak test, good and bad, each with its expected result."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from models_for_tests import BOS, drawing_model, pixels, placeholder_block, tiny_tokenizer
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import fastdecode
from fastdecode import Guidance, Stream
from fastdecode.kv.page_pool import PAGE_SLOTS
from fastdecode.models.families import vocabulary_of
from fastdecode.vocabulary import Vocabulary

MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")
REFUSED: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 2},
    "dola_layers": {"dola_layers": "low"},
    "top_p": {"text": {"top_p": 1.5}},
    "multimodal_generation_mode": {"multimodal_generation_mode": "pictures"},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
}
"""Options that `Engine.submit` refuses; its message has the name."""

BAD = ("refused", "never fits", "raises", "NaN", "grows too long")


class Broken(Exception):
    """What a processor of a bad request raises."""


@dataclass(frozen=True)
class World:
    """A model with what its prompts are made of. ``pages`` (and ``max_rows``): of the engine, so few that requests are
    preempted; ``longest``: most new tokens of a good request; ``spells``: whether transformers can tell with its
    tokenizer where a stop string is.
    """

    name: str
    model: Any
    tokenizer: Any
    words: tuple[int, ...]
    beginnings: tuple[tuple[int, ...], ...]
    resolution: int
    pages: int
    longest: int
    spells: bool
    max_rows: int | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.model)


def drawing_world(pages: int = 20) -> World:
    """A random model of 4 words and pictures of 16 tokens."""
    resolution = 16
    model = drawing_model(3, resolution=resolution, context=1024)
    names = model.config.vocabulary_map
    words = tuple(names[f"w{i}"] for i in range(4))
    rng = random.Random(5)
    beginnings = tuple((BOS, *rng.choices(words, k=length)) for length in (2, 9, 40, 70))
    return World("drawing", model, tiny_tokenizer(names), words, beginnings, resolution, pages, 260, False)


def blocks_world(pages: int = 24) -> World:
    """The embedded model, with the prompts that it was trained for."""
    model, processor = fastdecode.load("blocks")
    tokenizer = processor.tokenizer
    texts = (
        "Build a snowman in column 3.",
        "Build a house with blue walls and a red roof in column 2.",
        "Draw: In column 2 a red circle.",
        "Draw: In column 2 a red circle. In column 3 a green diamond.",
        "Paint the blue circle green.",
    )
    beginnings = tuple(tuple(tokenizer(text).input_ids) for text in texts)
    words = tuple(tokenizer(" In column 1 an orange square, on it", add_special_tokens=False).input_ids)
    return World("blocks", model, tokenizer, words, beginnings, 64, pages, 320, True)


WORLDS: dict[str, Callable[[], World]] = {"drawing": drawing_world, "blocks": blocks_world}


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt and its options. Cases with the same ``key`` are equal. ``hooks`` are names and arguments of what has
    a state of its own, and so is made anew for each call. ``bad`` is None, or one of `BAD`; ``naming`` must then be in
    the message.
    """

    key: str
    prompt: tuple[int, ...]
    picture: int | None
    plain: dict[str, Any]
    hooks: tuple[tuple[str, int], ...] = ()
    bad: str | None = None
    naming: str = ""
    kind: str = ""

    def inputs(self, world: World) -> dict[str, Tensor]:
        """What the processor would return."""
        ids = torch.tensor([self.prompt])
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.picture is not None:
            found["pixel_values"] = pixels(self.picture, 1, world.resolution)
        return found

    def options(self, world: World) -> dict[str, Any]:
        found = dict(self.plain)
        processors: list[Any] = []
        criteria: list[Any] = []
        for name, at in self.hooks:
            if name == "stop_strings":
                found |= {"stop_strings": [world.tokenizer.decode([world.words[at]])], "tokenizer": world.tokenizer}
            elif name == "criterion":
                criteria.append(Ends(len(self.prompt) + at))
            elif name == "flatter":
                processors.append(lambda ids, scores: scores * 0.5)
            elif name == "raises":
                processors.append(Raises(len(self.prompt) + at))
            elif name == "NaN":
                processors.append(NotNumbers(len(self.prompt) + at))
        if processors:
            found["logits_processor"] = LogitsProcessorList(processors)
        if criteria:
            found["stopping_criteria"] = StoppingCriteriaList(criteria)
        return found


class Ends(StoppingCriteria):
    """Stops at so many tokens whose sum is even, prompt included."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids.sum(1) % 2 == 0) & (input_ids.shape[1] >= self.length)


class Raises:
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] >= self.length:
            raise Broken(f"broken at {self.length} tokens")
        return scores


class NotNumbers(Raises):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores * torch.nan if input_ids.shape[1] >= self.length else scores


# --- one at random ----------------------------------------------------------------------------------------------


def random_case(world: World, seed: int, number: int, bad: str | None = None) -> Case:
    """Case ``number`` of ``seed``: the same one every time. Good ones fit into the pool alone."""
    key = f"{seed}.{number}"
    rng = random.Random(f"{world.name} {world.pages} {key} {bad}")
    if bad is not None:
        return _bad_case(world, rng, key, bad)
    v = world.vocabulary
    prompt, picture = list(rng.choice(world.beginnings)), None
    if rng.random() < 0.25:  # an edit, or a question
        prompt[1:1] = placeholder_block(v)
        picture = rng.randrange(4)
    prompt += rng.choices(world.words, k=rng.choice([0, 1, 3, 12]))
    mode = rng.choice(MODES)
    plain: dict[str, Any] = {"multimodal_generation_mode": mode, "seed": rng.randrange(-(2**63), 2**63)}
    plain |= _guidance(world, rng, mode)
    hooks = _processors(world, rng, plain)
    plain |= _sampling(rng, bool(hooks) or "no_repeat_ngram_size" in plain or "guidance_scale" in plain)
    if mode == "text-only":
        plain.pop("image", None)  # refused where nothing is drawn
    if mode != "image-only" or rng.random() < 0.3:
        least = 1 if mode in ("text-only", "unrestricted") else v.image_length + 2
        longest = min(world.longest, world.pages // _streams(plain) * PAGE_SLOTS - len(prompt) - v.image_length)
        plain["max_new_tokens"] = rng.randint(least, max(least, longest))
        if rng.random() < 0.5:
            most = v.image_length + 2 if mode == "image-only" else plain["max_new_tokens"]
            plain["min_new_tokens"] = rng.randint(1, min(most, plain["max_new_tokens"]))
    kind = "edit" if picture is not None else mode
    return Case(key, tuple(prompt), picture, plain, tuple(hooks), kind=kind)


def _streams(plain: dict[str, Any]) -> int:
    guidance = plain.get("guidance")
    if isinstance(guidance, Guidance):
        return len(guidance.streams)
    return 1 if guidance is None and "guidance_scale" not in plain else 2


def _guidance(world: World, rng: random.Random, mode: str) -> dict[str, Any]:
    bos = world.beginnings[0][0]
    negative = (bos, *rng.choices(world.words, k=3))
    original = (bos, *rng.choices(world.words, k=7))
    history = Stream("prompt", negative), Stream("prompt", original)
    custom = Guidance((Stream("full"), Stream("images"), *history), (1.75, -0.5, 0.25, -0.5), everywhere=True)
    inside = [
        Guidance.two_way(2.0),
        Guidance.two_way(1.5, negative),
        Guidance.instruct(1.5, 1.2),
        Guidance.five_way(negative, original),
    ]
    everywhere = [
        custom,
        Guidance.two_way(1.5, negative, everywhere=True),
        Guidance.instruct(1.5, 1.2, everywhere=True),
    ]
    if rng.random() < 0.3:
        return {}
    if rng.random() < 0.25:  # as in transformers
        return {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([negative])}
    choices = everywhere if mode == "text-only" else [*inside, *everywhere] if mode == "unrestricted" else inside * 2
    return {"guidance": rng.choice([*choices, custom])}


def _processors(world: World, rng: random.Random, plain: dict[str, Any]) -> list[tuple[str, int]]:
    hooks: list[tuple[str, int]] = []
    words = rng.sample(world.words, 2)
    if rng.random() < 0.15:
        plain["suppress_tokens"] = words[:1]
    if rng.random() < 0.15:
        plain["bad_words_ids"] = [words] if rng.random() < 0.5 else [words[1:], words]
    if rng.random() < 0.2:
        plain["repetition_penalty"] = rng.choice([1.2, 1.5])
    if rng.random() < 0.1:
        plain["no_repeat_ngram_size"] = 4
    for name, chance, most in (("flatter", 0.1, 1), ("criterion", 0.1, 40), ("stop_strings", 0.08, len(world.words))):
        if rng.random() < chance and (name != "stop_strings" or world.spells):
            hooks.append((name, rng.randrange(most)))
    return hooks


def _sampling(rng: random.Random, alike: bool) -> dict[str, Any]:
    """Greedy, or sampled; ``alike``: with the same parameters in text and pictures."""
    if rng.random() < 0.3:
        return {"do_sample": False}
    found: dict[str, Any] = {"do_sample": True, "top_k": rng.choice([0, 5]), "top_p": rng.choice([1.0, 0.9])}
    found["temperature"] = rng.choice([0.7, 1.0, 1.5])
    if not alike and rng.random() < 0.4:
        found |= {"text": {"do_sample": False}, "image": {"temperature": 0.8, "top_p": 0.95, "min_p": 0.01}}
    return found


def _bad_case(world: World, rng: random.Random, key: str, bad: str) -> Case:
    bos, words = world.beginnings[0][0], world.words
    prompt = (bos, *rng.choices(words, k=rng.randint(2, 9)))
    new = 12
    plain: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "seed": 0}
    if bad == "refused":
        naming = rng.choice(sorted(REFUSED))
        return Case(key, prompt, None, plain | REFUSED[naming], (), bad, naming, bad)
    if bad == "never fits":
        pooled, context = world.pages * PAGE_SLOTS, world.vocabulary.context
        prompt = (bos, *rng.choices(words, k=min(pooled, context)))
        return Case(key, prompt, None, plain, (), bad, "can never fit" if pooled < context - new else "context", bad)
    if bad == "grows too long":
        others = [
            Stream("prompt", (bos, *rng.choices(words, k=5), words[k % len(words)], *words[:k])) for k in range(7)
        ]
        guidance = Guidance((Stream("full"), *others), (1.7, *[-0.1] * len(others)), everywhere=True)
        new = (world.pages // 8 + 2) * PAGE_SLOTS
        plain |= {"guidance": guidance, "max_new_tokens": new, "min_new_tokens": new}
        return Case(key, prompt, None, plain, (), bad, "page", bad)
    at = rng.randrange(new - 1)
    naming = "broken at" if bad == "raises" else "NaN"
    return Case(key, prompt, None, plain, ((bad, at),), bad, naming, bad)
