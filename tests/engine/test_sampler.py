"""Which rows of the output head are computed to sample a token."""

import pytest
import torch

import fastdecode
from benchmarks.models import IMAGE_IDS, random_model, text_prompts
from fastdecode.decoder import Decoder
from fastdecode.engine.batch import Batch
from fastdecode.grammar import BLOCK


@pytest.fixture(scope="module")
def model():
    return random_model("tiny")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("text-only", {((0, 4), (8196, 8800))}),
        ("image-only", {((4, 8196),)}),
        ("unrestricted", {None}),
        ("interleaved-text-image", {((2, 4), (8198, 8800)), ((4, 8196),)}),  # no room for another picture
    ],
)
def test_only_rows_that_may_be_drawn(model, mode: str, expected: set, monkeypatch: pytest.MonkeyPatch):
    found = set()
    right = Decoder.logits

    def spied(self, hidden, spans=None):
        found.add(None if spans is None else tuple(spans))
        return right(self, hidden, spans)

    monkeypatch.setattr(Decoder, "logits", spied)
    prompt = text_prompts(model, 1, 12)
    if mode == "interleaved-text-image":  # a picture has begun
        prompt = torch.cat([prompt, torch.tensor([[8197]])], 1)
    fastdecode.generate(
        model,
        prompt,
        attention_mask=torch.ones_like(prompt),
        multimodal_generation_mode=mode,
        max_new_tokens=24 if mode != "image-only" else 18,
        do_sample=True,
        seed=1,
    )
    assert found == expected
    assert (IMAGE_IDS.start, IMAGE_IDS.stop) == (4, 8196)


@pytest.mark.parametrize("mode", ["image-only", "interleaved-text-image"])
def test_kernels_need_not_be_ready_for_text_inside_pictures(model, mode: str, monkeypatch: pytest.MonkeyPatch):
    found = set()
    right = Batch.sample

    def spied(self, logits):
        if self.state.mode.min() >= BLOCK:
            found.add(self.draws.tables.sets.largest)
        return right(self, logits)

    monkeypatch.setattr(Batch, "sample", spied)
    prompt = torch.cat([text_prompts(model, 1, 12), torch.tensor([[8197]])], 1)
    options = {"multimodal_generation_mode": mode, "max_new_tokens": 24, "do_sample": True, "seed": 1}
    if mode == "image-only":
        prompt = prompt[:, :-1]
    fastdecode.generate(model, prompt, attention_mask=torch.ones_like(prompt), **options)
    assert found == {len(IMAGE_IDS)}
