"""generation_mode of Janus: codes of whole pictures, text as transformers writes it, and both through the plug."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_models import JANUS_BEGIN, JANUS_CODES, JANUS_SIDE, TEXT, tiny_janus
from models_for_tests import tiny_model
from transformers import GenerationConfig, GenerationMixin, JanusForConditionalGeneration, LogitsProcessor

import fastdecode
from fastdecode.generation.returned_cache import FIELD

TOKENS, COUNT, END = TEXT["vocab_size"], JANUS_SIDE**2, TEXT["eos_token_id"]
PROMPT = torch.tensor([[1, 30, 44, JANUS_BEGIN]])
DRAW: dict[str, Any] = {"multimodal_generation_mode": "image-only"}
CODES: dict[str, Any] = {"generation_mode": "image", "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def janus() -> JanusForConditionalGeneration:
    return tiny_janus()


def plug(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(ids, custom_generate=fastdecode.custom_generate, **options)


class Seen(LogitsProcessor):
    """Notes the shapes of scores, and adds to that of token 40."""

    def __init__(self, added: float = 0.0) -> None:
        self.shapes, self.added = [], added

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(scores.shape))
        scores[:, 40] += self.added
        return scores


# --- the plug ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        DRAW,
        DRAW | {"guidance_scale": 5.0},
        DRAW | {"guidance_scale": 5.0, "max_new_tokens": COUNT + 2},
        DRAW | {"guidance": 2.0, "do_sample": True, "seed": 3, "num_return_sequences": 2},
        DRAW | {"guidance_scale": 2.0, "do_sample": True, "seed": 3, "image": {"top_k": 5}},
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "guidance": 4.0},
        {"max_new_tokens": 6, "guidance_scale": 5.0},
        {"max_new_tokens": 6, "generation_mode": "text"},
        {"generation_config": GenerationConfig(generation_mode="image", guidance_scale=2.0)},
    ],
)
def test_the_plug_returns_what_generate_returns(janus, options: dict[str, Any]):
    wanted = fastdecode.generate(janus, PROMPT, **options)
    assert torch.equal(plug(janus, PROMPT, **options), wanted)
    mask = torch.ones_like(PROMPT)
    named = janus.generate(inputs=PROMPT, attention_mask=mask, custom_generate=fastdecode.custom_generate, **options)
    assert torch.equal(named, wanted)


def test_the_plug_is_guided(janus):
    rows = [plug(janus, PROMPT, **DRAW, guidance_scale=scale).tolist() for scale in (1.0, 5.0)]
    assert rows[0] != rows[1]


def test_the_plug_calls_processors_and_the_streamer(janus):
    """Janus' own generate drops processors of text, and passes the streamer on."""
    seen, told = Seen(1e4), []

    class Streamer:
        put, end = staticmethod(lambda tokens: told.append(tokens.flatten().tolist())), staticmethod(lambda: None)

    found = plug(janus, PROMPT, max_new_tokens=3, logits_processor=[seen], streamer=Streamer())
    assert found[0, 4:].tolist() == [40, 40, 40]
    assert seen.shapes == [(1, TOKENS)] * 3
    assert told == [PROMPT[0].tolist(), [40], [40], [40]]


def test_the_plug_refuses_what_it_cannot_read(janus):
    class Bare(JanusForConditionalGeneration):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return GenerationMixin.generate(self, *args, **kwargs)

    model = tiny_janus()
    model.__class__ = Bare
    with pytest.raises(ValueError, match=r"generate of its own, and what you gave .*: call fastdecode\.generate"):
        plug(model, PROMPT, **DRAW)
    with pytest.raises(ValueError, match="num_beams=2 asks for beam search"):
        plug(janus, PROMPT, max_new_tokens=3, num_beams=2)
    assert torch.equal(
        GenerationMixin.generate(janus, PROMPT, custom_generate=fastdecode.custom_generate, guidance=5.0, **DRAW),
        fastdecode.generate(janus, PROMPT, guidance=5.0, **DRAW),
    )


# --- codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [0, 5, COUNT - 1, COUNT])
def test_codes_of_a_picture_that_a_prompt_began(janus, begun: int):
    whole = fastdecode.generate(janus, PROMPT, **CODES)
    ids = torch.cat([PROMPT, whole[:, :begun] + TOKENS], 1)
    assert torch.equal(fastdecode.generate(janus, ids, **CODES), whole)


