"""A recipe: what is usual for one task of one family of models, as ordinary arguments of `fastdecode.generate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastdecode.guidance import Guidance
from fastdecode.models.image_sizes import Size, one_size
from fastdecode.models.picture_files import pictures_of
from fastdecode.models.reading import PICTURE, PictureTokens, read_prompt, takes_pictures
from fastdecode.models.recipe_words import as_python
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import count_of, kind_of

TASKS = ("text-to-image", "interleaved", "edit", "caption", "chat", "infill")
PLACES = ("text", "width", "height")
"""What a template may have in braces."""

PLAIN = {"return_for_text_completion": True}
"""Arguments with which a processor of Chameleons makes the tokens of its tokenizer."""


@dataclass(frozen=True)
class Bound:
    """The model that a recipe is for: its vocabulary, and how a picture becomes tokens, begin and end included, where
    the model's own processor does not do that.
    """

    vocabulary: Vocabulary
    picture_tokens: PictureTokens | None = None


@dataclass(frozen=True)
class Recipe:
    """The prompt and the options of a task.

        family, task   their names
        template       the prompt: {text} is the caller's, {width} and {height} are those of the picture to draw, and
                       each <image> stands for a picture that the caller gives
        options        arguments of `fastdecode.generate`
        sources        where they come from, by name; "prompt": the template
        processor      further arguments of the processor
        negative       the negative prompt; empty without one
        chat           whether the tokenizer's chat template makes the prompt
        guidance_of    makes the guidance of a prompt's tokens, for streams that repeat the prompt; the second argument
                       gives the tokens of a text. `inputs` then returns ``guidance`` too
        tokens_of      makes all that the model needs for a prompt, for models whose processor makes more than tokens;
                       of the processor, the prompt and its image_size, or None. `inputs` then returns
                       ``max_new_tokens`` too

    ``fastdecode.generate(model, **recipe.inputs(processor, text), **recipe.options)`` follows it. The options are a
    dict like any other: ``recipe.options | {"seed": 7}``. ``str(recipe)`` tells all of it, each part with its source.
    ``ValueError`` for a part of a wrong kind, another task, and a template with other words in braces.
    """

    family: str
    task: str
    template: str
    options: Mapping[str, Any]
    sources: Mapping[str, str]
    processor: Mapping[str, Any] = field(default_factory=dict)
    negative: str = ""
    chat: bool = False
    guidance_of: Callable[[list[int], Callable[[str], list[int]]], Guidance] | None = None
    tokens_of: Callable[[Any, str, Size | None], dict[str, Any]] | None = None
    bound: Bound | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, family: str, task: str, template: str, options: Mapping[str, Any], source: str, **more: Any) -> Recipe:
        """A recipe whose parts have one source, but for what fastdecode chooses: the mode and the length."""
        ours = {"multimodal_generation_mode": "the task", "max_new_tokens": "fastdecode: a limit"}
        names = ("prompt", "processor", "negative", "guidance", *options) if isinstance(options, Mapping) else ()
        return cls(family, task, template, options, {name: ours.get(name, source) for name in names}, **more)

    def __post_init__(self) -> None:
        for name in ("family", "task", "template", "negative"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of a Recipe is {kind_of(getattr(self, name))}: give a str")
        for name in ("options", "sources", "processor"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} of a Recipe is {kind_of(getattr(self, name))}: give a dict")
        if self.task not in TASKS:
            raise ValueError(f"task={shown(self.task)} is unknown; choose one of {', '.join(TASKS)}")
        places = set(re.findall(r"\{(\w*)\}", self.template))
        for place in sorted(places.difference(PLACES)):
            raise ValueError(f"template has {{{place}}}: a Recipe fills in {{text}}, {{width}} and {{height}} only")
        if ("width" in places) != ("height" in places):
            raise ValueError("template has one of {width} and {height}: give both, or none")
        for mark in re.findall(r"<\s*images?\s*>", self.template, re.IGNORECASE):
            if mark != PICTURE:
                raise ValueError(f"template has {mark}: a picture that the caller gives is written {PICTURE}")
        if PICTURE in self.negative:
            raise ValueError(f"negative has {PICTURE}: a negative prompt is text only")

    @property
    def pictures(self) -> int:
        """The number of pictures that a prompt shows."""
        return self.template.count(PICTURE)

    @property
    def vocabulary(self) -> Vocabulary:
        if self.bound is None:
            raise ValueError("this recipe belongs to no model: take what fastdecode.recipe(model, task) returns")
        return self.bound.vocabulary

    @property
    def draws(self) -> bool:
        return self.options.get("multimodal_generation_mode", "text-only") != "text-only"

    @property
    def sizes(self) -> list[Size] | None:
        """The ``image_size`` that the task takes, (width, height) in pixels: all of them, the narrowest first; none for
        a task that draws no pictures. None: any whose sides are multiples of ``vocabulary.cell`` and that fits the
        context.
        """
        vocabulary = self.vocabulary
        if self.tokens_of is not None:
            return None
        if not self.draws:
            return []
        if vocabulary.any_size:
            return None
        known, cell = vocabulary.sizes or {(vocabulary.picture.rows, vocabulary.picture.columns)}, vocabulary.cell
        return sorted((columns * cell, rows * cell) for rows, columns in known)

    def prompt(self, text: str = "", image_size: Size | None = None) -> str:
        """The prompt for ``text``. ``image_size``: (width, height) in pixels; None: the model's usual size.
        ``ValueError`` for a text where the template has no place for one, and for a size that the model cannot draw.
        """
        if not isinstance(text, str):
            raise ValueError(f"text is {kind_of(text)}: give the prompt as a str")
        if PICTURE in text:
            raise ValueError(f"text has {PICTURE}: give pictures with images=; the recipe knows where they go")
        if text and "{text}" not in self.template:
            raise ValueError(
                f"the prompt of the task {self.task!r} of {self.family} is always {self.template!r}, without a text of "
                f"yours, and text={shown(text)} was given: leave it out"
            )
        size, found = self._size(image_size), self.template
        if "{width}" in found:
            width, height = self._usual() if size is None else size
            found = found.replace("{width}", str(width)).replace("{height}", str(height))
        return found.replace("{text}", text)

    def inputs(
        self,
        processor: Any,
        text: str | Sequence[str] = "",
        images: Any = None,
        image_size: Size | None = None,
    ) -> dict[str, Any]:
        """The prompts as arguments of `fastdecode.generate`: input_ids and attention_mask, and what else is needed.

            processor    the model's own; its tokenizer will do where that makes the same prompt
            text         a prompt, or several
            images       those of the prompts, in order, as many for each as the template shows: PIL pictures, paths of
                         files, or arrays (height, width, 3) uint8
            image_size   (width, height) in pixels of the pictures to draw; None: the model's usual size

        ``ValueError`` for a wrong kind of argument, another number of pictures, a size that the model cannot draw, and
        a tokenizer where the model's processor makes a part of the prompt or reads its pictures.
        """
        vocabulary = self.vocabulary
        self._check_processor(processor)
        size, texts = self._size(image_size), _texts(text)
        prompts = [self.prompt(one, size) for one in texts]
        given = self._given(images, len(texts))
        if self.guidance_of is not None and len(texts) != 1:
            raise ValueError(f"the task {self.task!r} of {self.family} takes one prompt: its guidance repeats it")
        if self.tokens_of is not None:
            return self._joined([self.tokens_of(processor, prompt, size) for prompt in prompts])
        rows, pixels, sizes = [], [], []
        for number, prompt in enumerate(prompts):
            pictures = given[number * self.pictures : (number + 1) * self.pictures]
            made = self._read(processor, prompt, pictures, size)
            rows.append([int(token) for token in made["input_ids"][0]])
            pixels += [made["pixel_values"]] if made.get("pixel_values") is not None else []
            sizes += [torch.as_tensor(made["image_sizes"])] if made.get("image_sizes") is not None else []
        found: dict[str, Any] = padded(rows, vocabulary.pad or 0)
        if pixels:
            found["pixel_values"] = torch.cat(pixels)
        if sizes:
            found["image_sizes"] = torch.cat(sizes)
        elif size is not None:
            found["image_size"] = size
        if self.guidance_of is not None:
            tokenizer = getattr(processor, "tokenizer", processor)

            def tokens_of(part: str) -> list[int]:
                found: list[int] = tokenizer(part, add_special_tokens=False)["input_ids"]
                return found

            found["guidance"] = self.guidance_of(rows[0], tokens_of)
        if self.negative:
            other = self._read(processor, self.negative, [], size)["input_ids"]
            found["negative_prompt_ids"] = torch.as_tensor(other).expand(len(texts), -1)
            found["negative_prompt_attention_mask"] = torch.ones_like(found["negative_prompt_ids"])
        return found

    def _check_processor(self, processor: Any) -> None:
        """``ValueError`` unless ``processor`` makes the prompts of this recipe."""
        assert self.bound is not None
        right = "give the model's processor, which fastdecode.load returns with the model"
        if isinstance(processor, type) or not callable(processor):
            raise ValueError(f"processor is {shown(processor)}: {right}")
        if takes_pictures(processor):
            return
        tokenizer, task = f"processor is {kind_of(processor)}, a tokenizer", f"the task {self.task!r} of {self.family}"
        if any(PLAIN.get(name) != value for name, value in self.processor.items()):
            raise ValueError(f"{tokenizer}, and for {task} the model's processor writes a part of the prompt: {right}")
        if self.pictures and self.bound.picture_tokens is None:
            raise ValueError(f"{tokenizer}, and {task} shows pictures, which a tokenizer does not read: {right}")

    def _size(self, image_size: Any) -> Size | None:
        """``image_size``, checked: a size that the task draws, or None."""
        size = one_size(image_size)
        if self.tokens_of is not None:
            return size  # which it checks
        if size is not None and not self.draws:
            raise ValueError(
                f"image_size={size}: the task {self.task!r} of {self.family} draws no pictures; leave it out"
            )
        if size is not None:
            self.vocabulary.sized(*size)
        return size

    def _joined(self, made: list[dict[str, Any]]) -> dict[str, Any]:
        """The inputs of several prompts as one, of what was made of each."""
        rows = [[int(token) for token in one["input_ids"][0]] for one in made]
        found: dict[str, Any] = padded(rows, self.vocabulary.pad or 0)
        for name in made[0]:
            if name == "max_new_tokens":
                found[name] = max(one[name] for one in made)
            elif name not in found:
                found[name] = torch.cat([one[name] for one in made])
        return found

    def _given(self, images: Any, prompts: int) -> list[Image.Image]:
        given = pictures_of(images)
        if len(given) != self.pictures * prompts:
            raise ValueError(
                f"{count_of(len(given), 'picture')} {'was' if len(given) == 1 else 'were'} given for "
                f"{count_of(prompts, 'prompt')}: the task {self.task!r} of {self.family} takes {self.pictures} for each"
            )
        return given

    def _read(self, processor: Any, prompt: str, pictures: list[Image.Image], size: Size | None) -> dict[str, Any]:
        """What the processor makes of one prompt."""
        assert self.bound is not None
        if self.chat:
            prompt = self._in_template(getattr(processor, "tokenizer", processor), prompt)
        options = dict(self.processor)
        if size is not None and options.get("return_for_image_generation"):
            options |= {"ratio": f"{size[0]}:{size[1]}", "image_area": size[0] * size[1]}
        return read_prompt(processor, prompt, pictures, self.bound.picture_tokens, **options)

    def _in_template(self, tokenizer: Any, prompt: str) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"this {type(tokenizer).__name__} has no chat template, so that {self.task!r} has no prompt format: "
                "give the model's own tokenizer, or the prompt as tokens to fastdecode.generate"
            )
        asked = [{"role": "user", "content": prompt}]
        made: str = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        return made

    def _usual(self) -> Size:
        layout, cell = self.vocabulary.picture, self.vocabulary.cell
        return layout.columns * cell, layout.rows * cell

    def __str__(self) -> str:
        """The recipe for people: each part with its source."""
        lines = [f"{self.family}, {self.task}", f"  prompt: {self.template!r}{self._source('prompt')}"]
        if self.chat:
            lines.append("  the tokenizer's chat template stands around it")
        if self.processor:
            given = ", ".join(f"{name}={value!r}" for name, value in self.processor.items())
            lines.append(f"  processor: {given}{self._source('processor')}")
        if self.negative:
            lines.append(f"  negative prompt: {self.negative!r}{self._source('negative')}")
        if self.guidance_of is not None:
            lines.append(f"  guidance: made of each prompt, and returned by inputs{self._source('guidance')}")
        lines += [f"  {name}={as_python(value)}{self._source(name)}" for name, value in self.options.items()]
        return "\n".join(lines)

    def _source(self, part: str) -> str:
        return f" ({self.sources[part]})" if part in self.sources else ""


def by_task(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    return {recipe.task: recipe for recipe in recipes}


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` of prompts, padded on the left."""
    width = max(map(len, rows))
    ids = [[*[pad] * (width - len(row)), *row] for row in rows]
    mask = [[*[0] * (width - len(row)), *[1] * len(row)] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _texts(text: Any) -> list[str]:
    """The prompts as a list. ``ValueError`` for what is neither a prompt nor several."""
    if isinstance(text, str):
        return [text]
    if not isinstance(text, Iterable) or isinstance(text, (bytes, Mapping, set, frozenset)):
        raise ValueError(f"text is {kind_of(text)}: give a prompt as a str, or a list of them")
    found = list(text)
    if not found:
        raise ValueError("text is an empty list: give at least one prompt")
    return found
