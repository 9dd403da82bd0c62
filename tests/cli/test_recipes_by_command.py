"""``fastdecode generate --task``: prompts and options by recipe, for every family; options that are given go first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_models import (
    TEXT,
    emu3_processor,
    filled,
    janus_processor,
    saved,
    saved_liquid,
    tiny_emu3,
    tiny_janus,
    word_tokenizer,
)
from models_for_tests import tiny_model, tiny_processor
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode import cli
from fastdecode.cli import generate
from fastdecode.models.recipe import TASKS
from fastdecode.models.recipe_words import as_python

CIRCLE = "In column 2 a red circle."
WORDS = ["--prompt", "w20 w21"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Checkpoints of small random models: the arguments that name each."""
    root = tmp_path_factory.mktemp("checkpoints")
    liquid, vqgan = saved_liquid(root)
    llama = filled(LlamaForCausalLM(LlamaConfig(**TEXT)))
    tokenizer = word_tokenizer(TEXT["vocab_size"], {"<pad>": 0, "<bos>": 1, "<eos>": 2}, {}, pad_token="<pad>")
    tokenizer.chat_template = "<bos> w11 {{ messages[0]['content'] }} w12"
    made = {
        "janus": saved(root / "janus", tiny_janus(), janus_processor()),
        "emu3": saved(root / "emu3", tiny_emu3(max_position_embeddings=400), emu3_processor()),
        "llama": saved(root / "llama", llama, tokenizer),
    }
    found = {name: ["--model", str(folder)] for name, folder in made.items()}
    Image.new("RGB", (40, 30), "red").save(root / "red.png")
    return found | {
        "liquid": ["--model", str(liquid), "--vqgan", str(vqgan)],
        "red": ["--image", str(root / "red.png")],
    }


def run(*arguments: str | Path) -> int:
    return cli.main(["generate", *map(str, arguments)])


def made(folder: Path) -> dict[str, Any]:
    """The metadata of the first picture."""
    with Image.open(folder / "picture-1.png") as picture:
        found: dict[str, Any] = json.loads(picture.text["fastdecode"])
    return found


def by_recipe(model: Any, processor: Any, task: str, text: str, *given: Any, **options: Any) -> list[Any]:
    recipe = fastdecode.recipe(model, task)
    inputs = recipe.inputs(processor, text, *given)
    out = fastdecode.generate(model, **inputs, **{**recipe.options, **options})
    [document] = fastdecode.to_documents(model, processor, out, start=inputs["input_ids"].shape[1])
    return document


def test_the_tasks_are_those_of_recipes() -> None:
    """The command line has a list of its own: the parser does not wait for torch."""
    assert generate.TASKS == TASKS


def test_a_task_writes_prompt_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "text-to-image", "--prompt", CIRCLE, "--seed", "3"]
    assert run(*task, "--explain", "-o", tmp_path / "a") == 0
    [expected] = by_recipe(*fastdecode.load("blocks"), "text-to-image", CIRCLE, seed=3)
    with Image.open(tmp_path / "a" / "picture-1.png") as drawn:
        assert drawn.tobytes() == expected.tobytes()
    said = capsys.readouterr().out
    assert "recipe of blocks, text-to-image\n  prompt: 'Draw: {text}<reserved08706>' (fastdecode demo)" in said
    assert "guidance=Guidance.two_way(2.0) (fastdecode demo)" in said
    assert "picture sampling  temperature 0.85, top_p 0.97" in said
    assert run("--task", "caption", "--image", tmp_path / "a" / "picture-1.png", "-o", tmp_path / "b") == 0
    assert (tmp_path / "b" / "document.md").read_text() == f"{CIRCLE}\n"


