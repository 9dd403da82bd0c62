"""Families: which recipes there are, and a made-up family that takes one file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_models import TEXT, filled, tiny_emu3, tiny_glm_image, tiny_janus, tiny_liquid, tiny_llava, tiny_lumina
from models_for_tests import picture, pixels, tiny_model, tiny_processor
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.decoder.classes import NESTS
from fastdecode.models import families
from fastdecode.models.chameleon import CHAMELEON
from fastdecode.models.families import family_of
from fastdecode.models.liquid import LIQUID
from fastdecode.models.pictures import check_pixels, encoded_pictures, lengths_of, read_pictures
from fastdecode.models.recipe import TASKS

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text()


def named(model, name: str):
    model.config.name_or_path = name
    return model


MODELS = {
    "Chameleon": lambda: tiny_model(),
    "Anole": lambda: named(tiny_model(), "leloy/Anole-7b-v0.1-hf"),
    "AA-Chameleon": lambda: named(tiny_model(), "PKU-Alignment/AA-chameleon-7b-plus"),
    "Thinking with generated images": lambda: named(tiny_model(), "GAIR/twgi-critique-anole-7b"),
    "blocks": lambda: fastdecode.load("blocks")[0],
    "Lumina-mGPT": tiny_lumina,
    "Janus": tiny_janus,
    "Emu3": tiny_emu3,
    "Liquid": tiny_liquid,
    "GLM-Image": tiny_glm_image,
    "Llama, Mistral, Qwen2, Qwen3, Gemma": lambda: filled(LlamaForCausalLM(LlamaConfig(**TEXT))),
}
WORDS = {"Gen": "BAAI/Emu3-Gen-hf", "Chat": "BAAI/Emu3-Chat-hf", "Omni": "Alpha-VLLM/Lumina-mGPT-7B-768-Omni"}


def table() -> dict[str, list[str]]:
    """The rows of the page's first table."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    first = next(i for i, line in enumerate(lines) if line.startswith("| model | text-to-image"))
    assert [cell.strip() for cell in lines[first].split("|")[2:-1]] == list(TASKS)
    rows = {}
    for line in lines[first + 1 :]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != len(TASKS) + 1:
            break
        rows[cells[0]] = cells[1:]
    return rows


def test_the_page_lists_every_family():
    assert set(table()) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_recipes_are_those_of_the_page(name: str):
    model = MODELS[name]()
    for task, cell in zip(TASKS, table()[name], strict=True):
        if cell == "no":
            with pytest.raises(ValueError, match=rf"has no recipe for '{task}': it was trained for \w"):
                fastdecode.recipe(model, task)
            continue
        if cell not in ("yes", "tokens"):
            others = [word for word in WORDS if word != cell]
            for other in others:
                if WORDS[other].split("/")[1].split("-")[0] == WORDS[cell].split("/")[1].split("-")[0]:
                    with pytest.raises(ValueError, match=f"has no recipe for '{task}'"):
                        fastdecode.recipe(named(model, WORDS[other]), task)
            named(model, WORDS[cell])
        recipe = fastdecode.recipe(model, task)
        assert recipe.task == task
        assert set(recipe.sources) >= {"prompt", *recipe.options}
        assert all(recipe.sources.values())
        shown = str(recipe)
        assert all(name in shown for name in recipe.options)
        assert repr(recipe.template) in shown


def test_tasks_that_there_are_not():
    model = tiny_janus()
    for wrong in ("draw", None, 3, ["edit"]):
        with pytest.raises(ValueError, match="is unknown; choose one of text-to-image, interleaved, edit"):
            fastdecode.recipe(model, wrong)
    with pytest.raises(
        ValueError, match="Janus has no recipe for 'edit': it was trained for text-to-image, caption, chat"
    ):
        fastdecode.recipe(model, "edit")
    with pytest.raises(TypeError, match="got Linear"):
        fastdecode.recipe(torch.nn.Linear(1, 1), "chat")


def test_a_model_has_one_family():
    wanted = {"Anole": "Chameleon", "AA-Chameleon": "Chameleon", "blocks": "Chameleon"}
    for name, make in MODELS.items():
        found = family_of(make()).name
        assert found == wanted.get(name, "text" if "Llama" in name else found)
    assert family_of(tiny_llava("llava")).name == "text"


