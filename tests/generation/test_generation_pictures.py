"""Pictures against a plain loop without a cache: alone and in batches, with and without guidance."""

import logging
import re
import warnings
from functools import partial

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
    tiny_model,
    whole_logits,
)
from transformers import GenerationConfig, LogitsProcessorList

import fastdecode
from fastdecode import Guidance, ops
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import encode_pictures
from fastdecode.vocabulary import Vocabulary

INTERLEAVED = "interleaved-text-image"
TEXT, IMAGE = {"temperature": 1.3, "top_p": 0.95}, {"temperature": 0.8, "top_k": 9, "repetition_penalty": 1.3}


def mixed_logits(model, recipe: str, ids, prompt_length: int, tail: int, negative, original) -> torch.Tensor:
    """The guided logits of the next id, each stream by a whole forward pass. ``tail`` < 0: not in a picture."""
    v = vocabulary_of(model)
    full = whole_logits(model, ids)[-1]
    if tail < 0 or recipe == "none":
        return full
    drawn = ids[tail:]
    u = whole_logits(model, [v.bos, *drawn])[-1]
    if recipe == "two_way":
        return u + 3.0 * (full - u)
    images = [i for i in ids if i in v.image_ids or i in (v.begin_image, v.end_image, v.bos)]
    i = whole_logits(model, images)[-1]
    if recipe == "instruct":
        return u + 1.2 * (i - u) + 3.0 * (full - i)
    if recipe == "negative":
        n = whole_logits(model, [*negative, *ids[prompt_length:]])[-1]
        return n + 2.0 * (full - n)
    b = whole_logits(model, drawn)[-1]
    n, o = (whole_logits(model, [*other, *drawn])[-1] for other in (negative, original))
    return b + 2.0 * (full - i) + 1.2 * (i - b) - 0.5 * (n - b) + 3.0 * (o - b)


GUIDANCE = {
    "none": lambda negative, original: None,
    "two_way": lambda negative, original: Guidance.two_way(3.0),
    "instruct": lambda negative, original: Guidance.instruct(text=3.0, image=1.2),
    "negative": lambda negative, original: Guidance.two_way(2.0, negative),
    "five_way": lambda negative, original: Guidance.five_way(
        negative, original, full=2.0, image=1.2, against=0.5, toward=3.0
    ),
}


def reference(model, prompt, recipe: str, limit: int, seed: int, negative, original) -> list[int]:
    """New ids of one interleaved sequence: no cache, no batch, no tables."""
    v = vocabulary_of(model)
    ids, tail = list(prompt), -1
    while len(ids) < limit:
        if tail >= 0 and len(ids) - tail == v.image_length + 1:
            token, tail = v.end_image, -1
        else:
            z = mixed_logits(model, recipe, ids, len(prompt), tail, negative, original)
            allowed = set(v.image_ids)
            if tail < 0:
                allowed = set(range(v.size)) - v.image_ids - {v.end_image, v.placeholder, v.pad, v.bos}
                if len(ids) + v.image_length + 2 > limit:
                    allowed -= {v.begin_image}
            z[[i for i in range(v.size) if i not in allowed]] = -torch.inf
            settings = {
                "penalty" if k == "repetition_penalty" else k: x for k, x in (IMAGE if tail >= 0 else TEXT).items()
            }
            drawn = ops.sample(
                z[None], seen=ops.seen_bits([ids], v.size), seed=seed, step=len(ids), backend="reference", **settings
            )
            token = int(drawn.token)
            tail = len(ids) if token == v.begin_image else tail
        ids.append(token)
        if token == EOS:
            break
    return ids[len(prompt) :]


def blocks(row, vocabulary: Vocabulary, text: str = "t") -> str:
    letters = {vocabulary.begin_image: "b", vocabulary.end_image: "e", PAD: "p", EOS: "x"}
    return "".join("i" if i in vocabulary.image_ids else letters.get(i, text) for i in row)


