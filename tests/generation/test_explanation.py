"""`explain` describes what `generate` does."""

import json
import re
from dataclasses import replace

import pytest
import torch
from family_models import tiny_emu3, tiny_janus, tiny_liquid
from models_for_tests import BOS, padded, pixels, placeholder_block, text_ids, tiny_model, tiny_tokenizer
from transformers import TextStreamer

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.generation import prepared
from fastdecode.models.emu3 import EMU3
from fastdecode.models.families import vocabulary_of
from fastdecode.ops.backends import core

MODEL = tiny_model(0)
V = vocabulary_of(MODEL)
WORDS = [BOS, *text_ids(MODEL, 0, 3)]
INTERLEAVED = {"multimodal_generation_mode": "interleaved-text-image", "max_new_tokens": 20}


def explain(prompt=WORDS, **options):
    options = {"max_new_tokens": 10} | options
    return fastdecode.explain(MODEL, torch.tensor([prompt]), **options)


def test_plain_text():
    found = explain()
    assert (found.mode, found.sequences, found.where, found.limits) == ("text-only", 1, "off", [14])
    assert found.streams == [["+1 x full, 4 tokens"]]
    assert found.allowed == {"text": V.size - 24, "picture": 24}
    assert found.text["temperature"] == 0.0
    assert found.sampling_backend == "cpu"
    assert found.why_not_faster == []  # on a CPU, "cpu" is the fastest backend
    assert found.can_draw
    text = str(found)
    assert "text sampling     greedy" in text
    assert "picture sampling" not in text
    assert "in a picture" not in text
    assert text.endswith("pictures          can be painted")