INFILL = {
    "Chameleon": "Chameleon has no recipe for 'infill': it was trained for text-to-image, interleaved, caption, chat",
    "Anole": "Anole has no recipe for 'infill': it was trained for text-to-image, interleaved, caption, chat",
    "AA-Chameleon": "AA-Chameleon has no recipe for 'infill': it was trained for text-to-image, interleaved, caption, "
    "chat",
    "Thinking with generated images": "Thinking with generated images has no recipe for 'infill': it was trained for "
    "text-to-image, interleaved",
    "blocks": "blocks has no recipe for 'infill': it was trained for text-to-image, interleaved, edit, caption",
    "Lumina-mGPT": "Lumina-mGPT has no recipe for 'infill': it was trained for text-to-image, caption, chat",
    "Janus": "Janus has no recipe for 'infill': it was trained for text-to-image, caption, chat",
    "Emu3": "Emu3 has no recipe for 'infill': it was trained for text-to-image, caption, chat",
    "Liquid": "Liquid has no recipe for 'infill': it was trained for text-to-image, caption, chat",
    "GLM-Image": "GLM-Image has no recipe for 'infill': it was trained for text-to-image",
    "Llama, Mistral, Qwen2, Qwen3, Gemma": "LlamaForCausalLM has no recipe for 'infill': it was trained for chat",
}


@pytest.mark.parametrize("name", MODELS)
def test_no_family_fills_in(name: str):
    with pytest.raises(ValueError, match=f"^{re.escape(INFILL[name])}$"):
        fastdecode.recipe(MODELS[name](), "infill")


# --- a recipe of one's own ----------------------------------------------------------------------------------------


def registering(word: str) -> str:
    """The program of the page that registers a family and has this word."""
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    [found] = [code for code in programs if "fastdecode.register(" in code and word in code]
    return found