@pytest.mark.parametrize("seed", [6, 9, 20, 23])  # models that draw a lot
@pytest.mark.parametrize("recipe", GUIDANCE)
def test_against_a_loop_without_a_cache(recipe: str, seed: int):
    model = drawing_model(seed, swin_norm=seed % 2 == 1, kv_heads=2, scattered=seed % 3 == 2)
    v = vocabulary_of(model)
    negative, original = ([BOS, *text_ids(model, 70 + k, 2 + k)] for k in range(2))
    shown = encode_pictures(model, pixels(seed, 1))[0].tolist()
    words = [text_ids(model, 90 + i + seed, n) for i, n in enumerate((2, 5, 3))]
    prompts = [
        [BOS, *words[0]],
        [BOS, *words[1], *placeholder_block(v), *words[0]],
        [BOS, *words[2]],
    ]
    seeds, new = [11, 12 + seed, 13], 40
    found = fastdecode.generate(
        model,
        **padded(prompts),
        pixel_values=pixels(seed, 1),
        multimodal_generation_mode=INTERLEAVED,
        max_new_tokens=new,
        do_sample=True,
        top_k=0,
        text=TEXT,
        image=IMAGE,
        guidance=GUIDANCE[recipe](negative, original),
        seed=seeds,
    )
    width = max(map(len, prompts))
    pictures = 0
    for row, prompt, s in zip(found[:, width:].tolist(), prompts, seeds, strict=True):
        filled = [BOS, *words[1], v.begin_image, *shown, v.end_image, *words[0]] if len(prompt) > 9 else prompt
        expected = reference(model, filled, recipe, len(prompt) + new, s, negative, original)
        assert row == expected + [PAD] * (len(row) - len(expected))
        pictures += blocks(expected, v).count("e")
    assert pictures >= 4


@pytest.mark.parametrize("offset", [0, 1, 3, 4])
@pytest.mark.parametrize("recipe", ["none", "two_way", "negative", "five_way"])
def test_a_prompt_that_ends_inside_a_picture(recipe: str, offset: int):
    """The guidance streams of an unfinished picture begin with it."""
    model = tiny_model(4)
    v = vocabulary_of(model)
    prompt = [BOS, *text_ids(model, 1, 4), v.begin_image, *v.code_ids[:offset]]
    negative, original = [BOS, *text_ids(model, 2, 2)], [BOS, *text_ids(model, 3, 3)]
    found = fastdecode.generate(
        model,
        torch.tensor([prompt]),
        multimodal_generation_mode="image-only",
        guidance=GUIDANCE[recipe](negative, original),
        do_sample=False,
    )[0].tolist()
    ids, tail = list(prompt), 5
    while len(ids) - tail <= v.image_length:
        start = ids[:1] + ids[1:]
        picture = ids[tail:]
        if recipe == "negative":
            n = whole_logits(model, [*negative, *picture])[-1]
            z = n + 2.0 * (whole_logits(model, start)[-1] - n)
        else:
            z = mixed_logits(model, recipe, start, len(prompt), tail, negative, original)
        ids.append(max(v.image_ids, key=lambda i, z=z: float(z[i])))
    assert found == [*ids, v.end_image]