def test_given_options_go_before_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "text-to-image", "--prompt", CIRCLE, "--explain"]
    assert run(*task, "--guidance", "instruct:4,1.5", "--temperature", "0.5", "--image-top-k", "9", "-o", tmp_path) == 0
    said = capsys.readouterr().out
    assert "picture sampling  temperature 0.5, top_k 9, top_p 0.97" in said
    assert made(tmp_path)["guidance"] == "Guidance.instruct(text=4.0, image=1.5)"
    assert run(*task, "--guidance", "none", "--temperature", "0", "-o", tmp_path, "--overwrite") == 0
    assert "picture sampling  greedy" in capsys.readouterr().out
    assert made(tmp_path)["guidance"] == "Guidance.none()"
    more = ["--mode", "text-only", "--max-new-tokens", "4", "--json"]
    assert run(*task, *more, "-o", tmp_path, "--overwrite") == 0
    [document] = json.loads(capsys.readouterr().out)["documents"]
    assert (document["tokens"], [list(part) for part in document["parts"]]) == (4, [["text"]])


@pytest.mark.parametrize(
    ("name", "more", "size"),
    [("janus", [], (8, 8)), ("emu3", ["--image-size", "32x48"], (32, 48)), ("liquid", [], (16, 16))],
)
def test_every_family_draws(name: str, more: list[str], size: Any, folders: Any, tmp_path: Path) -> None:
    assert run(*folders[name], "--task", "text-to-image", *WORDS, *more, "--seed", "4", "-o", tmp_path / "out") == 0
    loaded = fastdecode.load(folders[name][1], vqgan=folders[name][3] if name == "liquid" else None)
    [expected] = by_recipe(*loaded, "text-to-image", "w20 w21", None, size if more else None, seed=4)
    with Image.open(tmp_path / "out" / "picture-1.png") as drawn:
        assert drawn.size == size
        assert drawn.tobytes() == expected.tobytes()
    told = made(tmp_path / "out")
    assert (told["task"], told["prompt"], told["prompt_pictures"]) == ("text-to-image", "w20 w21", 0)
    assert told.get("image_size") == (list(size) if more else None)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("emu3", "caption"),
        ("janus", "caption"),
        ("liquid", "caption"),
        ("janus", "chat"),
        ("emu3", "chat"),
        ("liquid", "chat"),
        ("llama", "chat"),
    ],
)
def test_every_family_writes(
    name: str, task: str, folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = folders["red"] if task == "caption" else []
    length = ["--max-new-tokens", "6", "--seed", "4", "--json"]
    assert run(*folders[name], "--task", task, *WORDS, *shown, *length, "-o", tmp_path / "out") == 0
    loaded = fastdecode.load(folders[name][1], vqgan=folders[name][3] if name == "liquid" else None)
    given = [Image.new("RGB", (40, 30), "red")] if shown else []
    expected = by_recipe(*loaded, task, "w20 w21", *given, seed=4, max_new_tokens=6)
    [document] = json.loads(capsys.readouterr().out)["documents"]
    assert [part["text"] for part in document["parts"]] == expected != []


def test_a_scale_keeps_the_negative_prompt_of_the_recipe(folders: Any, tmp_path: Path) -> None:
    task = [*folders["emu3"], "--task", "text-to-image", *WORDS, "--image-size", "16x16"]
    assert run(*task, "-o", tmp_path / "a") == 0
    assert run(*task, "--guidance", "6", "-o", tmp_path / "b") == 0
    assert run(*task, "--guidance", "none", "-o", tmp_path / "c") == 0
    usual, stronger = made(tmp_path / "a")["guidance"], made(tmp_path / "b")["guidance"]
    assert usual.startswith("Guidance.two_way(3.0, [0, ")
    assert stronger == usual.replace("3.0", "6.0")
    assert made(tmp_path / "c")["guidance"] == "Guidance.none()"


def test_the_metadata_tells_how_a_picture_was_made(tmp_path: Path) -> None:
    draw = ["--prompt", f"Draw: {CIRCLE}", "--mode", "image-only"]
    assert run(*draw, "--dtype", "bfloat16", "-o", tmp_path / "a") == 0
    told = made(tmp_path / "a")
    usual = fastdecode.cli.demo.GUIDANCE
    assert told["guidance"] == as_python(usual) == "Guidance.instruct(text=1.5, image=1.2)"
    assert (told["fastdecode"], told["dtype"], told["weights"]) == (fastdecode.__version__, "bfloat16", None)
    assert (told["task"], told["prompt_pictures"]) == (None, 0)
    edit = ["--task", "edit", "--prompt", "Paint the red circle green.", "--weights", "int8"]
    assert run(*edit, "--image", tmp_path / "a" / "picture-1.png", "-o", tmp_path / "b") == 0
    told = made(tmp_path / "b")
    assert (told["task"], told["prompt_pictures"], told["weights"]) == ("edit", 1, "int8")
    names = {name: getattr(fastdecode, name) for name in ("Guidance", "Stream")}
    assert eval(told["guidance"], names) == usual


def test_the_process_of_its_own(folders: Any, tmp_path: Path) -> None:
    """`python -m fastdecode` hides packages that Chameleons do without; the other families must not need them."""
    for name in ("janus", "emu3", "liquid"):
        size = ["--image-size", "16x16"] if name == "emu3" else []
        words = [*folders[name], "--task", "text-to-image", *WORDS, *size, "-o", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, "-m", "fastdecode", "generate", *words], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "picture-1.png").exists()


