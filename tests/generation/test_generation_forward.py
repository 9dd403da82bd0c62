"""Models that are decoded by their own forward: the same text and pictures as by the fast decoders, and with hooks."""

import random

import pytest
import torch
from models_for_tests import BOS, drawing_model, padded, text_ids, whole_logits
from test_generation_random import Case

import fastdecode
from fastdecode import Engine, Guidance
from fastdecode.models.families import vocabulary_of

SEEDS = [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 40))]
DRAW = {"multimodal_generation_mode": "interleaved-text-image", "do_sample": True, "max_new_tokens": 40}


def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every model is decoded by its own forward."""
    monkeypatch.setattr("fastdecode.decoder.choice.needs_forward", lambda model: "a test asked for it")


@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls_are_those_of_the_fast_decoder(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Any mode, guidance, batch, pictures in the prompt, penalties, seeds; every second model is called whole."""
    case = Case(seed)
    fast = case.found()
    forced(monkeypatch)
    if seed % 2:
        case.model.register_forward_hook(lambda module, args, output: None)
    assert "because a test asked for it" in str(fastdecode.explain(case.model, torch.tensor([[BOS]])))
    assert case.found() == fast


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_an_engine_mixes_requests_shares_prompts_and_preempts(seed: int, whole: bool, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(seed)
    model = drawing_model(seed, swin_norm=seed == 1, kv_heads=[4, 2, 1][seed])
    beginning = [BOS, *text_ids(model, seed, 40)]
    prompts = [beginning + text_ids(model, 100 + i, rng.randint(0, 9)) for i in range(6)]
    modes = ["text-only", "image-only", "interleaved-text-image"]
    options = [
        {
            "multimodal_generation_mode": modes[i % 3],
            "guidance": None if i % 3 == 0 else Guidance.two_way(1.5 + i / 4),
            "do_sample": i > 2,
            "max_new_tokens": [90, 30, 60][i % 3],
            "min_new_tokens": 90 if i % 3 == 0 else None,
            "seed": i,
        }
        for i in range(6)
    ]

    def results(**limits) -> list[list[int]]:
        engine = Engine(model, **limits)
        handles = [engine.submit(p, **o) for p, o in zip(prompts, options, strict=True)]
        engine.run()
        assert (engine.statistics().preemptions > 0) == bool(limits)
        return [h.result()[0].tolist() for h in handles]

    fast = results()
    forced(monkeypatch)
    if whole:
        model.register_forward_hook(lambda module, args, output: None)
    assert results() == fast
    assert results(pages=9) == fast


def expected_picture(model, prompt: list[int], scale: float, changed) -> list[int]:
    """Greedy guided image tokens, each from whole passes of the model's own layers."""
    v = vocabulary_of(model)
    images = sorted(v.image_ids)
    full, free = [*prompt, v.begin_image], [v.bos, v.begin_image]
    for _ in range(v.image_length):
        one, other = (changed(whole_logits(model, ids)[-1]) for ids in (full, free))
        z = scale * one + (1 - scale) * other
        token = images[int(z[images].argmax())]
        full.append(token)
        free.append(token)
    return full[len(prompt) :]


@pytest.mark.parametrize("where", ["layer", "model"])
@pytest.mark.parametrize("seed", range(3))
def test_pictures_of_a_model_with_hooks(seed: int, where: str):
    """A hook on the model sees and changes the logits of image tokens, which transformers' forward would forbid."""
    model = drawing_model(seed, swin_norm=seed == 1)
    v = vocabulary_of(model)
    tilt = torch.randn(v.size, generator=torch.Generator().manual_seed(seed)) * 6
    options = {"multimodal_generation_mode": "image-only", "do_sample": False, "guidance": 2.0}
    prompt = [BOS, *text_ids(model, seed, 6)]
    before = fastdecode.generate(model, torch.tensor([prompt]), **options)

    def add(module, args, output) -> None:
        output.logits = output.logits + tilt

    if where == "model":
        model.register_forward_hook(add)
        wanted = expected_picture(model, prompt, 2.0, lambda logits: logits + tilt)
    else:
        model.model.layers[1].register_forward_hook(lambda module, args, output: (-output[0], *output[1:]))
        wanted = expected_picture(model, prompt, 2.0, lambda logits: logits)
    found = fastdecode.generate(model, torch.tensor([prompt]), **options)
    assert found[0, len(prompt) : len(prompt) + len(wanted)].tolist() == wanted
    assert not torch.equal(found, before)
    engine = Engine(model)
    assert torch.equal(engine.submit(prompt, **options).result(), found)


def test_a_text_request_beside_a_drawing_one_sees_forbidden_image_tokens():
    model = drawing_model(4)
    v = vocabulary_of(model)
    seen = []

    def look(module, args, output) -> None:
        masked = output.logits[:, -1, sorted(v.image_ids)].amax(-1) < -1e30
        seen.append(tuple(masked.tolist()))

    model.register_forward_hook(look)
    engine = Engine(model)
    prompts = [text_ids(model, i, 5) for i in range(2)]
    text = engine.submit(prompts[0], max_new_tokens=12, min_new_tokens=12, do_sample=False)
    engine.submit(prompts[1], multimodal_generation_mode="image-only", do_sample=True, seed=1)
    engine.run()
    assert (True, False) in seen
    alone = fastdecode.generate(
        model, torch.tensor([prompts[0]]), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    assert torch.equal(text.result(), alone)


def test_one_pool_for_several_calls():
    model = drawing_model(5)
    model.model.layers[0].register_forward_hook(lambda module, args, output: (output[0] * 0.5, *output[1:]))
    inputs = padded([[BOS, *text_ids(model, i, 3 + i)] for i in range(3)])
    wanted = fastdecode.generate(model, **inputs, **DRAW, seed=3)
    pool = fastdecode.new_pool(model, pages=12)
    for _ in range(2):
        assert torch.equal(fastdecode.generate(model, **inputs, **DRAW, seed=3, kv_pool=pool), wanted)
        assert pool.used == 0


def test_processors_and_scores():
    model = drawing_model(6)
    inputs = padded([[BOS, *text_ids(model, i, 3 + i)] for i in range(2)])
    options = {"max_new_tokens": 12, "do_sample": False, "no_repeat_ngram_size": 2, "return_dict_in_generate": True}
    options |= {"output_scores": True}
    model.model.layers[0].register_forward_hook(lambda module, args, output: (output[0] * 0.5, *output[1:]))
    wanted = model.generate(**inputs, **options)
    found = fastdecode.generate(model, **inputs, **options)
    assert torch.equal(found.sequences, wanted.sequences)
    text = [i for i in range(vocabulary_of(model).size) if i not in vocabulary_of(model).image_ids]
    for ours, theirs in zip(found.scores, wanted.scores, strict=True):
        assert torch.allclose(ours[1, text], theirs[1, text], atol=1e-3)
