"""Pictures that a model reads as vectors (Janus, LLaVA): text about them is that of transformers' own loop."""

import logging

import pytest
import torch
from family_models import JANUS_PLACEHOLDER, JANUS_SIDE, TEXT, tiny_janus, tiny_llava

import fastdecode
from fastdecode import Guidance
from fastdecode.generation import api
from fastdecode.models.vectors import VectorReader, fill_vectors, read_vectors


def _llava_next():
    model = tiny_llava("llava_next", "qwen2")
    model.config.image_grid_pinpoints = [[32, 32], [16, 32]]
    return model


NEW = {"max_new_tokens": 20, "do_sample": False}
MODELS = {
    "janus": (tiny_janus, JANUS_PLACEHOLDER),
    "llava": (lambda: tiny_llava("llava"), 5),
    "llava_next": (_llava_next, 5),
}


def pictures(name: str, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "janus":
        side = 8 * JANUS_SIDE
        return {"pixel_values": torch.rand(count, 3, side, side, generator=generator)}
    if name == "llava":
        return {"pixel_values": torch.rand(count, 3, 16, 16, generator=generator)}
    sizes = torch.tensor([[30, 32]] * count)
    return {"pixel_values": torch.rand(count, 5, 3, 16, 16, generator=generator), "image_sizes": sizes}


def asked(name: str, model, *lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts with a picture each, in which so many words follow it, padded on the left."""
    given = pictures(name, len(lengths), seed)
    each = len(read_vectors(model, **_renamed(given))) // len(lengths)
    generator = torch.Generator().manual_seed(seed + 9)
    rows = [
        [1, 9, *[MODELS[name][1]] * each, *torch.randint(20, TEXT["vocab_size"], (n,), generator=generator).tolist()]
        for n in lengths
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **given}


def _renamed(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {{"pixel_values": "pixels", "image_sizes": "sizes"}[name]: value for name, value in given.items()}


@pytest.fixture(autouse=True)
def _decoded_here(monkeypatch: pytest.MonkeyPatch):
    """A call that is handed to transformers fails."""

    def handed_over(reason: str):
        raise AssertionError(f"handed over: {reason}")

    monkeypatch.setattr(api, "say_once", handed_over)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_transformers(name: str):
    model = MODELS[name][0]()
    for inputs in (asked(name, model, 4), asked(name, model, 3, 9, seed=2)):
        wanted = model.generate(**inputs, **NEW)
        assert torch.equal(fastdecode.generate(model, **inputs, **NEW), wanted)
        # the picture matters: another one gives another text
        other = {**inputs, **pictures(name, len(wanted), seed=5)}
        assert not torch.equal(fastdecode.generate(model, **other, **NEW), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_the_models_own_forward_reads_them_too(name: str):
    model = MODELS[name][0]()
    inputs, seen = asked(name, model, 5, 2), []
    wanted = model.generate(**inputs, **NEW)
    layers = model.model.language_model.layers
    layers[0].register_forward_hook(lambda *given: seen.append(1))
    assert torch.equal(fastdecode.generate(model, **inputs, **NEW), wanted)
    assert seen


@pytest.mark.parametrize(
    "options",
    [
        {"num_return_sequences": 3},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"output_scores": True, "output_logits": True},
        {"suppress_tokens": [40, 41, 42]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_act_as_in_transformers(options: dict):
    model = tiny_llava("llava")
    inputs = asked("llava", model, 3, 9, seed=4)
    if "num_return_sequences" in options:
        options = options | {"num_beams": 1, "do_sample": True, "top_k": 1}
    call = {**inputs, **NEW, **options, "return_dict_in_generate": True}
    ours, theirs = fastdecode.generate(model, **call), model.generate(**call)
    assert torch.equal(ours.sequences, theirs.sequences)
    for what in ("scores", "logits"):
        if theirs.get(what) is not None:
            torch.testing.assert_close(torch.stack(ours[what]), torch.stack(theirs[what]), rtol=1e-4, atol=1e-4)
    for mine, its in zip(ours.past_key_values.layers, theirs.past_key_values.layers, strict=True):
        torch.testing.assert_close(mine.keys, its.keys, rtol=1e-4, atol=1e-4)


def test_guidance_acts_on_text_about_a_picture():
    """u + s (c - u), where u has read only the last word: by hand, over the model's own forward."""
    model = tiny_llava("llava")
    inputs = asked("llava", model, 6)
    found = fastdecode.generate(model, **inputs, **NEW, guidance=1.8)[0, inputs["input_ids"].shape[1] :].tolist()
    ids, width = inputs["input_ids"], inputs["input_ids"].shape[1]
    for token in found:
        with torch.no_grad():
            c = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
            u = model(input_ids=ids[:, width - 1 :]).logits[0, -1]
        assert int((u.log_softmax(-1) + 1.8 * (c.log_softmax(-1) - u.log_softmax(-1))).argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_an_engine_and_a_seed():
    model = tiny_janus()
    inputs = asked("janus", model, 3, 9, seed=4)
    drawn = {"max_new_tokens": 15, "do_sample": True, "temperature": 2.0}
    both = fastdecode.generate(model, **inputs, **drawn, seed=[7, 8])
    with fastdecode.Engine(model) as engine:
        handles = []
        for row in range(2):
            kept = inputs["attention_mask"][row] != 0
            one = {"input_ids": inputs["input_ids"][row][kept][None], "pixel_values": inputs["pixel_values"][row][None]}
            handles.append(engine.submit(one, **drawn, seed=7 + row))
        for row, handle in enumerate(handles):
            alone = handle.result()[0]
            assert alone[-15:].tolist() == both[row, -15:].tolist()


def test_what_is_refused():
    model = tiny_janus()
    inputs = asked("janus", model, 3)
    with pytest.raises(ValueError, match=r"the prompts have 16 <image> placeholder tokens, and their pictures take 32"):
        fastdecode.generate(model, **inputs | pictures("janus", 2), **NEW)
    with pytest.raises(ValueError, match=r"pixel_values of picture 0 are not all finite"):
        fastdecode.generate(model, **inputs | {"pixel_values": inputs["pixel_values"] / 0}, **NEW)
    with pytest.raises(ValueError, match=r"pixel_values is a list"):
        fastdecode.generate(model, **inputs | {"pixel_values": [1, 2]}, **NEW)
    with pytest.raises(ValueError, match="reads pictures as vectors, and draws after text alone"):
        fastdecode.generate(model, **inputs, multimodal_generation_mode="image-only")
    llava = tiny_llava("llava")
    with pytest.raises(ValueError, match="reads pictures as vectors, and draws nothing"):
        fastdecode.generate(llava, **asked("llava", llava, 3), multimodal_generation_mode="image-only")
    ends = {name: value[:, :18] if name != "pixel_values" else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match="a prompt that ends in a picture is not supported"):
        fastdecode.generate(model, **ends, **NEW, fallback="error")


def test_every_placeholder_gets_its_vector():
    vectors = torch.arange(12.0).view(4, 3)
    ids = torch.tensor([[1, 5, 5, 7], [5, 6, 5, 7]])
    filled, by_number = fill_vectors(ids, vectors, 5)
    order = [by_number[number] for number in filled[ids == 5].tolist()]
    assert torch.equal(torch.stack(order), vectors)
    assert torch.equal(filled[ids != 5], ids[ids != 5])
    assert ids.eq(5).sum() == 4  # the caller's tensor is left alone


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture):
    model = tiny_llava("llava")
    with caplog.at_level(logging.INFO):
        fastdecode.generate(model, **asked("llava", model, 4), **NEW)
    assert "own loop" not in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llava",
            {"pixel_values": torch.zeros(1, 1, 16, 16)},
            r"cannot read pixel_values of \(1, 1, 16, 16\)",
        ),
        ("llava", {"pixel_values": torch.zeros(3, 16, 16)}, r"cannot read pixel_values of \(3, 16, 16\)"),
        (
            "llava",
            {"image_sizes": torch.tensor([[16, 16]])},
            "Generation takes no image_sizes: pass all",
        ),
        ("llava_next", {"image_sizes": None}, r"image_sizes=None: .* takes image_sizes \(1, 2\), at least 1"),
        ("llava_next", {"image_sizes": "x"}, r"image_sizes='x': .* takes image_sizes \(1, 2\)"),
        ("llava_next", {"image_sizes": [[0, 16]]}, r"image_sizes=\[\[0, 16\]\]: .* takes image_sizes"),
        ("llava_next", {"image_sizes": [[16.5, 16]]}, "takes image_sizes"),
    ],
)
def test_pixels_that_the_encoder_does_not_read(name: str, change: dict, message: str):
    model = MODELS[name][0]()
    with pytest.raises(ValueError, match=message):
        fastdecode.generate(model, **asked(name, model, 3) | change, **NEW)