def test_the_name_of_a_fine_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "mine", tiny_model(context=200), tiny_processor())
    task = ["--model", folder, "--task", "chat", "--prompt", "w1", "--max-new-tokens", "4", "--explain"]
    assert run(*task, "--like", "Anole", "-o", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "recipe of Anole, chat" in said
    assert "'temperature': 1.0" in said
    assert run(*task, "--like", "Annole", "-o", tmp_path / "b") == 2
    assert "like='Annole': choose one of Chameleon, Anole" in capsys.readouterr().err


WRONG = [
    (["--task", "draw"], ["--task", "'draw'", "text-to-image"]),
    (["--task", "edit", "--completion"], ["--completion with --task edit"]),
    (["--image-size", "64x64"], ["--image-size needs a task"]),
    (["--like", "Anole"], ["--like needs a task"]),
    (["--task", "text-to-image", "--image-size", "64"], ["--image-size: '64' is not a size", "768x512"]),
    (["--task", "text-to-image", "--image-size", "0x64"], ["'0x64' is not a size"]),
    (["--task", "text-to-image", "--mode", "image-only", "--text-top-k", "5"], ["--text-top-k", "makes none"]),
]
WRONG_FOR_THE_MODEL = [
    (["--task", "text-to-image", "--image-size", "32x8"], ["draws no pictures of 32x8", "only of 64x64"]),
    (["--task", "text-to-image", "--text-temperature", "0"], ["--text-temperature", "text-to-image is image-only"]),
    (["--task", "chat"], ["blocks has no recipe for 'chat'"]),
    (["--task", "edit"], ["0 pictures were given for 1 prompt: the task 'edit' of blocks takes 1 for each"]),
    (["--task", "caption"], ["without a text of yours"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG + WRONG_FOR_THE_MODEL, ids=str)
def test_wrong_tasks_are_one_sentence(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--prompt", CIRCLE, *arguments, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (1 if (arguments, words) in WRONG else 2)  # these are refused before the model is read
    assert said[-1].startswith("fastdecode: ")
    for word in words:
        assert word in said[-1]
    assert not (tmp_path / "out").exists()


def test_a_task_needs_a_prompt_unless_it_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--task", "text-to-image", "-o", tmp_path / "out") == 2
    assert "give --prompt TEXT" in capsys.readouterr().err


def test_other_families_need_a_task(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*folders["emu3"], *WORDS, "--mode", "image-only", "-o", tmp_path / "out") == 2
    assert "is an Emu3, and without a task" in capsys.readouterr().err
