"""Lumina-mGPT: pictures of several sizes against a loop written from the description of its own code."""

from __future__ import annotations

import pytest
import torch
from family_models import LUMINA_TARGET, tiny_lumina
from models_for_tests import BOS, tiny_tokenizer

import fastdecode
from fastdecode.models import lumina
from fastdecode.models.families import vocabulary_of
from fastdecode.models.lumina import sizes_of


@pytest.fixture(autouse=True)
def small_targets(monkeypatch):
    monkeypatch.setattr(lumina, "TARGETS", (LUMINA_TARGET,))
    monkeypatch.setattr(lumina, "USUAL", LUMINA_TARGET)


def prompt(model, words: int = 3) -> list[int]:
    names = model.config.vocabulary_map
    return [BOS, *(names[f"w{i % 4}"] for i in range(words)), names["<reserved08706>"]]


@torch.no_grad()
def drawn_by_hand(model, ids: list[int], rows: int, columns: int, scale: float) -> list[int]:
    """Greedy: begin, size tokens, rows of image tokens, each with a token at its end, end of image. The unconditional
    stream is the picture so far.
    """
    names = model.config.vocabulary_map
    first = names["<reserved08800>"]
    begin, row_end, end = names["<racm3:break>"], names["<reserved08799>"], names["<eoss>"]
    image = sorted(i for name, i in names.items() if name.startswith("IMGIMG"))
    picture = [begin, first + rows // 2, first + columns // 2]

    def logits(tokens: list[int]) -> torch.Tensor:
        return model.lm_head(model.model(torch.tensor([tokens])).last_hidden_state)[0, -1]

    for _ in range(rows):
        for _ in range(columns):
            c, u = logits([*ids, *picture]), logits(picture)
            mixed = scale * (c - u) + u
            picture.append(image[int(mixed[image].argmax())])
        picture.append(row_end)
    return [*ids, *picture, end]


def draw(model, ids: list[int], rows: int, columns: int, **options) -> list[int]:
    cell = vocabulary_of(model).cell
    options = {"guidance_scale": 3.0, "do_sample": False, "image_size": (cell * columns, cell * rows)} | options
    return fastdecode.generate(model, torch.tensor([ids]), multimodal_generation_mode="image-only", **options)[
        0
    ].tolist()


@pytest.mark.parametrize(("rows", "columns"), sorted(sizes_of(LUMINA_TARGET // 4)))
def test_greedy_pictures_of_every_size(rows: int, columns: int):
    model = tiny_lumina()
    ids = prompt(model)
    assert draw(model, ids, rows, columns) == drawn_by_hand(model, ids, rows, columns, 3.0)


@pytest.mark.parametrize(("target", "count"), [(512, 49), (768, 73), (1024, 97)])
def test_sizes_are_those_along_the_edge_of_the_area(target: int, count: int):
    """Those that its processor crops pictures to, in cells of 32 pixels."""
    cells = (target // 32) ** 2
    found = {(rows // 2, columns // 2) for rows, columns in sizes_of(target // 16)}
    assert len(found) == count
    for high, wide in found:
        assert max(high, wide) <= 4 * min(high, wide)
        assert high * wide <= cells < (high + 1) * (wide + 1)
    widest = {(high, cells // high) for high in range(1, cells + 1)}
    tallest = {(cells // wide, wide) for wide in range(1, cells + 1)}
    assert {(h, w) for h, w in widest | tallest if max(h, w) <= 4 * min(h, w)} <= found


def test_a_size_that_the_model_does_not_draw():
    model = tiny_lumina()
    with pytest.raises(ValueError, match=r"draws no pictures of 48x8 pixels \(width x height\); near to it are 32x"):
        draw(model, prompt(model), 2, 12)
    wrong = "image_size=26x24: width and height must be multiples of 4 pixels, such as 24x24"
    with pytest.raises(ValueError, match=wrong):
        draw(model, prompt(model), 6, 6, image_size=(26, 24))


def test_the_size_is_that_of_the_checkpoints_name():
    model = tiny_lumina()
    assert vocabulary_of(model).pixels == f"{LUMINA_TARGET}x{LUMINA_TARGET}"
    ids = prompt(model)
    assert draw(model, ids, 6, 6, image_size=None) == drawn_by_hand(model, ids, 6, 6, 3.0)


def test_sizes_of_a_batch():
    model = tiny_lumina()
    ids, sizes = prompt(model), [(6, 6), (4, 8), (8, 4)]
    found = fastdecode.generate(
        model,
        torch.tensor([ids] * 3),
        multimodal_generation_mode="image-only",
        image_size=[(4 * columns, 4 * rows) for rows, columns in sizes],
        guidance_scale=3.0,
        do_sample=False,
    )
    for row, (rows, columns) in zip(found.tolist(), sizes, strict=True):
        wanted = drawn_by_hand(model, ids, rows, columns, 3.0)
        assert row[: len(wanted)] == wanted
    documents = fastdecode.to_documents(model, tiny_tokenizer(model.config.vocabulary_map), found, start=len(ids))
    assert [picture.size for [picture] in documents] == [(24, 24), (32, 16), (16, 32)]


def test_text_and_pictures_in_turns():
    """Everything between two pictures is text: no size, no end of a row, no end of image."""
    model = tiny_lumina()
    names = model.config.vocabulary_map
    options = {"multimodal_generation_mode": "interleaved-text-image", "do_sample": True, "max_new_tokens": 200}
    pictures = 0
    for seed in range(6):
        ids = prompt(model)
        new = fastdecode.generate(model, torch.tensor([ids]), seed=seed, image_size=(32, 16), **options)[0].tolist()
        new = new[len(ids) :]
        image = {i for name, i in names.items() if name.startswith("IMGIMG")}
        first, begin = names["<reserved08800>"], names["<racm3:break>"]
        whole = [begin, first + 2, first + 4, *([*["i"] * 8, names["<reserved08799>"]] * 4), names["<eoss>"]]
        place = 0
        while place < len(new):
            if new[place] == begin:
                got = ["i" if i in image else i for i in new[place : place + len(whole)]]
                assert got == whole[: len(got)]
                assert len(got) == len(whole)
                pictures, place = pictures + 1, place + len(whole)
                continue
            assert not 0 <= new[place] - names["<reserved08799>"] <= 1 + 4
            assert new[place] not in image | {names["<eoss>"]}
            place += 1
    assert pictures >= 3


def test_a_prompt_that_ends_inside_a_picture():
    model = tiny_lumina()
    ids = prompt(model)
    whole = drawn_by_hand(model, ids, 4, 8, 3.0)
    for kept in (1, 2, 3, 7, 11, 12, 20):
        begun = whole[: len(ids) + kept]
        assert draw(model, begun, 4, 8) == whole
    with pytest.raises(ValueError, match="ends in a picture whose 11 tokens do not begin one of 24x24 pixels"):
        draw(model, whole[: len(ids) + 12], 6, 6)


def test_events_of_an_engine():
    model = tiny_lumina()
    ids = prompt(model)
    engine = fastdecode.Engine(model, tiny_tokenizer(model.config.vocabulary_map))
    options = {"image_size": (32, 16), "guidance_scale": 3.0, "do_sample": False}
    handle = engine.submit(ids, multimodal_generation_mode="image-only", **options)
    engine.run()
    events = list(handle)
    begun = [event for event in events if isinstance(event, fastdecode.PictureBegun)]
    done = [event for event in events if isinstance(event, fastdecode.PictureDone)]
    assert [event.total for event in begun] == [4 * 9 + 2]
    assert [event.image.size for event in done] == [(32, 16)]
    assert handle.tokens == drawn_by_hand(model, ids, 4, 8, 3.0)[len(ids) :]


def test_the_models_own_forward_draws_the_same():
    model = tiny_lumina()
    ids = prompt(model)
    wanted = draw(model, ids, 4, 8)
    model.model.layers[0].register_forward_hook(lambda *given: None)
    assert draw(model, ids, 4, 8) == wanted


def test_processors_see_every_token():
    model, seen = tiny_lumina(), []
    ids = prompt(model)
    wanted = draw(model, ids, 4, 8)

    def look(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return scores

    assert draw(model, ids, 4, 8, logits_processor=[look]) == wanted
    assert len(seen) == 32  # once for each image token


def test_what_is_refused():
    model = tiny_lumina()
    ids = torch.tensor([prompt(model)])
    with pytest.raises(ValueError, match=r"image_size.* is the size of pictures, and .*'text-only' draws none"):
        fastdecode.generate(model, ids, image_size=(24, 24), max_new_tokens=4)
    for wrong in ((0, 0), (24, -24), [(24, 24), (0, 24)]):
        with pytest.raises(
            ValueError, match=r"image_size=.* has a side below 1 pixel: give \(width, height\) in pixels"
        ):
            fastdecode.generate(model, ids, image_size=wrong, multimodal_generation_mode="image-only")
    for wrong in ((24,), "24x24", torch.ones(2, device="meta"), (True, 24), [], [(24, 24), 3], 24, (24.0, 24)):
        with pytest.raises(
            ValueError, match=r"image_size=.*: give \(width, height\) in pixels, or one such pair for each"
        ):
            fastdecode.generate(model, ids, image_size=wrong, multimodal_generation_mode="image-only")
    with pytest.raises(ValueError, match="image_size has 2 sizes for 1 prompt: give"):
        fastdecode.generate(model, ids, image_size=[(24, 24)] * 2, multimodal_generation_mode="image-only")
    placeholders = torch.tensor([[*prompt(model), *[model.config.vocabulary_map["<image>"]] * 16]])
    wrong = (
        r"the prompt has 16 <image> placeholder tokens, but pixel_values holds 0 pictures: give what fastdecode.recipe"
    )
    with pytest.raises(ValueError, match=wrong):
        fastdecode.generate(model, placeholders, multimodal_generation_mode="image-only")
    del model.config.vocabulary_map["<reserved08799>"]
    with pytest.raises(ValueError, match="has no <reserved08799>: with them Lumina-mGPT writes rows and sizes"):
        fastdecode.generate(model, ids, multimodal_generation_mode="image-only")
    assert fastdecode.generate(model, ids, max_new_tokens=4, do_sample=False).shape == (1, ids.shape[1] + 4)
