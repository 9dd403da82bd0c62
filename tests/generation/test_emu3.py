"""Emu3: pictures and text against transformers' own loop with the grammar that Emu3's model card gives it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_models import emu3_processor, emu3_vocabulary, tiny_emu3
from transformers import GenerationConfig

import fastdecode
from fastdecode.models.emu3 import EMU3
from fastdecode.models.families import vocabulary_of

IDS = emu3_vocabulary()
BEGIN, PLACEHOLDER, END = (IDS[name] for name in ("<|image token|>", "<image>", "<|image end|>"))
ROW_END, FRAME_END = IDS["<|extra_200|>"], IDS["<|extra_201|>"]
VISUAL = [i for name, i in IDS.items() if name.startswith("<|visual")]
CODES = len(VISUAL)


PICTURE = {"multimodal_generation_mode": "image-only"}


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


def drawn(model, inputs, size: tuple[int, int], **options) -> torch.Tensor:
    sizes = torch.tensor([list(size)] * len(inputs["input_ids"]))
    return fastdecode.generate(model, **inputs, image_sizes=sizes, multimodal_generation_mode="image-only", **options)


@pytest.mark.parametrize("size", [(3, 5), (2, 2)])
def test_pictures_are_those_of_the_models_own_decoder(size: tuple[int, int]):
    model, inputs, processor = tiny_emu3(), prompts(9, 6), emu3_processor()
    tokens = drawn(model, inputs, size, do_sample=True, seed=4)
    width = inputs["input_ids"].shape[1]
    found = [part for [part] in fastdecode.to_documents(model, processor, tokens, start=width)]
    whole = torch.nn.functional.pad(tokens[:, width:], (0, 1), value=1)  # theirs drops three tokens, the last is </s>
    pixels = model.decode_image_tokens(image_tokens=whole, height=size[0], width=size[1])
    wanted = processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.size == theirs.size == (8 * size[1], 8 * size[0])
        assert max(abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)) <= 1


def test_text_is_that_of_transformers():
    """Image tokens are not banned in text, as they are not there."""
    model, inputs = tiny_emu3(), prompts(9, 14)
    options = {"max_new_tokens": 40, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    assert torch.equal(fastdecode.generate(model, **inputs, **options), wanted)
    explained = fastdecode.explain(model, **inputs, **options)
    assert explained.allowed["text"] == model.config.text_config.vocab_size


def test_sizes_by_pixels_and_by_prompt():
    model, inputs = tiny_emu3(), prompts(9, 9)
    options = {"do_sample": False, "multimodal_generation_mode": "image-only"}
    wanted = drawn(model, inputs, (3, 5), do_sample=False)
    assert torch.equal(fastdecode.generate(model, **inputs, image_size=(40, 24), **options), wanted)
    both = fastdecode.generate(model, **inputs, image_size=[(40, 24), (16, 16)], **options)
    assert both[0].tolist() == wanted[0].tolist()
    small = drawn(model, inputs, (2, 2), do_sample=False)[1].tolist()
    assert both[1, : len(small)].tolist() == small


def test_what_is_refused():
    model, inputs = tiny_emu3(), prompts(9)
    with pytest.raises(ValueError, match=r"a picture of 400x400 pixels takes 2553 tokens, and the context .* is 320"):
        fastdecode.generate(model, **inputs, multimodal_generation_mode="image-only", image_size=(400, 400))
    with pytest.raises(ValueError, match="Emu3 draws one picture to a prompt that ends with its size; choose"):
        fastdecode.generate(model, **inputs, multimodal_generation_mode="interleaved-text-image", max_new_tokens=40)
    for wrong in ([[3]], torch.tensor([3, 5]), "3x5", [[3, 5]] * 3, [[0, 5]]):
        with pytest.raises(ValueError, match=r"image_sizes=.*must hold rows and columns of the picture of each"):
            fastdecode.generate(model, **inputs, multimodal_generation_mode="image-only", image_sizes=wrong)
    pixels = torch.zeros(1, 3, 24, 40)
    ids = torch.tensor([[0, *[PLACEHOLDER] * 18, 30]])
    with pytest.raises(ValueError, match=r"pixel_values were given without image_sizes; they must be \(1, 2\) int"):
        fastdecode.generate(model, ids, pixel_values=pixels, max_new_tokens=3, fallback="error")
    with pytest.raises(ValueError, match=r"the prompt has 18 <image> placeholder tokens .* but pixel_values holds 1"):
        fastdecode.generate(
            model, ids, pixel_values=pixels, image_sizes=torch.tensor([[16, 16]]), max_new_tokens=3, fallback="error"
        )
    del model.config.vocabulary_map["<|extra_201|>"]
    with pytest.raises(ValueError, match=r"has no <\|extra_201\|>: it must map every token"):
        drawn(model, inputs, (3, 5))
    assert vocabulary_of(tiny_emu3()).end_image == END
    assert CODES == 40


@pytest.mark.parametrize("options", [{"max_new_tokens": 3}, {**PICTURE, "image_size": (16, 16)}], ids=["text", "draws"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("foo", r"image_sizes are 'foo'; they must be \(1, 2\) integers, height and width of each picture"),
        ([[24, 40], [1]], r"image_sizes are \[\[24, 40\], \[1\]\]; they must be \(1, 2\) integers"),
        ({"height": 24}, r"image_sizes are {'height': 24}; they must be \(1, 2\) integers"),
        (torch.tensor([[24.0, 40.0]]), r"image_sizes are \(1, 2\) float32; they must be \(1, 2\) integers"),
        ([[True, True]], r"image_sizes are \(1, 2\) bool; they must be"),
        (torch.tensor([[24, 40]] * 2), r"image_sizes are \(2, 2\) int64; they must be \(1, 2\) integers"),
        (
            torch.tensor([[-24, 40]]),
            r"image_sizes says -24 x 40 \(height, width\) of picture 0, and pixel_values has 24",
        ),
        (torch.tensor([[0, 0]]), "image_sizes says 0 x 0 .* give what the processor returns, at least 8 x 8"),
        (torch.tensor([[8, 136]]), "image_sizes says 8 x 136 .* and pixel_values has 24 x 40 pixels of it"),
        (torch.tensor([[2**40, 2**40]]), "image_sizes says 1099511627776 x 1099511627776 "),
    ],
    ids=str,
)
def test_sizes_of_pixels(sizes, message: str, options: dict):
    pixels, ids = torch.zeros(1, 3, 24, 40), torch.tensor([[0, *[PLACEHOLDER] * 18, 30]])
    with pytest.raises(ValueError, match=message):
        fastdecode.generate(tiny_emu3(), ids, pixel_values=pixels, image_sizes=sizes, fallback="error", **options)


def test_a_picture_belongs_to_one_prompt():
    """As many placeholders as the pictures take, but those of the second picture in the first prompt."""
    small, large = [0, *[PLACEHOLDER] * 6, 30], [0, *[PLACEHOLDER] * 18, 30]
    pictures = {"pixel_values": torch.zeros(2, 3, 24, 40), "image_sizes": torch.tensor([[16, 16], [24, 40]])}
    options = {"max_new_tokens": 2, "fallback": "error"}
    for first, second, right in ((small, large, True), (large, small, False)):
        width = max(map(len, (first, second)))
        ids = torch.tensor([[2] * (width - len(row)) + row for row in (first, second)])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in (first, second)])
        if right:
            assert fastdecode.generate(tiny_emu3(), ids, attention_mask=mask, **pictures, **options).shape == (2, 22)
            continue
        with pytest.raises(ValueError, match=r"placeholder tokens of prompt 0 end inside a picture: .* take 6, 18 of"):
            fastdecode.generate(tiny_emu3(), ids, attention_mask=mask, **pictures, **options)


def told(model, size: str, begun: int = 0) -> torch.Tensor:
    """A prompt that ends with its size, in tokens of one or two characters, and the begin of a picture."""
    names = model.config.vocabulary_map
    return torch.tensor([[0, 30, names["<|image start|>"], *(names[part] for part in size.split()), BEGIN]])


@pytest.fixture
def spelling():
    """A model whose vocabulary_map has digits, as the real checkpoints' whole map of their tokenizer has."""
    model = tiny_emu3()
    for token, name in enumerate(["1", "2", "3", "5", "*", "12", "2*", "0"], 220):
        model.config.vocabulary_map[name] = token
    return model