def test_a_stream_of_pictures_ends_in_a_token():
    """The pictures alone, without the text behind them: a step is given the last word."""
    model = tiny_llava("llava")
    inputs = asked("llava", model, 4, 7)
    three = Guidance.instruct(text=2.0, image=1.5, everywhere=True)
    both = fastdecode.generate(model, **inputs, **NEW, guidance=three)
    for row in range(2):
        kept = inputs["attention_mask"][row] != 0
        one = {"input_ids": inputs["input_ids"][row][kept][None], "pixel_values": inputs["pixel_values"][row][None]}
        assert torch.equal(fastdecode.generate(model, **one, **NEW, guidance=three)[0, -20:], both[row, -20:])
    explained = fastdecode.explain(model, **one, **NEW, guidance=three)
    assert any("images" in line for line in explained.streams[0])


def test_the_plug_reads_them():
    for name in ("llava", "llava_next", "janus"):
        model = MODELS[name][0]()
        inputs = asked(name, model, 3, 8)
        wanted = fastdecode.generate(model, **inputs, **NEW)
        found = model.generate(**inputs, **NEW, custom_generate=fastdecode.custom_generate)
        assert torch.equal(found, wanted)


def test_short_integers_and_one_picture_at_a_time():
    model = tiny_llava("llava")
    inputs = asked("llava", model, 3, 8)
    wanted = fastdecode.generate(model, **inputs, **NEW, deterministic=True)
    short = {**inputs, "input_ids": inputs["input_ids"].int()}
    assert torch.equal(fastdecode.generate(model, **short, **NEW), wanted)
    calls: list[int] = []
    tower = model.model.vision_tower
    tower.register_forward_hook(lambda module, args, output: calls.append(len(output.last_hidden_state)))
    reader = VectorReader(model, inputs["pixel_values"])
    torch.testing.assert_close(reader(one_by_one=True), read_vectors(model, inputs["pixel_values"]))
    assert calls == [1, 1, 2]
    assert reader() is reader(one_by_one=True)


def test_nothing_is_encoded_for_a_call_that_is_refused():
    model, calls = tiny_llava("llava"), []
    inputs = asked("llava", model, 3)
    model.model.vision_tower.register_forward_hook(lambda *given: calls.append(1))
    with pytest.raises(ValueError, match="which is not a token of this checkpoint"):
        fastdecode.generate(model, **inputs, **NEW, guidance=Guidance.two_way(2.0, [9999], everywhere=True))
    assert not calls
