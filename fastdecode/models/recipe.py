"""A recipe: what is usual for one task of one family of models, as ordinary arguments of `fastdecode.generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastdecode.guidance import Guidance
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

TASKS = ("text-to-image", "interleaved", "edit", "caption", "chat", "infill")
PICTURE = "<image>"

Size = tuple[int, int]


@dataclass(frozen=True)
class Bound:
    """The model that a recipe is for: its vocabulary, and how a picture becomes tokens, begin and end included, where
    the model's own processor does not do that.
    """

    vocabulary: Vocabulary
    picture_tokens: Callable[[Image.Image], list[int]] | None = None


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
    dict like any other: ``recipe.options | {"seed": 7}``.
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
        known = {name: ours.get(name, source) for name in ("prompt", "negative", *options)}
        return cls(family, task, template, options, known, **more)

    @property
    def pictures(self) -> int:
        """The number of pictures that a prompt shows."""
        return self.template.count(PICTURE)

    @property
    def vocabulary(self) -> Vocabulary:
        if self.bound is None:
            raise ValueError("this recipe belongs to no model: take what fastdecode.recipe(model, task) returns")
        return self.bound.vocabulary

    def prompt(self, text: str, image_size: Size | None = None) -> str:
        """The prompt for ``text``. ``image_size``: (width, height) in pixels; None: the model's usual size."""
        if not isinstance(text, str):
            raise ValueError(f"text is {kind_of(text)}: give the prompt as a str")
        if PICTURE in text:
            raise ValueError(f"text has {PICTURE}: give pictures with images=; the recipe knows where they go")
        found = self.template
        if "{width}" in found:
            width, height = self._usual() if image_size is None else image_size
            found = found.replace("{width}", str(width)).replace("{height}", str(height))
        return found.replace("{text}", text)

    def inputs(
        self,
        processor: Any,
        text: str | Sequence[str] = "",
        images: Image.Image | Sequence[Image.Image] | None = None,
        image_size: Size | None = None,
    ) -> dict[str, Any]:
        """The prompts as arguments of `fastdecode.generate`: input_ids and attention_mask, and what else is needed.

            processor    the model's own, or its tokenizer
            text         a prompt, or several
            images       PIL pictures of the prompts, in order: as many for each as the template shows
            image_size   (width, height) in pixels of the pictures to draw; None: the model's usual size

        ``ValueError`` for another number or kind of pictures, and for a size that the model cannot draw.
        """
        vocabulary, texts = self.vocabulary, [text] if isinstance(text, str) else list(text)
        given = self._given(images, len(texts))
        if self.tokens_of is not None:
            return self._joined([self.tokens_of(processor, self.prompt(one), image_size) for one in texts])
        if image_size is not None:
            width, height = image_size
            vocabulary.sized(width, height)  # says what is wrong with it
        rows, pixels, sizes = [], [], []
        for number, one in enumerate(texts):
            shown = given[number * self.pictures : (number + 1) * self.pictures]
            made = self._read(processor, self.prompt(one, image_size), shown, image_size)
            rows.append([int(token) for token in made["input_ids"][0]])
            pixels += [made["pixel_values"]] if made.get("pixel_values") is not None else []
            sizes += [torch.as_tensor(made["image_sizes"])] if made.get("image_sizes") is not None else []
        found: dict[str, Any] = padded(rows, vocabulary.pad or 0)
        if pixels:
            found["pixel_values"] = torch.cat(pixels)
        if sizes:
            found["image_sizes"] = torch.cat(sizes)
        elif image_size is not None:
            found["image_size"] = image_size
        if self.guidance_of is not None:
            if len(texts) != 1:
                raise ValueError(f"the task {self.task!r} of {self.family} takes one prompt: its guidance repeats it")
            tokenizer = getattr(processor, "tokenizer", processor)

            def tokens_of(part: str) -> list[int]:
                found: list[int] = tokenizer(part, add_special_tokens=False)["input_ids"]
                return found

            found["guidance"] = self.guidance_of(rows[0], tokens_of)
        if self.negative:
            other = self._read(processor, self.negative, [], image_size)["input_ids"]
            found["negative_prompt_ids"] = torch.as_tensor(other).expand(len(texts), -1)
            found["negative_prompt_attention_mask"] = torch.ones_like(found["negative_prompt_ids"])
        return found

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
        given = [] if images is None else [images] if isinstance(images, Image.Image) else list(images)
        for number, picture in enumerate(given):
            if not isinstance(picture, Image.Image):
                raise ValueError(f"images[{number}] is {kind_of(picture)}: give PIL pictures")
        if len(given) != self.pictures * prompts:
            raise ValueError(
                f"{len(given)} pictures were given for {prompts} prompts: the task {self.task!r} of {self.family} "
                f"takes {self.pictures} for each"
            )
        return given

    def _read(self, processor: Any, prompt: str, pictures: list[Image.Image], size: Size | None) -> dict[str, Any]:
        """What the processor makes of one prompt."""
        assert self.bound is not None
        tokenizer = getattr(processor, "tokenizer", processor)
        if self.chat:
            prompt = self._in_template(tokenizer, prompt)
        if pictures and self.bound.picture_tokens is not None:
            return {"input_ids": [self._spliced(processor, prompt, pictures)]}
        options = dict(self.processor)
        if size is not None and options.get("return_for_image_generation"):
            options |= {"ratio": f"{size[0]}:{size[1]}", "image_area": size[0] * size[1]}
        if pictures:
            options["images"] = pictures
            prompt = prompt.replace(PICTURE, getattr(processor, "image_token", PICTURE))
        return dict(processor(text=prompt, return_tensors="pt", **options))

    def _in_template(self, tokenizer: Any, prompt: str) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"this {type(tokenizer).__name__} has no chat template, so that {self.task!r} has no prompt format: "
                "give the model's own tokenizer, or the prompt as tokens to fastdecode.generate"
            )
        asked = [{"role": "user", "content": prompt}]
        made: str = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        return made

    def _spliced(self, processor: Any, prompt: str, pictures: list[Image.Image]) -> list[int]:
        """The tokens of a prompt with those of its pictures in their places."""
        assert self.bound is not None
        assert self.bound.picture_tokens is not None
        tokenizer = getattr(processor, "tokenizer", processor)
        found: list[int] = []
        for number, part in enumerate(prompt.split(PICTURE)):
            if number:
                found += self.bound.picture_tokens(pictures[number - 1])
            found += tokenizer(part, add_special_tokens=number == 0)["input_ids"]
        return found

    def _usual(self) -> Size:
        layout, cell = self.vocabulary.picture, self.vocabulary.cell
        return layout.columns * cell, layout.rows * cell

    def __str__(self) -> str:
        """The recipe for people: each part with its source."""
        lines = [f"{self.family}, {self.task}", f"  prompt: {self.template!r} ({self.sources['prompt']})"]
        if self.negative:
            lines.append(f"  negative prompt: {self.negative!r} ({self.sources['negative']})")
        for name, value in self.options.items():
            lines.append(f"  {name}={value!r} ({self.sources[name]})")
        return "\n".join(lines)


def by_task(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    return {recipe.task: recipe for recipe in recipes}


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` of prompts, padded on the left."""
    width = max(map(len, rows))
    ids = [[*[pad] * (width - len(row)), *row] for row in rows]
    mask = [[*[0] * (width - len(row)), *[1] * len(row)] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