def test_codes_of_prompts_that_began_differently(janus):
    whole = fastdecode.generate(janus, PROMPT, **CODES)
    begun = torch.cat([PROMPT, whole[:, :7] + TOKENS], 1)
    ids, mask = torch.zeros(2, begun.shape[1], dtype=torch.long), torch.zeros(2, begun.shape[1], dtype=torch.long)
    ids[0], mask[0] = begun[0], 1
    ids[1, -4:], mask[1, -4:] = PROMPT[0], 1
    options = CODES | {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = fastdecode.generate(janus, ids, attention_mask=mask, **options)
    assert torch.equal(found.sequences, whole.expand(2, -1))
    assert [tuple(step.shape) for step in found.scores] == [(2, JANUS_CODES)] * COUNT
    assert [step[1].argmax().item() for step in found.scores] == whole[0].tolist()
    assert [step[0].argmax().item() for step in found.scores[: COUNT - 7]] == whole[0, 7:].tolist()


def test_scores_and_logits_are_those_of_codes(janus):
    options = CODES | {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = fastdecode.generate(janus, PROMPT, **options)
    plain = fastdecode.generate(janus, PROMPT, **(options | {"guidance_scale": 1.0}))
    assert len(found.scores) == len(found.logits) == COUNT
    assert {tuple(step.shape) for step in (*found.scores, *found.logits)} == {(1, JANUS_CODES)}
    with torch.no_grad():
        hidden = janus.model.language_model(input_ids=PROMPT).last_hidden_state[:, -1]
        torch.testing.assert_close(found.logits[0], janus.model.generation_head(hidden), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.logits[0], found.logits[0])
    assert not torch.allclose(found.scores[0], found.logits[0])
    assert found.sequences.tolist() == [[int(step.argmax()) for step in found.scores]]


def test_lengths_do_not_cut_the_picture(janus, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("fastdecode.generation.generation_mode.logger.warning_once", said.append)
    whole = fastdecode.generate(janus, PROMPT, **CODES)
    assert said == []
    for length in ({"max_new_tokens": 3}, {"max_length": 6}, {"generation_config": GenerationConfig(max_new_tokens=3)}):
        assert torch.equal(fastdecode.generate(janus, PROMPT, **CODES, **length), whole)
    assert [line.split(" has no effect")[0] for line in said] == ["max_new_tokens", "max_length", "max_new_tokens"]


@pytest.mark.parametrize("name", ["stopping_criteria", "stop_strings", "max_time"])
def test_what_would_cut_the_picture_is_refused(janus, name: str):
    value = {"stopping_criteria": [lambda ids, scores: torch.tensor([True])], "stop_strings": "x", "max_time": 1.0}[
        name
    ]
    with pytest.raises(ValueError, match=rf"^{name} could end the picture early, and generation_mode='image' returns"):
        fastdecode.generate(janus, PROMPT, **CODES, **{name: value})
    assert fastdecode.generate(janus, PROMPT, **CODES, stopping_criteria=[]).shape == (1, COUNT)


def test_a_prompt_without_begin_of_image_is_refused(janus):
    ids = torch.tensor([[1, 30, JANUS_BEGIN], [1, 30, 31]])
    for way in (fastdecode.generate, fastdecode.explain):
        with pytest.raises(ValueError, match=rf"^prompt 1 does not end in token {JANUS_BEGIN}, which begins a picture"):
            way(janus, ids, **CODES, num_return_sequences=2, do_sample=True)
    assert fastdecode.generate(janus, ids, **DRAW).shape == (2, 3 + 1 + COUNT + 1)


def test_generation_mode_in_a_generation_config():
    model = tiny_janus()
    wanted = fastdecode.generate(model, PROMPT, **CODES)
    config = GenerationConfig(**CODES)
    assert torch.equal(fastdecode.generate(model, PROMPT, generation_config=config), wanted)
    text = fastdecode.generate(model, PROMPT, generation_config=config, generation_mode="text", max_new_tokens=3)
    assert text.shape == (1, 7)
    tokens = fastdecode.generate(model, PROMPT, generation_config=config, **DRAW)
    assert torch.equal(tokens[:, 4:-1] - TOKENS, wanted)
    model.generation_config.generation_mode = "image"
    assert torch.equal(fastdecode.generate(model, PROMPT, guidance_scale=3.0), wanted)
    both = GenerationConfig(generation_mode="image", multimodal_generation_mode="text-only")
    with pytest.raises(ValueError, match=r"generation_mode='image' and multimodal_generation_mode='text-only' were"):
        fastdecode.generate(model, PROMPT, generation_config=both)
    with pytest.raises(ValueError, match="generation_mode='video': give 'text' or 'image'"):
        fastdecode.generate(model, PROMPT, generation_config=GenerationConfig(generation_mode="video"))


# --- text -------------------------------------------------------------------------------------------------------


def test_scores_of_text_are_those_of_the_language_model(janus):
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    wanted, seen = janus.generate(PROMPT, **options), Seen()
    for more in ({}, {"logits_processor": [seen]}, {"sequence_bias": [[[TOKENS + 3], 9.0]]}):
        found = fastdecode.generate(janus, PROMPT, **options, **more)
        assert torch.equal(found.sequences, wanted.sequences)
        for name in ("scores", "logits"):
            for ours, theirs in zip(getattr(found, name), getattr(wanted, name), strict=True):
                assert ours.shape == (1, TOKENS)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert seen.shapes == [(1, TOKENS)] * 4


def test_pictures_and_prompts_with_image_tokens_have_scores_of_all_tokens(janus):
    """Processors look tokens of the prompt up in the scores."""
    drawn, read = Seen(), Seen()
    fastdecode.generate(janus, PROMPT, **DRAW, logits_processor=[drawn])
    ids = torch.tensor([[1, 30, TOKENS + 9, 33]])
    fastdecode.generate(janus, ids, max_new_tokens=2, logits_processor=[read], repetition_penalty=1.2)
    assert {*drawn.shapes, *read.shapes} == {(1, TOKENS + JANUS_CODES)}


def test_guidance_scale_does_nothing_in_text(janus):
    wanted = janus.generate(PROMPT, max_new_tokens=8, guidance_scale=5.0)
    negative = torch.tensor([[1, 50]])
    for more in ({}, {"guidance_scale": 5.0}, {"guidance_scale": 5.0, "negative_prompt_ids": negative}):
        assert torch.equal(fastdecode.generate(janus, PROMPT, max_new_tokens=8, **more, fallback="error"), wanted)
    assert not torch.equal(fastdecode.generate(janus, PROMPT, max_new_tokens=8, guidance=5.0), wanted)
    with pytest.raises(ValueError, match="guidance_scale='high': give a finite number"):
        fastdecode.generate(janus, PROMPT, max_new_tokens=8, guidance_scale="high")
    with pytest.raises(ValueError, match="negative_prompt_ids is a list"):
        fastdecode.generate(janus, PROMPT, max_new_tokens=8, guidance_scale=2.0, negative_prompt_ids=[1])


def test_the_log_says_that_guidance_scale_does_nothing_in_text(janus, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("fastdecode.generation.generation_mode.logger.warning_once", said.append)
    fastdecode.generate(janus, PROMPT, max_new_tokens=2)
    assert said == []
    fastdecode.generate(janus, PROMPT, max_new_tokens=2, guidance_scale=5.0)
    assert len(said) == 1
    assert "guidance= guides text" in said[0]


# --- image tokens in prompts of text ----------------------------------------------------------------------------


@torch.no_grad()
def test_the_cache_of_a_prompt_with_image_tokens(janus):
    ids = torch.tensor([[0, 1, 30, JANUS_BEGIN, TOKENS + 9, TOKENS + 10, 33], [1, 31, 32, 34, 35, 36, 37]])
    mask = (ids != 0).long()
    options = {"attention_mask": mask, "max_new_tokens": 3}
    found = fastdecode.generate(janus, ids, **options, return_dict_in_generate=True)
    assert torch.equal(found.sequences, fastdecode.generate(janus, ids, **options))
    kept = found.sequences[0, 1:-1]
    codes = kept[3:5] - TOKENS
    x = torch.cat(
        [
            janus.get_input_embeddings()(kept[:3]),
            janus.prepare_embeddings_for_image_generation(codes[None])[0],
            janus.get_input_embeddings()(kept[5:]),
        ]
    )
    wanted = janus.model.language_model(inputs_embeds=x[None], use_cache=True)[FIELD]
    for ours, theirs in zip(found[FIELD].layers, wanted.layers, strict=True):
        torch.testing.assert_close(ours.keys[0, :, 1:], theirs.keys[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.values[0, :, 1:], theirs.values[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"cache_implementation": "static"}])
def test_a_prompt_with_image_tokens_is_not_handed_over(janus, options: dict[str, Any]):
    ids = torch.tensor([[1, 30, TOKENS + 9, 33]])
    for way in (fastdecode.generate, fastdecode.explain):
        with pytest.raises(ValueError, match=rf"cannot decode .* input_ids\[0, 2\] = {TOKENS + 9} is an image token"):
            way(janus, ids, max_new_tokens=3, **options)
    with pytest.raises(ValueError, match="is an image token, which it does not read"):
        fastdecode.generate(torch.compile(janus), ids, max_new_tokens=3, **options)
    assert fastdecode.generate(janus, PROMPT, max_new_tokens=3, num_beams=2).shape == (1, 7)
    assert fastdecode.generate(torch.compile(janus), PROMPT, max_new_tokens=3, num_beams=2).shape == (1, 7)
    chameleon = tiny_model(0)
    assert fastdecode.generate(chameleon, torch.tensor([[0, 4, 5]]), max_new_tokens=3, num_beams=2).shape[1] <= 6


def test_lengths_that_a_picture_does_not_have(janus):
    with pytest.raises(ValueError, match=r"^min_new_tokens=400: .* after a picture of 18 tokens; leave it out$"):
        fastdecode.generate(janus, PROMPT, **DRAW, min_new_tokens=400)