def test_image_only_draws_one_picture_and_ends():
    model = tiny_model(5)
    v = vocabulary_of(model)
    prompts = [[BOS, *text_ids(model, i, n)] for i, n in enumerate((3, 1, 6))]
    prompts[1] += [v.begin_image, v.code_ids[3]]
    options = {**padded(prompts), "multimodal_generation_mode": "image-only", "do_sample": True, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers has something to say of calls without a length
        fastdecode.generate(model, **options)
    found = fastdecode.generate(model, **options)
    words = [blocks(row, v) for row in found[:, 7:].tolist()]
    assert words == ["biiiie", "iiiepp", "biiiie"]
    assert torch.equal(fastdecode.generate(model, **options, max_new_tokens=6), found)
    plugged = model.generate(**options, max_new_tokens=20, custom_generate=fastdecode.custom_generate)
    assert torch.equal(plugged, found)


BATCH = {
    "none": {},
    "guided": {"guidance": Guidance.instruct()},
    "scale": {"guidance_scale": 2.0},
    "everywhere": {"guidance": Guidance.two_way(2.0, everywhere=True)},
    "penalty": {"text": {"repetition_penalty": 1.4, **TEXT}, "image": IMAGE, "guidance": 3.0},
    "unfused": {"min_new_tokens": 20, "guidance": Guidance.instruct(), "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("mode", [INTERLEAVED, "unrestricted", "text-only"])
def test_batches_are_single_runs(name: str, mode: str):
    options = {"multimodal_generation_mode": mode, "max_new_tokens": 45, "do_sample": True, "top_k": 0, **BATCH[name]}
    if mode == "text-only":
        options |= {"guidance": None, "image": None}  # what acts inside pictures is refused
    model = drawing_model(6, kv_heads=2, swin_norm=True)
    v = vocabulary_of(model)
    prompts = [[BOS, *text_ids(model, i, n)] for i, n in enumerate((2, 9, 5, 1))]
    prompts[2] += placeholder_block(v)
    shown = pixels(1, 1)
    seeds = [101, -7, 2**62, 101]
    together = fastdecode.generate(model, **padded(prompts), pixel_values=shown, seed=seeds, **options)
    width = max(map(len, prompts))
    words = []
    for row, prompt, seed in zip(together[:, width:].tolist(), prompts, seeds, strict=True):
        more = {"pixel_values": shown} if v.placeholder in prompt else {}
        alone = fastdecode.generate(model, torch.tensor([prompt]), seed=seed, **more, **options)[
            0, len(prompt) :
        ].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {PAD}
        words.append(blocks(row, v))
    if mode == INTERLEAVED:
        for word in words:
            assert re.fullmatch(r"(t|biiiie)*(x?p*)", word), word
        places = [{i for i, letter in enumerate(word) if letter == "i"} for word in words]
        assert len({frozenset(p) for p in places}) > 1  # rows switch modality on their own
        assert sum(map(len, places)) > 8


def test_seeds():
    model = drawing_model(7)
    prompt = [BOS, *text_ids(model, 0, 3)]
    options = {"multimodal_generation_mode": INTERLEAVED, "max_new_tokens": 30, "do_sample": True, "guidance": 2.0}

    def draw(prompts, **more) -> list[list[int]]:
        return fastdecode.generate(model, **padded(prompts), **options, **more)[:, len(prompt) :].tolist()

    assert draw([prompt], seed=5) == draw([prompt], seed=5)
    assert draw([prompt], seed=5) != draw([prompt], seed=6)
    assert draw([prompt] * 2, seed=5)[0] == draw([prompt] * 2, seed=5)[1]
    four = draw([prompt] * 4, seed=[1, 2, 3, 4])
    assert len({tuple(row) for row in four}) == 4
    torch.manual_seed(1)
    first = draw([prompt] * 3)
    assert first != draw([prompt] * 3)
    torch.manual_seed(1)
    assert draw([prompt] * 3) == first
    assert len({tuple(row) for row in first}) == 3


def test_num_return_sequences():
    model = drawing_model(8)
    v = vocabulary_of(model)
    prompts = [[BOS, *text_ids(model, 0, 3), *placeholder_block(v)], [BOS, *text_ids(model, 1, 4)]]
    prompts.append([BOS, *placeholder_block(v), *placeholder_block(v)])
    options = {
        **padded(prompts),
        "pixel_values": pixels(3, 3),
        "multimodal_generation_mode": INTERLEAVED,
        "max_new_tokens": 25,
        "do_sample": True,
        "guidance": Guidance.instruct(),
    }
    found = fastdecode.generate(model, **options, num_return_sequences=3, seed=[4, 5, 6])
    assert len(found) == 9
    assert torch.equal(found[:, : len(prompts[2])], options["input_ids"].repeat_interleave(3, 0))
    once = fastdecode.generate(model, **options, seed=[4, 5, 6])
    for row, single in zip(found[::3].tolist(), once.tolist(), strict=True):
        assert row[: len(single)] == single[: len(row)]
    assert len({tuple(row) for row in found[:3].tolist()}) == 3
    plugged = model.generate(
        **options, num_return_sequences=3, seed=[4, 5, 6], custom_generate=fastdecode.custom_generate
    )
    assert torch.equal(plugged, found)


def test_negative_prompts_with_num_return_sequences():
    model = tiny_model(9)
    prompts = [[BOS, *text_ids(model, i, 3)] for i in range(2)]
    negative = torch.tensor([[BOS, *text_ids(model, 7 + i, 2)] for i in range(2)])
    options = {"multimodal_generation_mode": "image-only", "guidance_scale": 3.0, "do_sample": True, "seed": 1}
    found = fastdecode.generate(
        model, **padded(prompts), negative_prompt_ids=negative, num_return_sequences=2, **options
    )
    for i in range(2):
        alone = fastdecode.generate(
            model, torch.tensor(prompts[i : i + 1]), negative_prompt_ids=negative[i : i + 1], **options
        )
        assert torch.equal(found[2 * i], alone[0])


@pytest.mark.parametrize("way", ["plug", "enable"])
@pytest.mark.parametrize("more", [{}, {"guidance_scale": 3.0}, {"guidance": Guidance.instruct()}], ids=str)
def test_all_ways_of_calling_give_the_same(way: str, more: dict):
    model = drawing_model(10)
    v = vocabulary_of(model)
    prompts = [[BOS, *text_ids(model, 0, 3), *placeholder_block(v)], [BOS, *text_ids(model, 1, 4)]]
    options = {
        **padded(prompts),
        "pixel_values": pixels(3, 1),
        "multimodal_generation_mode": INTERLEAVED,
        "max_new_tokens": 30,
        "do_sample": True,
        "image": {"temperature": 0.9},
        "text": {"top_k": 5},
        "seed": [1, 2],
        **more,
    }
    expected = fastdecode.generate(model, **options)
    if way == "plug":
        assert torch.equal(model.generate(**options, custom_generate=fastdecode.custom_generate), expected)
    else:
        assert torch.equal(fastdecode.enable(model).generate(**options), expected)


def test_guidance_streams_are_given_up_after_a_picture(monkeypatch):
    model = drawing_model(11)
    prompts = [[BOS, *text_ids(model, i, n)] for i, n in enumerate((3, 5, 2))]
    rows = []
    step = Decoder.step
    monkeypatch.setattr(
        Decoder, "step", lambda self, cache, tokens: rows.append(len(tokens)) or step(self, cache, tokens)
    )
    found = fastdecode.generate(
        model,
        **padded(prompts),
        multimodal_generation_mode=INTERLEAVED,
        max_new_tokens=40,
        do_sample=True,
        guidance=2.0,
        seed=[1, 2, 3],
    )
    v = vocabulary_of(model)
    words = [blocks(row, v) for row in found[:, 6:].tolist()]
    expected = []
    for i in range(len(rows)):
        live = [w for w in words if w[i] != "p"]
        expected.append(sum(1 + (w[i] in "ie") for w in live))
    assert rows == expected
    assert {1, 2, 3, 4, 5} & set(rows) >= {2, 3, 4}


class Hiding(torch.nn.Module):
    """A head that makes an id impossible."""

    def __init__(self, head: torch.nn.Linear, hidden: int) -> None:
        super().__init__()
        self.head, self.hidden = head, hidden

    def forward(self, x):
        logits = self.head(x)
        logits[..., self.hidden] = -torch.inf
        return logits


@pytest.mark.parametrize(
    "guidance", [None, Guidance.two_way(3.0), Guidance.two_way(-1.0)], ids=["none", "more", "less"]
)
def test_an_impossible_id_stays_impossible_in_every_mixture(guidance):
    model = tiny_model(16)
    v = vocabulary_of(model)
    options = {
        "input_ids": torch.tensor([[BOS, *text_ids(model, 0, 4)]]),
        "multimodal_generation_mode": "image-only",
        "guidance": guidance,
    }
    first = int(fastdecode.generate(model, **options)[0, 6])
    model.lm_head = Hiding(model.lm_head, first)
    fused = fastdecode.generate(model, **options)
    assert first in v.image_ids
    assert first not in fused[0].tolist()
    unfused = fastdecode.generate(model, **options, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(unfused.sequences, fused)


def test_a_processor_cannot_lift_what_the_grammar_bans():
    model = drawing_model(6)
    v = vocabulary_of(model)
    lifted = [v.code_ids[0], v.end_image, EOS, v.begin_image]

    def lift(ids, scores):
        scores = scores.clone()
        scores[:, lifted] = 50.0
        return scores

    found = fastdecode.generate(
        model,
        **padded([[BOS, 33], [BOS, 33, v.begin_image, v.code_ids[1]]]),
        multimodal_generation_mode=INTERLEAVED,
        max_new_tokens=6,
        logits_processor=LogitsProcessorList([lift]),
    )
    first, end = v.code_ids[0], v.end_image
    assert found[:, 4:].tolist() == [[EOS, *[PAD] * 4], [first, first, first, end, EOS]]


def test_guidance_changes_pictures_and_leaves_text_alone():
    model = tiny_model(12)
    v = vocabulary_of(model)
    prompt = torch.tensor([[BOS, *text_ids(model, 0, 4)]])
    keep = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
    drawn = [
        fastdecode.generate(model, prompt, multimodal_generation_mode="image-only", guidance=scale, **keep)
        for scale in (None, 1.0, 4.0)
    ]
    images = list(v.image_ids)
    assert torch.equal(drawn[0].scores[1], drawn[1].scores[1])
    assert not torch.allclose(drawn[0].scores[1][:, images], drawn[2].scores[1][:, images])
    text = fastdecode.generate(model, prompt, multimodal_generation_mode=INTERLEAVED, guidance=4.0, max_new_tokens=10)
    assert torch.equal(
        text[:, :6],
        fastdecode.generate(model, prompt, multimodal_generation_mode=INTERLEAVED, max_new_tokens=10)[:, :6],
    )


def kept_ids(model, **options) -> tuple[int, int]:
    """Ids with a chance, in text and in a picture."""
    v = vocabulary_of(model)
    prompts = [[BOS, 40], [BOS, v.begin_image]]
    options |= {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    decode = model.generate if "custom_generate" in options else partial(fastdecode.generate, model)
    found = decode(**padded(prompts), multimodal_generation_mode=INTERLEAVED, **options)
    text, image = (found.scores[0] > -torch.inf).sum(1).tolist()
    return text, image


def test_transformers_default_top_k_is_for_text_only():
    model = tiny_model(13, codes=90, words=90)
    assert kept_ids(model, do_sample=True) == (50, 90)
    assert kept_ids(model, do_sample=True, top_k=50) == (50, 50)
    assert kept_ids(model, do_sample=True, image={"top_k": 7}) == (50, 7)
    assert kept_ids(model, do_sample=True, text={"top_k": 7}) == (7, 90)
    assert kept_ids(model, generation_config=GenerationConfig(do_sample=True, top_k=50)) == (50, 50)
    plug = {"custom_generate": fastdecode.custom_generate}
    assert kept_ids(model, do_sample=True, **plug) == (50, 90)
    assert kept_ids(model, do_sample=True, top_k=50, **plug) == (50, 50)
    assert kept_ids(model, generation_config=GenerationConfig(do_sample=True, top_k=50), **plug) == (50, 50)
    model.generation_config.top_k = 50
    assert kept_ids(model, do_sample=True) == (50, 50)


def test_the_length_of_one_picture_is_not_taken_for_an_argument_of_the_call(caplog):
    """transformers warns about a call that has a generation_config and lengths, which nobody gave here."""
    model = tiny_model(13)
    config = GenerationConfig(multimodal_generation_mode="image-only")
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        out = fastdecode.generate(model, torch.tensor([[BOS, 40]]), generation_config=config)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert out.shape[1] == 2 + vocabulary_of(model).image_length + 2
    assert config.max_new_tokens is None
    assert caplog.messages == []