SAMPLED = {"do_sample": True}
IMAGES = {"multimodal_generation_mode": "image-only"}
NO_EFFECT = "seed, because nothing is sampled: do_sample=True samples, and without it the likeliest token is taken"


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, False),
        (SAMPLED, True),
        (SAMPLED | {"text": {"do_sample": False}}, False),
        ({"text": SAMPLED}, True),
        (IMAGES, False),
        (IMAGES | {"text": SAMPLED}, False),
        (IMAGES | {"image": SAMPLED}, True),
        (INTERLEAVED, False),
        (INTERLEAVED | {"text": SAMPLED}, True),
        (INTERLEAVED | {"image": SAMPLED}, True),
    ],
    ids=str,
)
def test_a_seed_where_nothing_is_sampled(options: dict, used: bool, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    prepared.logger.warning_once.cache_clear()
    monkeypatch.setattr(prepared.logger, "warning", lambda message, *args, **kwargs: said.append(message))
    expected = [] if used else [NO_EFFECT]
    found = explain(**options, seed=7)
    assert [what for what in found.without_effect if what.startswith("seed")] == expected
    assert found.to_dict()["without_effect"] == found.without_effect
    assert (f"without effect    {NO_EFFECT}" in str(found).splitlines()) is not used
    assert not any(what.startswith("seed") for what in explain(**options).without_effect)
    assert said == []  # explain tells it in its result
    prompt = torch.tensor([WORDS])
    options = {"max_new_tokens": 6} | options
    fastdecode.generate(MODEL, prompt, **options)
    said.clear()
    for seed in (7, 8):
        fastdecode.generate(MODEL, prompt, **options, seed=seed)
    MODEL.generate(prompt, **options, seed=8, custom_generate=fastdecode.custom_generate)
    assert said == ([] if used else [NO_EFFECT.replace("seed,", "seed has no effect,", 1)])


def test_parameters_of_text_where_none_is_written(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    prepared.logger.warning_once.cache_clear()
    monkeypatch.setattr(prepared.logger, "warning", lambda message, *args, **kwargs: said.append(message))
    draw = {"multimodal_generation_mode": "image-only"}
    found = explain(**draw, text={"top_p": 0.5})
    assert found.without_effect == ["text, because multimodal_generation_mode='image-only' writes none"]
    assert explain(**draw, text={}).without_effect == explain(text={"top_p": 0.5}).without_effect == []
    for _ in range(2):
        fastdecode.generate(MODEL, torch.tensor([WORDS]), **draw, text={"top_p": 0.5})
    assert said == ["text has no effect, because multimodal_generation_mode='image-only' writes none"]


def test_which_steps_are_taken():
    assert explain().decoder.endswith(f"cpu, float32, each step one call of the C++ library ({core().cpu_isa()})")
    half, double = (tiny_model(0).to(dtype) for dtype in (torch.bfloat16, torch.float64))
    found = fastdecode.explain(half, torch.tensor([WORDS]), max_new_tokens=3)
    prompts = "" if core().cpu_isa() == "avx512bf16" else ", prompts too"
    assert found.decoder.endswith(f"bfloat16, each step one call of the C++ library ({core().cpu_isa()}){prompts}")
    found = fastdecode.explain(double, torch.tensor([WORDS]), max_new_tokens=3)
    assert found.decoder.endswith("each step a call of the model's own forward, because its weights are float64")
    hooked = tiny_model(0)
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, args, output: None)
    found = fastdecode.explain(hooked, torch.tensor([WORDS]), max_new_tokens=3)
    assert found.decoder.endswith("cpu, float32, steps of PyTorch operations")
    assert any(reason.startswith("the layers cannot be run as one: layers.1: mlp") for reason in found.why_not_faster)


def test_memory_and_determinism():
    model = tiny_model(0)
    per_page = 2 * 2 * 4 * 8 * 4 * 32 / 1e6  # keys and values of 2 layers, 4 heads of 8 float32, 32 tokens
    assert explain(max_new_tokens=30).memory == f"at most 2 pages of 32 tokens, {2 * per_page:.1f} MB"
    pool = fastdecode.new_pool(model, pages=50, page_slots=4)
    found = fastdecode.explain(model, torch.tensor([WORDS]), max_new_tokens=3, kv_pool=pool, deterministic=True)
    assert found.memory.endswith("kv_pool has 50, 50 of them free")
    assert "keys and values   at most 2 pages of 4 tokens" in str(found)
    assert found.decoder.endswith(", prompts too (deterministic)")


def test_pictures_with_guidance():
    found = explain(
        **INTERLEAVED, guidance=Guidance.instruct(text=3.0, image=1.2), do_sample=True, image={"top_p": 0.9}
    )
    assert found.where == "inside pictures"
    assert found.streams == [
        ["+3 x full, 5 tokens", "-2 x images = unconditional, 2 tokens"]
    ]  # without a picture two are equal
    assert found.allowed == {"text": V.size - 24 - 4, "picture": 24}
    assert "text sampling     temperature 1, top_k 50" in str(found)
    assert "picture sampling  temperature 1, top_p 0.9" in str(found)
    shown = explain(
        [*WORDS, *placeholder_block(V)], **INTERLEAVED, guidance=Guidance.instruct(), pixel_values=pixels(0, 1)
    )
    assert [s.rsplit(" x ")[1] for s in shown.streams[0]] == [
        "full, 11 tokens",
        "images, 8 tokens",
        "unconditional, 2 tokens",
    ]


def test_only_what_a_mode_makes_is_told():
    said = str(explain(multimodal_generation_mode="image-only", do_sample=True))
    assert "allowed           24 tokens in a picture\n" in said
    assert "in text" not in said
    assert "text sampling" not in said
    assert "picture sampling  temperature 1" in said
    said = str(explain(do_sample=True))
    assert "in a picture" not in said
    assert "picture sampling" not in said


@pytest.mark.parametrize("drawn", [0, 3])
def test_a_picture_that_the_prompt_began(drawn: int):
    found = explain([*WORDS, V.begin_image, *V.code_ids[:drawn]], multimodal_generation_mode="image-only", guidance=2.0)
    assert found.streams == [[f"+2 x full, {5 + drawn} tokens", f"-1 x unconditional, {2 + drawn} tokens"]]


def test_guidance_everywhere():
    found = explain(guidance_scale=3.0, negative_prompt_ids=torch.tensor([[5, 6]]))
    assert found.where == "every token"
    assert found.streams == [["+3 x full, 4 tokens", "-2 x prompt, 2 tokens"]]


@pytest.mark.parametrize(
    ("options", "reason", "processors"),
    [
        ({"no_repeat_ngram_size": 2}, "other logits processors run on them", ["NoRepeatNGramLogitsProcessor"]),
        ({"return_dict_in_generate": True, "output_scores": True}, "they are to be returned", []),
        ({"guidance_scale": 2.0, "repetition_penalty": 1.2}, "transformers penalises mixed log-probabilities", []),
    ],
)
def test_why_it_is_not_faster(options, reason: str, processors):
    found = explain(**options)
    assert any(reason in why for why in found.why_not_faster)
    assert found.unfused_processors == processors
    assert f"not faster because logits are mixed in PyTorch, because {reason}" in str(found)


def test_a_penalty_is_fused_with_padding_too():
    prompts = padded([WORDS, WORDS[:2]])
    found = fastdecode.explain(MODEL, **prompts, max_new_tokens=5, repetition_penalty=1.2, do_sample=True, top_p=0.9)
    assert found.unfused_processors == []
    assert found.text["repetition_penalty"] == 1.2
    assert found.text["top_p"] == 0.9


def test_token_rules_are_told_and_cost_nothing():
    found = explain(
        suppress_tokens=[33], bad_words_ids=[[34]], min_new_tokens=3, eos_token_id=2, sequence_bias=[[[35], 1.5]]
    )
    assert found.unfused_processors == []
    assert found.token_rules == "2 banned, 1 banned from length 0 to 6, 1 biased"
    assert "token rules       2 banned" in str(found)
    assert "token rules" not in str(explain())
    assert not any("logits are mixed in PyTorch" in reason for reason in found.why_not_faster)


def test_criteria_are_named():
    names = MODEL.config.vocabulary_map
    tokenizer = tiny_tokenizer(names | {"abcdef": len(names)})
    found = explain(max_time=9.0, stop_strings="w1", tokenizer=tokenizer)
    assert set(found.stopping_criteria) == {"MaxTimeCriteria", "StopStringCriteria"}
    assert "also stops on" in str(found)


def test_for_programs():
    found = fastdecode.explain(MODEL, **padded([WORDS, WORDS[:2]]), **INTERLEAVED, guidance=2.0, num_return_sequences=1)
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))
    assert found.to_dict()["limits"] == [24, 22]
    assert "of at most 22, 24 tokens" in str(found)
    assert found.sequences == len(found.streams) == 2


