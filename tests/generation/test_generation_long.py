"""Two hundred greedy tokens of fifty random models: the same as transformers' own."""

import random

import pytest
import torch
from models_for_tests import BOS, padded, pixels, placeholder_block, text_ids, tiny_model

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of

TOKENS = 200


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(12, 50))])
def test_greedy_tokens_of_long_runs(seed: int):
    rng = random.Random(seed)
    model = tiny_model(
        seed,
        swin_norm=seed % 2 == 1,
        kv_heads=rng.choice([1, 2, 4]),
        bias=rng.random() < 0.5,
        layers=rng.randint(1, 3),
        context=300,
    )
    assert Decoder(model).uses_cpu_step
    v, pictures, prompts = vocabulary_of(model), 0, []
    for row in range(rng.randint(1, 8)):
        prompts.append([BOS, *text_ids(model, 10 * seed + row, rng.randint(1, 40))])
        if rng.random() < 0.4:
            prompts[-1] += placeholder_block(v) + text_ids(model, row, 2)
            pictures += 1
    options = {**padded(prompts), "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    if pictures:
        options["pixel_values"] = pixels(seed, pictures)
    if rng.random() < 0.3:
        options["guidance_scale"] = rng.choice([1.5, 3.0])
    found = fastdecode.generate(model, **options)
    assert found.shape[1] == options["input_ids"].shape[1] + TOKENS
    assert torch.equal(found, model.generate(**options))
