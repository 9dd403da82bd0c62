"""Janus: pictures and text against transformers' own loop for it."""

from __future__ import annotations

import pytest
import torch
from family_models import JANUS_BEGIN, JANUS_CODES, JANUS_PLACEHOLDER, JANUS_SIDE, TEXT, janus_processor, tiny_janus

import fastdecode
from fastdecode.models.families import vocabulary_of

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
    model, inputs = tiny_janus(), prompts(9, 14, 4)
    options = {"generation_mode": "image", "guidance_scale": scale, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    found = fastdecode.generate(model, **inputs, **options)
    assert found.shape == (3, COUNT)
    assert torch.equal(found, wanted)
    assert len({tuple(row) for row in found.tolist()}) == 3


@torch.no_grad()
def mixed(model, ids: torch.Tensor, codes: list[int], scale: float) -> torch.Tensor:
    """(codes,) float64: u + scale (c - u) after ``codes``; u is the prompt in padding tokens."""
    blank = ids.clone()
    blank[(ids != 1) & (ids != JANUS_BEGIN)] = 0
    logits = []
    for row in (ids, blank):
        x = model.get_input_embeddings()(row[None])
        if codes:
            x = torch.cat([x, model.prepare_embeddings_for_image_generation(torch.tensor([codes]))], 1)
        hidden = model.model.language_model(inputs_embeds=x).last_hidden_state[0, -1]
        logits.append(model.model.generation_head(hidden).double())
    c, u = logits
    return u + scale * (c - u)


def test_draws_have_the_distribution_of_the_mixed_logits():
    """The first code of 4,000 pictures, of the 50 likeliest, as transformers takes them without a top_k."""
    model, inputs, count = tiny_janus(2), prompts(6), 4000
    logits = mixed(model, inputs["input_ids"][0], [], 2.0)
    chances = torch.softmax(logits, 0)
    assert len(chances) < 50
    options = {"generation_mode": "image", "guidance_scale": 2.0, "do_sample": True, "seed": 11}
    drawn = []
    for part in range(4):
        rows = fastdecode.generate(model, **inputs, **(options | {"seed": 11 + part}), num_return_sequences=count // 4)
        drawn += rows[:, 0].tolist()
    expected = chances * count
    seen = torch.bincount(torch.tensor(drawn), minlength=JANUS_CODES).double()
    large = expected >= 5
    statistic = ((seen - expected)[large] ** 2 / expected[large]).sum() + (
        (seen[~large].sum() - expected[~large].sum()) ** 2 / expected[~large].sum().clamp(min=1e-9)
    )
    freedom = int(large.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations above its mean


def test_tokens_and_codes():
    model, inputs = tiny_janus(), prompts(9, 4)
    options = {"guidance_scale": 5.0, "do_sample": False}
    codes = fastdecode.generate(model, **inputs, generation_mode="image", **options)
    tokens = fastdecode.generate(model, **inputs, multimodal_generation_mode="image-only", **options)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(tokens[:, :width], inputs["input_ids"])
    assert torch.equal(tokens[:, width:-1] - TOKENS, codes)
    assert (tokens[:, -1] == TEXT["eos_token_id"]).all()
    whole = fastdecode.generate(
        model, **inputs, generation_mode="image", **options, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(whole.sequences, codes)
    assert len(whole.scores) >= COUNT


def test_the_scale_is_5_where_none_is_given(caplog):
    model, inputs = tiny_janus(), prompts(9)
    wanted = fastdecode.generate(model, **inputs, generation_mode="image", guidance_scale=5.0)
    assert torch.equal(fastdecode.generate(model, **inputs, generation_mode="image"), wanted)
    lower = fastdecode.generate(model, **inputs, generation_mode="image", guidance_scale=2.0)
    none = fastdecode.generate(model, **inputs, generation_mode="image", guidance_scale=1.0)  # transformers fails here
    assert len({tuple(rows[0].tolist()) for rows in (wanted, lower, none)}) == 3
    model.generation_config.guidance_scale = 2.0
    assert torch.equal(fastdecode.generate(model, **inputs, generation_mode="image"), lower)


def test_pictures_are_those_of_the_models_own_decoder():
    model, processor, inputs = tiny_janus(), janus_processor(), prompts(9, 4)
    tokens = fastdecode.generate(model, **inputs, multimodal_generation_mode="image-only", do_sample=True, seed=1)
    width = inputs["input_ids"].shape[1]
    drawn = [part for [part] in fastdecode.to_documents(model, processor, tokens, start=width)]
    with torch.no_grad():
        pixels = model.decode_image_tokens(tokens[:, width:-1] - TOKENS)
    levels = ((pixels * 0.5 + 0.5) * 255).clamp(0, 255).byte()  # what its processor makes of them
    for ours, theirs in zip(drawn, levels, strict=True):
        assert ours.size == (8, 8)
        assert ours.tobytes() == bytes(theirs.flatten().tolist())
    half = tiny_janus().bfloat16()
    again = [part for [part] in fastdecode.to_documents(half, processor, tokens, start=width)]
    assert [picture.size for picture in again] == [picture.size for picture in drawn]


@pytest.mark.parametrize("config_scale", [None, 5.0])
def test_text_is_that_of_transformers(config_scale: float | None):
    """The scale in the generation_config is that of pictures: transformers ignores it in text."""
    model, inputs = tiny_janus(), prompts(9, 14, image=False)
    model.generation_config.guidance_scale = config_scale
    options = {"max_new_tokens": 30, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    assert torch.equal(fastdecode.generate(model, **inputs, **options), wanted)
    assert torch.equal(fastdecode.generate(model, **inputs, **options, generation_mode="text"), wanted)
    fastdecode.enable(model)
    assert torch.equal(model.generate(**inputs, **options, generation_mode="text"), wanted)


def test_an_enabled_model_and_an_engine_draw_the_same():
    model, inputs = tiny_janus(), prompts(9)
    options = {"guidance_scale": 5.0, "do_sample": False}
    wanted = model.generate(**inputs, **options, generation_mode="image")
    engine = fastdecode.Engine(model, janus_processor())
    handle = engine.submit(inputs, **options, multimodal_generation_mode="image-only")
    engine.run()
    [done] = [event for event in handle if isinstance(event, fastdecode.PictureDone)]
    assert done.image.size == (8, 8)
    assert [token - TOKENS for token in handle.tokens[:-1]] == wanted[0].tolist()
    fastdecode.enable(model)
    assert torch.equal(model.generate(**inputs, **options, generation_mode="image"), wanted)


def test_hooks_are_followed():
    model, inputs = tiny_janus(), prompts(9, 4)
    model.model.language_model.layers[1].register_forward_hook(lambda module, args, output: output * 0.5)
    options = {"generation_mode": "image", "guidance_scale": 5.0, "do_sample": False}
    assert "forward" in str(fastdecode.explain(model, **inputs, **options))
    assert torch.equal(fastdecode.generate(model, **inputs, **options), model.generate(**inputs, **options))


def test_draws_are_the_same_alone_and_in_a_batch():
    model, inputs = tiny_janus(3), prompts(9, 14, 4)
    options = {"generation_mode": "image", "guidance_scale": 3.0, "do_sample": True, "deterministic": True}
    together = fastdecode.generate(model, **inputs, **options, seed=[1, 2, 3])
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.equal(fastdecode.generate(model, **alone, **options, seed=row + 1)[0], together[row])


def test_what_is_refused():
    model, inputs = tiny_janus(), prompts(9)
    with pytest.raises(ValueError, match="generation_mode='video': give 'text' or 'image'"):
        fastdecode.generate(model, **inputs, generation_mode="video")
    with pytest.raises(ValueError, match=r"generation_mode='image' and multimodal_generation_mode='text-only' were"):
        fastdecode.generate(model, **inputs, generation_mode="image", multimodal_generation_mode="text-only")
    for mode in ("interleaved-text-image", "unrestricted"):
        with pytest.raises(ValueError, match="Janus draws one picture to a prompt; choose 'image-only'"):
            fastdecode.generate(model, **inputs, multimodal_generation_mode=mode, max_new_tokens=40)
    with pytest.raises(ValueError, match=r"draws no pictures of 64x64 pixels .*: only of 8x8"):
        fastdecode.generate(model, **inputs, generation_mode="image", image_size=(64, 64))
    pictures = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    with pytest.raises(ValueError, match="reads pictures as vectors, and draws after text alone"):
        fastdecode.generate(model, **inputs, **pictures, generation_mode="image")
    model.generation_config.generation_kwargs = {}
    with pytest.raises(ValueError, match="has no 'boi_token_id', the token that begins a picture"):
        fastdecode.generate(model, **inputs, generation_mode="image")
    model.generation_config.boi_token_id = JANUS_BEGIN  # where a newer converter writes it
    assert vocabulary_of(model).begin_image == JANUS_BEGIN
    assert vocabulary_of(model).placeholder == JANUS_PLACEHOLDER


def test_options_in_the_generation_config():
    """The mode may stand there, and the guidance of pictures then counts; in text it does not."""
    model, inputs = tiny_janus(), prompts(9)
    wanted = fastdecode.generate(model, **inputs, generation_mode="image", guidance_scale=3.0)
    model.generation_config.guidance_scale = 3.0
    model.generation_config.multimodal_generation_mode = "image-only"
    tokens = fastdecode.generate(model, **inputs)
    assert torch.equal(tokens[:, inputs["input_ids"].shape[1] : -1] - TOKENS, wanted)
    assert torch.equal(fastdecode.generate(model, **inputs, generation_mode="image"), wanted)
    text = fastdecode.generate(model, **inputs, generation_mode="text", max_new_tokens=5)
    assert text.shape[1] == inputs["input_ids"].shape[1] + 5
    assert (text < TOKENS).all()


def test_image_only_has_no_guidance_of_its_own():
    """As for all models; a recipe or guidance= gives it."""
    model, inputs = tiny_janus(), prompts(9)
    explained = fastdecode.explain(model, **inputs, multimodal_generation_mode="image-only")
    assert explained.streams == [["+1 x full, 9 tokens"]]
    explained = fastdecode.explain(model, **inputs, generation_mode="image")
    assert [line.split(",")[0] for line in explained.streams[0]] == ["+5 x full", "-4 x blank"]