@pytest.mark.parametrize(
    ("size", "wanted"), [("3 * 5", (3, 5)), ("2* 3", (2, 3)), ("1 2 * 1", (12, 1)), ("12 * 1", (12, 1))]
)
def test_the_size_is_that_of_the_prompt(spelling, size: str, wanted: tuple[int, int]):
    ids = told(spelling, size)
    found = fastdecode.generate(spelling, ids, multimodal_generation_mode="image-only", do_sample=False)
    rows, columns = wanted
    assert found.shape[1] == ids.shape[1] + rows * (columns + 1) + 2
    sizes = torch.tensor([wanted])
    again = fastdecode.generate(
        spelling, ids, image_sizes=sizes, multimodal_generation_mode="image-only", do_sample=False
    )
    assert torch.equal(found, again)


def test_a_size_that_is_not_that_of_the_prompt(spelling):
    ids = told(spelling, "3 * 5")
    options = {"multimodal_generation_mode": "image-only", "do_sample": False}
    wrong = (
        r"prompt 0 asks for a picture of 40x24 pixels \(3 rows of 5 tokens\), and the call for one of 16x16: give both"
    )
    with pytest.raises(ValueError, match=wrong):
        fastdecode.generate(spelling, ids, image_sizes=torch.tensor([[2, 2]]), **options)
    with pytest.raises(ValueError, match=wrong):
        fastdecode.generate(spelling, ids, image_size=(16, 16), **options)
    with pytest.raises(ValueError, match="image_size and image_sizes were given: give one of them"):
        fastdecode.generate(spelling, ids, image_size=(40, 24), image_sizes=torch.tensor([[3, 5]]), **options)
    with pytest.raises(ValueError, match="a picture of 40x0 pixels has no pixel: give at least 8x8"):
        fastdecode.generate(spelling, told(spelling, "0 * 5"), **options)


