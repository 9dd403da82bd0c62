"""The four tasks as training sequences: ids, and which of them the loss counts.

Every sequence is laid out as the processor lays out a chat prompt: ``<s> prompt <sep> response </s>``. A tenth of
those that draw lose their text (what remains is the image-only stream of three-way guidance), a tenth lose text and
earlier pictures (the unconditional stream), and a quarter of the drawing captions have one wrong attribute.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import ChameleonVQVAE, PreTrainedTokenizerFast

from tools.blocks import world
from tools.blocks.configuration import IMAGE_TOKENS, pixels
from tools.blocks.tokenizer import BEGIN_IMAGE, END_IMAGE, PLACEHOLDER, SEPARATOR

TEXT_DROPPED, ALL_DROPPED, WRONG_CAPTIONS = 0.1, 0.1, 0.25
SHARES = {"draw": 0.42, "illustrate": 0.14, "caption": 0.06, "edit": 0.38}
LAST_SHARES = {"draw": 0.66, "illustrate": 0.05, "caption": 0.04, "edit": 0.25}
"""How often each task is practised, and in the last steps, whose small changes average out what captions get wrong."""
EDITS = {"put": 0.15, "remove": 0.3, "paint": 0.55}
"""Kinds of edits, the harder the more often: to paint a thing it must be found first."""
REUSED, FRESH = 0.6, 1000
"""Share of sequences made again from scenes that the last ones had (encoding pictures takes a fifth of the time), and
how many sequences are fresh before that begins.
"""


@dataclass
class Sequence:
    """Ids of one training sequence, and 1 for each id that the model must predict."""

    task: str
    ids: list[int]
    counts: list[int]


Plan = tuple[list[world.Scene], Callable[[], Sequence]]
"""The scenes of a sequence, and how to make it once they are encoded. What is wrong or left out is drawn as it is made:
a caption that is wrong once must not be so every time, or the model learns the mistake.
"""


class Tasks:
    """Makes sequences; pictures are encoded with the trained tokenizer, a batch at a time, and remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vq: ChameleonVQVAE, seed: int) -> None:
        self.restart(seed)
        self.tokenizer, self.vq = tokenizer, vq
        self.begin, self.end, self.separator = tokenizer.convert_tokens_to_ids([BEGIN_IMAGE, END_IMAGE, SEPARATOR])
        self.first_code = tokenizer.convert_tokens_to_ids("IMGIMGAZ")
        self.codes: dict[world.Scene, list[int]] = {}
        self.words: dict[str, list[int]] = {}

    def restart(self, seed: int) -> None:
        """From here on the sequences depend on ``seed`` alone."""
        self.rng = random.Random(seed)
        self.known: list[Plan] = []
        self.shares = SHARES

    def text(self, sentence: str) -> list[int]:
        if sentence not in self.words:
            if len(self.words) > 200_000:
                self.words.clear()
            self.words[sentence] = self.tokenizer(sentence, add_special_tokens=False).input_ids
        return self.words[sentence]

    def picture(self, scene: world.Scene) -> list[int]:
        return [self.begin, *self.codes[scene], self.end]

    @torch.inference_mode()
    def encode(self, scenes: list[world.Scene]) -> None:
        if len(self.codes) > 400_000:
            self.codes.clear()
        new = list({scene for scene in scenes if scene not in self.codes})
        for i in range(0, len(new), 64):
            part = new[i : i + 64]
            codes = self.vq.encode(pixels(part), return_dict=True).image_tokens.view(len(part), IMAGE_TOKENS)
            for scene, row in zip(part, (codes + self.first_code).tolist(), strict=True):
                self.codes[scene] = row

    def make(self, count: int) -> list[Sequence]:
        """``count`` random sequences in ``shares`` of the tasks."""
        plans: list[Plan] = []
        for task in self.rng.choices(list(self.shares), list(self.shares.values()), k=count):
            if len(self.known) >= FRESH and self.rng.random() < REUSED:
                plans.append(self.rng.choice(self.known))
            else:
                plans.append(getattr(self, f"_{task}")())
                self.known.append(plans[-1])
        self.encode([scene for scenes, _ in plans for scene in scenes])
        return [build() for _, build in plans]

    def _drop(self) -> str:
        chance = self.rng.random()
        return "all" if chance < ALL_DROPPED else "text" if chance < ALL_DROPPED + TEXT_DROPPED else "none"

    def _sequence(self, task: str, prompt: list[int], response: list[int]) -> Sequence:
        """``<s> prompt response </s>``; the loss counts the response and ``</s>``."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [bos, *prompt, *response, eos]
        return Sequence(task, ids, [0] * (1 + len(prompt)) + [1] * (len(response) + 1))

    def _only_picture(self, scene: world.Scene) -> Sequence:
        """The unconditional stream: one picture after ``<s>`` and begin of image."""
        return self._sequence("nothing", [self.begin], [*self.codes[scene], self.end])

    def _draw(self) -> Plan:
        scene = world.random_scene(self.rng)

        def build() -> Sequence:
            said = scene
            if self.rng.random() < WRONG_CAPTIONS:
                said = world.with_one_wrong_attribute(self.rng, scene)
            if self._drop() != "none":
                return self._only_picture(scene)
            prompt = [*self.text(world.drawing_prompt(said)), self.separator]
            return self._sequence("draw", prompt, self.picture(scene))

        return [scene], build

    def _illustrate(self) -> Plan:
        goal = world.random_goal(self.rng)

        def build() -> Sequence:
            drop = self._drop()
            if drop == "all":
                return self._only_picture(self.rng.choice(goal.steps).scene)
            pictures = [self.picture(step.scene) for step in goal.steps]
            if drop == "text":
                return self._sequence("pictures", [self.begin], list(chain(*pictures))[1:])
            response: list[int] = []
            for step, picture in zip(goal.steps, pictures, strict=True):
                response += [*self.text(step.sentence), *picture]
            return self._sequence("illustrate", [*self.text(goal.sentence), self.separator], response)

        return [step.scene for step in goal.steps], build

    def _caption(self) -> Plan:
        scene = world.random_scene(self.rng)

        def build() -> Sequence:
            question = self.text(world.CAPTION_PROMPT.removeprefix(PLACEHOLDER))
            prompt = [*self.picture(scene), *question, self.separator]
            return self._sequence("caption", prompt, self.text(world.describe(scene)))

        return [scene], build

    def _edit(self) -> Plan:
        before, instruction, after = world.random_edit(self.rng, EDITS)

        def build() -> Sequence:
            drop = self._drop()
            if drop == "all":
                return self._only_picture(after)
            if drop == "text":
                return self._sequence("pictures", [*self.picture(before), self.begin], self.picture(after)[1:])
            prompt = [*self.picture(before), *self.text(instruction), self.separator]
            return self._sequence("edit", prompt, self.picture(after))

        return [before, after], build