def test_a_recipe_for_infilling_of_ones_own(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    added = ("<mask>", "<infill>")
    names = {
        "fastdecode": fastdecode,
        "model": tiny_model(extra=added),
        "processor": tiny_processor(),
        "picture": picture(0),
    }
    model, processor = names["model"], names["processor"]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    exec(compile(registering("my infill"), "families.md", "exec"), names)
    recipe, v = fastdecode.recipe(model, "infill"), family_of(model).vocabulary(model)
    assert recipe.prompt("") == "Image of <mask>: <image> <infill>"
    assert recipe.options["multimodal_generation_mode"] == "text-only"
    ids = names["asked"]["input_ids"][0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    assert words.index("<mask>") < ids.index(v.begin_image) < ids.index(v.end_image) < words.index("<infill>")
    assert not set(names["said"][0, len(ids) :].tolist()) & v.image_ids
    assert fastdecode.recipe(model, "caption").family == "Chameleon"  # those of its family are there too
    model.config.name_or_path = "another"
    with pytest.raises(ValueError, match="Chameleon has no recipe for 'infill'"):
        fastdecode.recipe(model, "infill")


# --- a made-up family -------------------------------------------------------------------------------------------


@pytest.fixture
def squares(monkeypatch):
    """The program of the page, run: it registers a family. The lists of families are as before afterwards."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    program = registering("Squares")
    assert len(program.splitlines()) <= 60
    names: dict = {}
    exec(compile(program, "families.md", "exec"), names)
    torch.manual_seed(0)
    model = filled(LlamaForCausalLM(LlamaConfig(**TEXT)))
    model.config.draws_squares = True
    return model, names


class Letters:
    """A tokenizer of one word."""

    def __call__(self, text, return_tensors=None, **options):
        return {"input_ids": torch.tensor([[1, *(10 + ord(letter) % 100 for letter in text)]])}

    def decode(self, tokens, **options) -> str:
        return " ".join(map(str, tokens))


def test_a_family_from_one_file_draws(squares):
    model, names = squares
    recipe = fastdecode.recipe(model, "text-to-image")
    inputs = recipe.inputs(Letters(), ["abc", "z"])
    found = fastdecode.generate(model, **inputs, **recipe.options, seed=3)
    width = inputs["input_ids"].shape[1]
    first = model.config.vocab_size - names["COLOURS"]
    for row, document in zip(
        found.tolist(), fastdecode.to_documents(model, Letters(), found, start=width), strict=True
    ):
        new = row[width:]
        assert (new[0], new[-1]) == (names["BEGIN"], names["END"])
        lines = [new[1 + 5 * i : 6 + 5 * i] for i in range(4)]
        assert all(line[4] == names["ROW_END"] and min(line[:4]) >= first for line in lines)
        [picture] = document
        assert picture.size == (32, 32)
        for y, line in enumerate(lines):
            for x, token in enumerate(line[:4]):
                code = token - first
                assert picture.getpixel((8 * x + 4, 8 * y + 4)) == (
                    85 * (code // 16),
                    85 * (code // 4 % 4),
                    85 * (code % 4),
                )
    explained = str(fastdecode.explain(model, **inputs, **recipe.options))
    assert "C++" in explained or "one call" in explained


def test_another_size_is_refused_by_a_family_with_one(squares):
    model, _ = squares
    with pytest.raises(ValueError, match=r"draws no pictures of 64x32 pixels \(width x height\): only of 32x32"):
        fastdecode.generate(
            model, torch.tensor([[1, 20]]), multimodal_generation_mode="image-only", image_size=(64, 32)
        )


def test_register_takes_families():
    with pytest.raises(TypeError, match=r"takes a fastdecode\.Family, not a str"):
        fastdecode.register("Squares")
    before = list(families.FAMILIES)
    with pytest.raises(TypeError, match=r"nest of register is a str: give a fastdecode\.Nest"):
        fastdecode.register(LIQUID, nest="model.language_model")
    assert before == families.FAMILIES


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": ""}, "name of a Family is a str: give a str that is not empty"),
        ({"matches": None}, "matches of the family Squares is a NoneType: give"),
        ({"paint": 3}, "paint of the family Squares is an int: give a function"),
        ({"advice": None}, "advice of the family Squares is a NoneType: give a str"),
        ({"read": len}, "the family Squares has read without pixels, lengths, features: to read pictures it needs all"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_families_with_wrong_parts(parts: dict, message: str):
    good = {"name": "Squares", "matches": bool, "vocabulary": families.TEXT.vocabulary}
    with pytest.raises(ValueError, match=message):
        fastdecode.Family(**(good | parts))


# --- what functions of a family return ---------------------------------------------------------------------------

PROMPT = torch.tensor([[1, 30, 20]])
PICTURE = {"multimodal_generation_mode": "image-only", "do_sample": False}


@pytest.fixture
def changed(monkeypatch):
    """A Liquid, or a Chameleon, whose family has other functions."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))

    def change(known: fastdecode.Family, **parts):
        fastdecode.register(replace(known, name="Changed", **parts))
        return tiny_liquid() if known is LIQUID else tiny_model()

    return change


RETURNED = {
    "no vocabulary": (
        {"vocabulary": lambda model: None},
        "vocabulary of the family Changed returned a NoneType: it must return a fastdecode.Vocabulary",
    ),
    "more tokens than the model": (
        {"vocabulary": lambda model: replace(LIQUID.vocabulary(model), size=400)},
        "vocabulary of the family Changed returned one of 400 tokens for a model that has 331: its size must be 331",
    ),
    "image tokens outside": (
        {"vocabulary": lambda model: replace(LIQUID.vocabulary(model), code_ids=range(320, 344))},
        "code_ids of a Vocabulary have 331: its 331 tokens are 0 to 330",
    ),
    "one missing weight": ({"missing": lambda model: ["a"]}, "1 weight is missing (a). Text works without them"),
    "three missing weights": ({"missing": lambda model: list("abc")}, "3 weights are missing (a, b, c). Text works"),
    "many missing weights": (
        {"missing": lambda model: list("abcdef")},
        "6 weights are missing (a, b, … f). Text works",
    ),
    "missing weights in a str": (
        {"missing": lambda model: "abc"},
        "missing of the family Changed returned 'abc': it must return a list of names of weights",
    ),
    "missing weights as None": (
        {"missing": lambda model: None},
        "missing of the family Changed returned None: it must",
    ),
    "no painter": (
        {"paint": None},
        "the family Changed has no paint, so image tokens cannot become pictures: register it with one, or choose",
    ),
    "a size in words": (
        {"size_in_prompt": lambda model, ids: "4x4"},
        "size_in_prompt of the model's family returned '4x4' for prompt 0: it must return (rows, columns), or None",
    ),
    "half a size": ({"size_in_prompt": lambda model, ids: (4,)}, "size_in_prompt of the model's family returned (4,)"),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_functions_of_a_family_return(case: str, changed):
    parts, message = RETURNED[case]
    model = changed(LIQUID, **parts)
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.generate(model, PROMPT, **PICTURE)
    text = fastdecode.generate(model, PROMPT, max_new_tokens=3, do_sample=False)
    assert text.shape == (1, 6)
    assert len(fastdecode.to_documents(model, Letters(), text)[0]) == 1  # no painter is needed


@pytest.mark.parametrize(
    ("paint", "message"),
    [
        (lambda model, grids: [], "paint of the family Changed returned 0 items for 1 picture: it must return a list"),
        (
            lambda model, grids: None,
            "paint of the family Changed returned a NoneType: it must return a list with a PIL",
        ),
        (lambda model, grids: ["x"], "paint of the family Changed returned a str for picture 0: it must be a PIL pict"),
    ],
)
def test_what_paint_returns(paint, message: str, changed):
    model = changed(LIQUID, paint=paint)
    found = fastdecode.generate(model, PROMPT, **PICTURE)
    assert found.shape == (1, 3 + 18)  # the tokens need no painter
    with pytest.raises(ValueError, match=message):
        fastdecode.to_documents(model, Letters(), found)


ONES = torch.ones(4, dtype=torch.long)
TOKENS = {
    "None": (None, "returned a NoneType: it must return a list with the tokens of each"),
    "a str": (["x"], "returned a str for picture 0: it must return tokens, (n,) int64"),
    "floats": ([ONES.float()], "returned (4,) torch.float32 for picture 0: it must return tokens, (n,) int64"),
    "two dimensions": ([ONES[None]], "returned (1, 4) torch.int64 for picture 0: it must return tokens, (n,) int64"),
    "no token of the model": ([ONES * 999], "returned 999 in picture 0, which is not a token of this checkpoint (0 to"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_what_functions_that_read_pictures_return(case: str, changed):
    returned, message = TOKENS[case]
    model = changed(CHAMELEON, read=lambda *args: returned, features=lambda *args: returned)
    with pytest.raises(ValueError, match=re.escape(f"read of the family Changed {message}")):
        read_pictures(model, pixels(0, 1))
    with pytest.raises(ValueError, match=re.escape(f"features of the family Changed {message}")):
        encoded_pictures(model, None)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pixels": lambda *args: None}, "pixels of the family Changed returned a NoneType: it must return a tensor"),
        ({"lengths": lambda *args: 4}, "lengths of the family Changed returned an int: it must return a list with the"),
        ({"lengths": lambda *args: []}, "lengths of the family Changed returned 0 items for 1 picture: it must return"),
        (
            {"lengths": lambda *args: [0]},
            "lengths of the family Changed returned 0 for picture 0: it must be an int of",
        ),
        (
            {"lengths": lambda *args: ["4"]},
            "lengths of the family Changed returned '4' for picture 0: it must be an int",
        ),
        ({"read": lambda *args: [ONES, ONES]}, "read of the family Changed returned 2 items for 1 picture: it must"),
    ],
)
def test_functions_that_read_pictures_are_checked(parts: dict, message: str, changed):
    model = changed(CHAMELEON, **parts)
    call = read_pictures if "read" in parts else lambda model, given: lengths_of(model, check_pixels(model, given))
    with pytest.raises(ValueError, match=message):
        call(model, pixels(0, 1))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "picture_tokens of the family Changed returned None: it must return a list of tokens"),
        ([7, "x"], r"picture_tokens of the family Changed returned \[7, 'x'\]: it must return a list of tokens"),
        ([7, 999, 8], "picture_tokens of the family Changed returned 999, which is not a token of this checkpoint"),
    ],
)
def test_what_picture_tokens_returns(returned, message: str, changed):
    model = changed(LIQUID, picture_tokens=lambda *args: returned)
    recipe = fastdecode.recipe(model, "caption")
    with pytest.raises(ValueError, match=message):
        recipe.inputs(lambda text, **options: {"input_ids": [1, 20]}, "abc", picture(0))


def test_a_nest_of_ones_own(monkeypatch):
    """A language model inside a module that fastdecode has never seen."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    before = list(NESTS)

    class Outer(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.body = torch.nn.Module()
            self.body.language = self.model
            del self.model

        def get_input_embeddings(self):
            return self.body.language.embed_tokens

        def forward(self, *args, **kwargs):
            raise AssertionError("it is not called")

    try:
        model = filled(Outer(LlamaConfig(**TEXT)))
        nest = fastdecode.Nest(Outer, ("body", "language"), (torch.nn.Module,))
        fastdecode.register(fastdecode.Family("Outer", lambda m: isinstance(m, Outer), families.TEXT.vocabulary), nest)
        plain = filled(LlamaForCausalLM(LlamaConfig(**TEXT)))
        plain.model.load_state_dict(model.body.language.state_dict())
        plain.lm_head.load_state_dict(model.lm_head.state_dict())
        ids = torch.tensor([[1, 20, 30]])
        options = {"max_new_tokens": 12, "do_sample": False}
        assert torch.equal(fastdecode.generate(model, ids, **options), plain.generate(ids, **options))
    finally:
        NESTS[:] = before