def test_what_looks_like_a_size_and_is_none(spelling):
    """The size that is asked for holds, and without one the usual size, which the small context has no room for."""
    for size in ("* 5", "3 5", "3 * * 5", "5 *"):
        ids = told(spelling, size)
        options = {"multimodal_generation_mode": "image-only", "do_sample": False}
        found = fastdecode.generate(spelling, ids, image_size=(16, 16), **options)
        assert found.shape[1] == ids.shape[1] + 2 * 3 + 2
        with pytest.raises(ValueError, match="no room for one picture"):
            fastdecode.generate(spelling, ids, **options)


def test_pictures_larger_than_the_usual_one(monkeypatch):
    """Each gets the length of its own picture, and nothing is said about the context."""
    monkeypatch.setattr("fastdecode.models.emu3.SIDE", 2)
    said: list[str] = []
    monkeypatch.setattr("fastdecode.generation.prepare.logger.warning_once", said.append)
    model, inputs = tiny_emu3(), prompts(9, 14, 9)
    options = {"multimodal_generation_mode": "image-only", "do_sample": False}
    sizes = [(40, 56), (16, 16), (8, 24)]
    lengths = [rows * (columns + 1) + 1 for columns, rows in ((5, 7), (2, 2), (1, 3))]
    found = fastdecode.generate(model, **inputs, **options, image_size=sizes)
    assert found.shape == (3, 14 + lengths[0] + 1)
    for row, length in zip(found[:, 14:].tolist(), lengths, strict=True):
        assert row[length - 1 : length + 1] == [FRAME_END, END]
        assert row[length + 1 :] == [2] * (lengths[0] - length)
    explained = fastdecode.explain(model, **inputs, **options, image_size=sizes)
    kept = inputs["attention_mask"].sum(1).tolist()
    assert explained.limits == [prompt + length + 1 for prompt, length in zip(kept, lengths, strict=True)]
    plug = model.generate(**inputs, **options, image_size=sizes, custom_generate=fastdecode.custom_generate)
    assert torch.equal(plug, found)
    given = fastdecode.generate(model, **inputs, **options, image_size=sizes, max_new_tokens=300)
    assert torch.equal(given, found)
    config = GenerationConfig(multimodal_generation_mode="image-only", do_sample=False)
    assert torch.equal(fastdecode.generate(model, **inputs, generation_config=config, image_size=sizes), found)
    assert said == []


def test_the_size_that_the_processor_asks_for_is_not_the_largest():
    model = tiny_emu3(max_position_embeddings=9000)
    options = {"multimodal_generation_mode": "image-only", "image_size": (728, 720)}
    assert fastdecode.explain(model, **prompts(9), **options).limits == [9 + 90 * 92 + 2]


def test_the_context_is_too_small_for_the_usual_size():
    model = tiny_emu3()
    message = r"picture takes 8192 more; the context is full: .*, or give a smaller image_size=.* than 720x720 pixels"
    with pytest.raises(ValueError, match=message):
        fastdecode.generate(model, **prompts(9), multimodal_generation_mode="image-only")
    options = {"multimodal_generation_mode": "image-only", "image_size": (24, 24), "max_new_tokens": 9}
    with pytest.raises(ValueError, match=r"set max_new_tokens to at least 14, or give a smaller image_size"):
        fastdecode.generate(model, **prompts(9), **options)


def test_the_vocabulary_is_read_once_in_a_call(monkeypatch):
    read: list[int] = []

    def counted(model):
        read.append(len(read))
        return EMU3.vocabulary(model)

    monkeypatch.setattr("fastdecode.models.families.FAMILIES", [replace(EMU3, vocabulary=counted)])
    model, inputs = tiny_emu3(), prompts(9)
    draw = {"multimodal_generation_mode": "image-only", "image_size": (16, 16)}
    for options in (draw, {"max_new_tokens": 3}):
        for way in (fastdecode.generate, fastdecode.explain):
            read.clear()
            way(model, **inputs, **options)
            assert len(read) == 1
        read.clear()
        model.generate(**inputs, **options, custom_generate=fastdecode.custom_generate)
        assert len(read) == 1
    mapping = model.config.vocabulary_map
    mapping["<|image end|>"], mapping["<|extra_200|>"] = mapping["<|extra_200|>"], mapping["<|image end|>"]
    drawn = fastdecode.generate(model, **inputs, **draw)[0, 9:].tolist()
    assert (drawn[2], drawn[-1]) == (END, ROW_END)  # the config is read anew at every call
