"""Families: which recipes there are, and a made-up family that takes one file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from family_models import TEXT, filled, tiny_emu3, tiny_glm_image, tiny_janus, tiny_liquid, tiny_llava, tiny_lumina
from models_for_tests import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode.decoder.classes import NESTS
from fastdecode.models import families
from fastdecode.models.families import family_of
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


# --- a made-up family -------------------------------------------------------------------------------------------


@pytest.fixture
def squares(monkeypatch):
    """The program of the page, run: it registers a family. The lists of families are as before afterwards."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    [program] = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "fastdecode.register(" in code]
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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": ""}, "name of a Family is a str: give a str that is not empty"),
        ({"matches": None}, "matches of the family Squares is a NoneType: give"),
        ({"paint": 3}, "paint of the family Squares is an int: give a function"),
        ({"read": len}, "the family Squares has read without pixels, lengths, features: to read pictures it needs all"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_families_with_wrong_parts(parts: dict, message: str):
    good = {"name": "Squares", "matches": bool, "vocabulary": families.TEXT.vocabulary}
    with pytest.raises(ValueError, match=message):
        fastdecode.Family(**(good | parts))


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