def test_nothing_is_decoded_and_no_number_is_drawn(monkeypatch):
    def never(self, *args):
        raise AssertionError("decoding began")

    monkeypatch.setattr(Decoder, "step", never)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    explain(**INTERLEAVED, do_sample=True, streamer=TextStreamer(tiny_tokenizer()), progress=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_draws():
    model = tiny_model(0)
    found = fastdecode.explain(
        model, torch.tensor([WORDS]), multimodal_generation_mode="unrestricted", max_new_tokens=9
    )
    assert found.can_draw
    assert "pictures          can be painted" in str(found)
    assert found.allowed == {"text": V.size, "picture": V.size}
    lacking = fastdecode.explain(tiny_model(0, draws=False), torch.tensor([WORDS]), max_new_tokens=9)
    assert not lacking.can_draw
    assert re.search(r"pictures          cannot be painted: \d+ weights are missing \(model\.vqmodel", str(lacking))


@pytest.mark.parametrize("make", [tiny_janus, tiny_emu3, tiny_liquid])
def test_pictures_of_every_family(make):
    assert str(fastdecode.explain(make(), torch.tensor([WORDS]), max_new_tokens=2)).endswith("can be painted")


def test_a_family_that_paints_nothing(monkeypatch):
    bare = replace(EMU3, name="Bare", paint=None)
    monkeypatch.setattr("fastdecode.models.families.FAMILIES", [bare])
    found = fastdecode.explain(tiny_emu3(), torch.tensor([WORDS]), max_new_tokens=2)
    assert not found.can_draw
    assert str(found).endswith("pictures          cannot be painted: the family Bare has no paint")
    with pytest.raises(ValueError, match=r"^the family Bare has no paint, so image tokens cannot become pictures"):
        fastdecode.generate(tiny_emu3(), torch.tensor([WORDS]), multimodal_generation_mode="image-only")
