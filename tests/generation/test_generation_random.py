"""Random calls against a plain loop: any mode, recipe, batch, unfinished pictures, penalties and ends."""

import random

import pytest
import torch
from models_for_tests import (
    BOS,
    EOS,
    PAD,
    drawing_model,
    padded,
    pixels,
    placeholder_block,
    text_ids,
    whole_logits,
)

import fastdecode
from fastdecode import Guidance, Stream, ops
from fastdecode.grammar import MODES
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import encode_pictures


class Case:
    """One random call."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.mode = rng.choice([*MODES, "interleaved-text-image"])
        self.model = drawing_model(
            seed, swin_norm=rng.random() < 0.5, kv_heads=rng.choice([1, 2, 4]), scattered=rng.random() < 0.5
        )
        self.v = vocabulary_of(self.model)
        self.guidance = None if self.mode == "text-only" else self.recipe()
        self.text, self.image = self.sampling(), self.sampling()
        self.eos = rng.choice([[EOS], [EOS, self.v.end_image], [EOS, *text_ids(self.model, seed, 1)]])
        self.prompts, pictures = [], 0
        for row in range(rng.randint(1, 4)):
            self.prompts.append([BOS, *text_ids(self.model, seed * 7 + row, rng.randint(0, 7))])
            if rng.random() < 0.3:
                self.prompts[-1] += placeholder_block(self.v)
                pictures += 1
            if rng.random() < 0.3:  # and a picture that is not finished
                begun = rng.choices(self.v.code_ids, k=rng.randint(0, self.v.image_length))
                self.prompts[-1] += [self.v.begin_image, *begun]
        self.seeds = [rng.randrange(-(2**63), 2**63) for _ in self.prompts]
        self.new = rng.randint(self.v.image_length + 2, 45)
        self.options = {**padded(self.prompts)}
        if pictures:
            self.options["pixel_values"] = pixels(seed, pictures)
        if rng.random() < 0.3:  # another way of drawing
            self.options |= {"return_dict_in_generate": True, "output_scores": True}

    def recipe(self) -> Guidance | None:
        ids = tuple(text_ids(self.model, 5, 3))
        kinds = [
            Stream("images"),
            Stream("unconditional"),
            Stream("unconditional", bos=False),
            Stream("prompt", ids),
            Stream("prompt", ids, history=False),
        ]
        others = self.rng.choices(kinds, k=self.rng.randint(0, 4))
        weights = [self.rng.choice([-1.0, -0.5, 0.0, 0.5, 1.5]) for _ in others]
        return Guidance((Stream("full"), *others), (2.25, *weights)) if others else None

    def sampling(self) -> dict[str, float]:
        choices = {
            "temperature": [0.0, 0.7, 1.5, 3.0],
            "top_p": [1.0, 0.9],
            "top_k": [0, 5],
            "min_p": [0.0, 0.05],
            "repetition_penalty": [1.0, 1.4],
        }
        return {name: self.rng.choice(values) for name, values in choices.items()}

    def found(self) -> list[list[int]]:
        found = fastdecode.generate(
            self.model,
            **self.options,
            multimodal_generation_mode=self.mode,
            max_new_tokens=self.new,
            text=self.text,
            image=None if self.mode == "text-only" else self.image,
            guidance=self.guidance,
            seed=self.seeds,
            eos_token_id=self.eos,
            do_sample=True,
            top_k=0,
        )
        return getattr(found, "sequences", found)[:, self.options["input_ids"].shape[1] :].tolist()

    def allowed(self, inside: bool, room: int) -> set[int]:
        v = self.v
        everything = set(range(v.size))
        if self.mode == "unrestricted":
            return everything
        if inside:
            return set(v.image_ids)
        if self.mode == "text-only":
            return everything - v.image_ids
        never = {v.end_image, v.placeholder} | ({v.pad, v.bos} - set(self.eos))
        return everything - v.image_ids - never - ({v.begin_image} if room < v.image_length + 2 else set())

    def draw(self, ids: list[int], prompt_length: int, tail: int, limit: int, seed: int, shown: list[int]) -> int:
        inside = tail >= 0
        if inside and self.guidance is not None:
            streams = zip(self.guidance.streams, self.guidance.weights, strict=True)
            z = sum(
                w * whole_logits(self.model, s.rewrite(ids, prompt_length, tail, self.v))[-1] for s, w in streams if w
            )
        else:
            z = whole_logits(self.model, ids)[-1]
        allowed = self.allowed(inside, limit - len(ids))
        z[[i for i in range(self.v.size) if i not in allowed]] = -torch.inf
        settings = dict(self.image if inside else self.text)
        settings["penalty"] = settings.pop("repetition_penalty")
        seen = ops.seen_bits([[*ids, *shown]], self.v.size)
        return int(ops.sample(z[None], seen=seen, seed=seed, step=len(ids), backend="reference", **settings).token)

    def expected(self, prompt: list[int], seed: int, shown: list[int]) -> list[int]:
        v, ids, tail, limit = self.v, list(prompt), -1, len(prompt) + self.new
        free, whole = self.mode == "unrestricted", v.image_length
        last = max((i for i, token in enumerate(ids) if token == v.begin_image), default=-1)
        if last >= 0 and self.mode != "text-only" and len(ids) - last - 1 <= whole:
            tail = last if all(i in v.image_ids for i in ids[last + 1 :]) else -1
        asked = self.mode == "image-only" and tail < 0
        while len(ids) < limit:
            drawn = len(ids) - tail - 1 if tail >= 0 else -1
            if asked:
                token, asked = v.begin_image, False
            elif drawn == whole and not free:
                token = v.end_image
            else:
                token = self.draw(ids, len(prompt), tail, limit, seed, shown)
            ids.append(token)
            if 0 <= drawn < whole and (token in v.image_ids or not free):
                continue
            if token in self.eos or (drawn == whole and self.mode == "image-only"):
                break
            tail = len(ids) - 1 if token == v.begin_image and self.mode != "text-only" else -1
        return ids[len(prompt) :]


@pytest.mark.parametrize("seed", range(60))
def test_random_calls(seed: int):
    case = Case(seed)
    found, v = case.found(), case.v
    shown = iter(
        encode_pictures(case.model, case.options["pixel_values"]).tolist() if "pixel_values" in case.options else []
    )
    for row, prompt, s in zip(found, case.prompts, case.seeds, strict=True):
        filled, replaced = list(prompt), v.placeholder in prompt
        if replaced:
            at = filled.index(v.placeholder)
            filled[at : at + v.image_length] = next(shown)
        expected = case.expected(filled, s, [v.placeholder] if replaced else [])
        assert row == expected + [PAD] * (len(row) - len(expected))
