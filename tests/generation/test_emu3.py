"""Emu3: pictures and text against transformers' own loop with the grammar that Emu3's model card gives it."""

from __future__ import annotations

import pytest
import torch
from family_models import emu3_vocabulary, tiny_emu3

import fastdecode

IDS = emu3_vocabulary()
BEGIN, PLACEHOLDER, END = (IDS[name] for name in ("<|image token|>", "<image>", "<|image end|>"))
ROW_END, FRAME_END = IDS["<|extra_200|>"], IDS["<|extra_201|>"]
VISUAL = [i for name, i in IDS.items() if name.startswith("<|visual")]
CODES = len(VISUAL)


def prompts(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts that end as the processor's do, padded on the left."""
    generator = torch.Generator().manual_seed(seed + sum(lengths))
    width = max(lengths)
    ids = torch.randint(20, 200, (len(lengths), width), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = 2, 0
    ids[:, -1] = BEGIN
    return {"input_ids": ids, "attention_mask": mask}


def allowed(height: int, width: int):
    """What may come next in a picture, written from the description on the model card: rows, each with its end, then
    the end of the frame, the end of the image and the end of the sequence.
    """

    def choose(number: int, tokens: torch.Tensor) -> list[int]:
        place = len(tokens) - int((tokens == BEGIN).nonzero()[0, 0])
        if place > (width + 1) * height:
            return [{1: FRAME_END, 2: END, 3: 1}.get(place - (width + 1) * height, 2)]
        return [ROW_END] if place % (width + 1) == 0 else VISUAL

    return choose


@pytest.mark.parametrize("size", [(3, 5), (6, 2), (1, 1)])
@pytest.mark.parametrize("guided", [False, True])
def test_greedy_pictures_are_those_of_transformers(size: tuple[int, int], guided: bool):
    model, (height, width) = tiny_emu3(), size
    inputs = prompts(9, 14, 9)
    if guided:
        other = prompts(5, 5, 5, seed=3)
        inputs |= {
            "negative_prompt_ids": other["input_ids"],
            "negative_prompt_attention_mask": other["attention_mask"],
            "guidance_scale": 3.0,
        }
    count = height * (width + 1) + 2
    wanted = model.generate(
        **inputs, do_sample=False, max_new_tokens=count, prefix_allowed_tokens_fn=allowed(height, width)
    )
    sizes = torch.tensor([[height, width]] * 3)
    found = fastdecode.generate(
        model, **inputs, image_sizes=sizes, do_sample=False, multimodal_generation_mode="image-only"
    )
    assert torch.equal(found, wanted)
