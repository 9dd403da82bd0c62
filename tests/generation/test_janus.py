"""Janus: pictures and text against transformers' own loop for it."""

from __future__ import annotations

import pytest
import torch
from family_models import JANUS_BEGIN, JANUS_SIDE, TEXT, tiny_janus

import fastdecode

TOKENS, COUNT = TEXT["vocab_size"], JANUS_SIDE**2


def prompts(*lengths: int, image: bool = True) -> dict[str, torch.Tensor]:
    """Prompts that end in the begin of a picture, padded on the left."""
    generator = torch.Generator().manual_seed(sum(lengths))
    width = max(lengths)
    ids = torch.randint(10, TOKENS, (len(lengths), width), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = 0, 0
        ids[row, width - length] = 1
    if image:
        ids[:, -1] = JANUS_BEGIN
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("scale", [5.0, 1.5])
def test_greedy_pictures_are_those_of_transformers(scale: float):
    model = tiny_janus()
    inputs = prompts(9, 14, 4)
    options = {"generation_mode": "image", "guidance_scale": scale, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    found = fastdecode.generate(model, **inputs, **options)
    assert found.shape == (3, COUNT)
    assert torch.equal(found, wanted)
    assert len({tuple(row) for row in found.tolist()}) == 3
