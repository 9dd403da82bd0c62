"""The command line: its files, its messages, and that no half-written file stays."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from models_for_tests import tiny_tokenizer
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from fastdecode import cli
from fastdecode.cli import arguments, decode_options, output, progress, requests
from fastdecode.cli.demo import GUIDANCE
from fastdecode.guidance import Guidance

DRAW = ["generate", "--prompt", "Draw: In column 2 a red circle.", "--mode", "image-only"]


def run(*arguments: str | Path) -> int:
    return cli.main([str(a) for a in arguments])


def names(folder: Path) -> list[str]:
    """The files in a folder but the hidden ones, sorted."""
    return sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))


def test_generate_writes_a_document_and_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert run(*DRAW, "--seed", "3", "-o", folder, "--explain") == 0
    assert names(folder) == ["document.md", "picture-1.png"]
    with Image.open(folder / "picture-1.png") as picture:
        assert picture.size == (64, 64)
        made = json.loads(picture.text["fastdecode"])
    assert made["prompt"] == DRAW[DRAW.index("--prompt") + 1]
    assert (made["seed"], made["picture"], made["model"]) == (3, 1, "blocks")
    assert made["multimodal_generation_mode"] == "image-only"
    assert "picture-1.png" in (folder / "document.md").read_text()
    said = capsys.readouterr().out
    assert "66 tokens" in said
    assert str(folder) in said
    assert "inside pictures" in said


def test_the_seed_decides_what_is_written(tmp_path: Path) -> None:
    def drawn(seed: int, name: str) -> bytes:
        assert (
            run(
                *DRAW, "--temperature", "1.5", "--top-p", "1", "--seed", str(seed), "-o", tmp_path / name, "--overwrite"
            )
            == 0
        )
        with Image.open(tmp_path / name / "picture-1.png") as picture:
            return picture.tobytes()

    assert drawn(1, "a") == drawn(1, "b")
    assert any(drawn(seed, f"c{seed}") != drawn(1, "a") for seed in range(2, 6))


def test_generate_edits_a_picture(tmp_path: Path) -> None:
    assert run(*DRAW, "-o", tmp_path / "first") == 0
    edit = ["generate", "--prompt", "Paint the red circle blue.", "--mode", "image-only"]
    assert run(*edit, "--image", tmp_path / "first" / "picture-1.png", "-o", tmp_path / "second") == 0
    assert (tmp_path / "second" / "picture-1.png").exists()


WRONG = [
    (["--mode", "pictures"], ["'pictures'", "interleaved-text-image"]),
    (["--guidance", "strong"], ["'strong'", "instruct:TEXT,IMAGE"]),
    (["--guidance", "instruct:1"], ["instruct:1", "instruct:TEXT,IMAGE"]),
    (["--guidance", "nan"], ["'nan'", "a number such as 3.0"]),
    (["--image", "nowhere.png"], ["nowhere.png", "no such file"]),
    (["--image", ""], ["--image", "names no file"]),
    (["--image", __file__], ["test_cli.py", "not a picture"]),
    (["--max-new-tokens", "0"], ["--max-new-tokens", "whole number of at least 1"]),
    (["--max-new-tokens", "1.5"], ["--max-new-tokens: '1.5'"]),
    (["--top-p", "1.5"], ["--top-p: '1.5'", "at most 1"]),
    (["--image-top-p", "0"], ["--image-top-p: '0'", "above 0"]),
    (["--top-k", "-1"], ["--top-k: '-1'", "at least 0"]),
    (["--text-top-k", "many"], ["--text-top-k: 'many'", "whole number"]),
    (["--temperature", "-1"], ["--temperature: '-1'", "at least 0"]),
    (["--temperature", "nan"], ["--temperature: 'nan'"]),
    (["--image-temperature", "inf"], ["--image-temperature: 'inf'"]),
    (["--num", "0"], ["--num: '0'", "from 1 to 10000"]),
    (["--num", "1000000000"], ["--num: '1000000000'", "from 1 to 10000"]),
    (["--seed", str(2**70)], ["--seed", str(2**70), str(2**63 - 1)]),
    (["--seed", "9" * 5000], ["--seed: '9999", "…"]),
    (["--seed", str(2**63 - 1), "--num", "2"], ["--seed 9223372036854775807", "2 documents"]),
    (["--dtype", "int8"], ["'int8'", "bfloat16"]),
    (["--weights", "int2"], ["--weights", "'int2'", "int8", "int4"]),
    (["--weights", "int8", "--device", "cuda"], ["--weights int8", "--device cuda", "for the CPU"]),
    (["--device", "gpu"], ["'gpu'", "cuda:N"]),
    (["--device", "cuda:x"], ["'cuda:x'", "cuda:0"]),
    (["--prompts", "nowhere.txt"], ["--prompts 'nowhere.txt'", "No such file"]),
    (["--prompts", str(Path(__file__).parent)], ["--prompts", "Is a directory"]),
    (["--prompt", "caf\udce9"], ["prompt 1 is not text in UTF-8"]),
    (["--mode", "text-only", "--image-top-k", "5"], ["--image-top-k", "text-only makes none"]),
    (["--mode", "image-only", "--text-temperature", "0"], ["--text-temperature", "image-only makes none"]),
    (["--frobnicate"], ["unrecognized arguments: --frobnicate;", "see fastdecode generate --help"]),
    (["--steps", "30"], ["unrecognized arguments: --steps 30;", "see fastdecode generate --help"]),
    (["Draw"], ["unrecognized arguments: Draw; give the prompt with --prompt; see fastdecode generate --help"]),
]
WRONG_FOR_THE_MODEL = [
    (["--prompt", "<image><image>Describe."], ["2 <image>", "0 pictures"]),
    (["--model", "no-such-folder"], ["no-such-folder", "blocks"]),
    (["--max-new-tokens", "20"], ["no room for one picture", "66"]),
    (["--vqgan", "nowhere.ckpt"], ["nowhere.ckpt"]),
    (["--prompt", "red " * 600], ["context", "512"]),
    (["--mode", "text-only", "--prompt", "red " * 600], ["context", "512", "shorten the text"]),
    (["--device", "cuda:99"], ["--device cuda:99", "no such GPU"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG + WRONG_FOR_THE_MODEL)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [] if "--prompt" in arguments else ["--prompt", "Draw: In column 2 a red circle."]
    assert run("generate", *prompt, *arguments, "-o", tmp_path / "not" / "made") == 2
    printed = capsys.readouterr()
    early = (arguments, words) in WRONG  # these are refused before the model is read
    said = printed.err.splitlines()
    assert said[:-1] == (
        [] if early else ["loading no-such-folder …" if "--model" in arguments else "loading blocks …"]
    )
    assert said[-1].startswith("fastdecode: ")
    for word in words:
        assert word in said[-1]
    assert "fastdecode.generate" not in said[-1]  # of no use at a shell
    assert not printed.out
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["generate"], ["draw"], ["bench", "nothing"], ["demo", "--seed", "x"], ["serve", "7"]]
)
def test_wrong_commands_are_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("fastdecode: ")
    assert said[0].endswith("--help")


def test_a_command_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("draw", "-o", "x") == 2
    said = "fastdecode: there is no command draw; there are demo, generate, run, serve, bench, config and env"
    assert capsys.readouterr().err == f"{said}; see fastdecode --help\n"
    assert run("env", "--steps", "3") == 2
    assert capsys.readouterr().err.endswith("unrecognized arguments: --steps 3; see fastdecode env --help\n")


def test_a_prompt_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "-o", tmp_path / "out") == 2
    assert "give --prompt TEXT" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n  \n")
    assert run("generate", "--prompts", tmp_path / "empty.txt", "-o", tmp_path / "out") == 2
    assert "holds no prompt" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert run("generate", "--prompts", tmp_path / "latin.txt", "-o", tmp_path / "out") == 2
    assert "is not text in UTF-8" in capsys.readouterr().err


def huge_png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims to have so many pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_one_sentence(side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(side, side))
    assert run(*DRAW, "--image", tmp_path / "bomb.png", "-o", tmp_path / "out") == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "bomb.png' is too large: a picture may have" in said


@pytest.mark.parametrize("data", [huge_png(8, 8)[:50], huge_png(8, 8)[:20], b"\x89PNG\r\n\x1a\n", b"P6 8 8", b"GIF89a"])
def test_a_broken_picture_is_one_sentence(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(data)
    assert run(*DRAW, "--image", tmp_path / "broken.png", "-o", tmp_path / "out") == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "broken.png' is not a picture that can be read" in said


@pytest.mark.parametrize("name", ["", " "])
def test_the_output_needs_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*DRAW, "-o", name) == 2
    assert "names no folder; the current one is called ." in capsys.readouterr().err
    assert run("demo", "-o", name) == 2
    assert not list(tmp_path.iterdir())


def test_a_very_long_output_name_is_one_short_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*DRAW, "-o", tmp_path / "out" / ("long" * 1000)) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.endswith("cannot be written: File name too long")
    assert len(said) < 200
    assert not (tmp_path / "out").exists()
    assert run("bench", "sample", "--json", tmp_path / ("long" * 1000)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be used: File name too long" in said


def test_the_output_may_not_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (file, file / "below"):
        assert run(*DRAW, "-o", target) == 2
        [said] = capsys.readouterr().err.splitlines()
        assert said.endswith("/file' is a file")
    assert file.read_text() == "mine"


def test_several_prompts_are_decoded_together_and_each_as_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (
        "Draw: In column 2 a red circle.",
        "Draw: In column 1 a blue square.",
        "Draw: In column 4 a tree.",
    )
    (tmp_path / "prompts.txt").write_text(f"{second}\n\n  {third}\n")
    several = [
        "generate",
        "--prompt",
        first,
        "--prompts",
        tmp_path / "prompts.txt",
        "--mode",
        "image-only",
        "--seed",
        "5",
    ]
    assert run(*several, "-o", tmp_path / "all", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert [(d["prompt"], d["seed"], d["tokens"]) for d in made["documents"]] == [
        (first, 5, 66),
        (second, 6, 66),
        (third, 7, 66),
    ]
    pictures = [f"document-{n}-picture-1.png" for n in (1, 2, 3)]
    assert [d["parts"] for d in made["documents"]] == [[{"picture": name}] for name in pictures]
    assert names(tmp_path / "all") == sorted([*pictures, *(f"document-{n}.md" for n in (1, 2, 3))])
    assert run("generate", "--prompt", third, "--mode", "image-only", "--seed", "7", "-o", tmp_path / "alone") == 0
    assert (tmp_path / "all" / pictures[2]).read_bytes() == (tmp_path / "alone" / "picture-1.png").read_bytes()


def test_prompts_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Draw: In column 2 a red circle.\n"))
    assert run("generate", "--prompts", "-", "--mode", "image-only", "-o", tmp_path) == 0
    assert names(tmp_path) == ["document.md", "picture-1.png"]


def test_num_makes_different_documents_of_one_prompt(tmp_path: Path) -> None:
    assert run(*DRAW, "--num", "3", "--temperature", "1.5", "--top-p", "1", "-o", tmp_path) == 0
    drawn = {(tmp_path / f"document-{n}-picture-1.png").read_bytes() for n in (1, 2, 3)}
    assert len(drawn) > 1


def test_a_wrong_prompt_among_several_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*DRAW, "--prompt", "<image>Describe.", "-o", tmp_path / "out") == 2
    assert "fastdecode: prompt 2: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text", "image"),
    [
        (
            [],
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        ),
        (["--temperature", "0"], {"do_sample": False}, {"do_sample": False}),
        (
            ["--text-temperature", "0", "--top-k", "40", "--image-top-k", "0", "--image-top-p", "0.5"],
            {"do_sample": False},
            {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.5},
        ),
        (
            ["--mode", "text-only", "--top-k", "3"],
            {"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.9},
            None,
        ),
        (["--mode", "image-only", "--image-temperature", "0"], None, {"do_sample": False}),
    ],
)
def test_sampling_options_set_both_modalities_or_one(
    arguments: list[str], text: dict[str, object] | None, image: dict[str, object] | None
) -> None:
    args = cli.parser().parse_args(["generate", "--prompt", "x", "-o", "out", *arguments])
    wanted = {name: options for name, options in (("text", text), ("image", image)) if options is not None}
    assert decode_options.sampling_options(args) == wanted


def test_every_sampling_option_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--text-temperature", "0", "--image-temperature", "0.8", "--image-top-k", "7", "--image-top-p", "0.6"]
    more = ["--dtype", "bfloat16", "--device", "cpu", "--max-new-tokens", "100", "--explain"]
    assert run("generate", "--prompt", "Build a tree in column 1.", *options, *more, "-o", tmp_path) == 0
    said = capsys.readouterr().out
    assert re.search(r"text sampling +greedy", said)
    assert re.search(r"picture sampling +temperature 0.8, top_k 7, top_p 0.6", said)
    assert "bfloat16" in said


def test_weights_that_are_small_already_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chameleon", "quantization_config": {"quant_method": "x"}}')
    assert run(*DRAW, "--model", tmp_path, "--weights", "int8", "-o", tmp_path / "out") == 2
    assert "small already" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_widths_are_those_of_load() -> None:
    """The command line has a list of its own: the parser does not wait for torch."""
    from fastdecode.models.quantise import WIDTHS

    assert arguments.WEIGHTS == WIDTHS


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_generate_makes_the_weights_small(weights: str, tmp_path: Path) -> None:
    args = cli.parser().parse_args([*DRAW, "--weights", weights, "-o", str(tmp_path)])
    made = requests.load_engine(args).model.model.layers[0].mlp.up_proj.weight
    assert repr(made).startswith(f"SmallTensor({weights},")


def test_json_has_the_explanation_and_nothing_else_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*DRAW, "--json", "--explain", "-o", tmp_path) == 0
    made = json.loads(capsys.readouterr().out)
    assert "sampling backend" in made["explanation"]
    assert made["documents"][0]["file"] == "document.md"


def test_an_earlier_runs_files_are_not_mixed_with_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*DRAW, "--num", "2", "-o", tmp_path) == 0
    (tmp_path / "notes.txt").write_text("mine")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    capsys.readouterr()
    assert run(*DRAW, "-o", tmp_path) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "holds document-1-picture-1.png and 3 more of an earlier run" in said
    assert "--overwrite" in said
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    assert run(*DRAW, "-o", tmp_path, "--overwrite") == 0
    assert names(tmp_path) == ["document.md", "notes.txt", "picture-1.png"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_file_that_is_not_known_to_be_ours_is_never_replaced(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture-7.png").write_text("mine")
    assert run(*DRAW, "-o", tmp_path, *more) == 2
    assert "picture-7.png is there already" in capsys.readouterr().err
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"picture-7.png": "mine"}


def test_overwrite_that_fails_keeps_the_older_files(tmp_path: Path) -> None:
    assert run(*DRAW, "-o", tmp_path) == 0
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert run(*DRAW, "--prompt", "<image>", "--overwrite", "-o", tmp_path) == 2
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_list_of_files_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    (folder / output.list_name("generate")).write_text(f"../precious.txt\n{tmp_path}/precious.txt\n..\n\n")
    assert output.written(folder, "generate") == []
    assert run(*DRAW, "--overwrite", "-o", folder) == 0
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failure_while_writing_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), output.whole_folder(folder, "try") as draft:  # noqa: PT012
        (draft / "new.txt").write_text("new")
        raise RuntimeError("halfway")
    assert [f.name for f in folder.iterdir()] == ["old.txt"]
    for name in ("new.txt", "newer.txt"):
        with output.whole_folder(folder, "try") as draft:
            (draft / name).write_text(name)
        assert names(folder) == sorted([name, "old.txt"])


def test_bench_refuses_a_plot_that_cannot_be_written_before_it_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastdecode.bench.sample.measure", lambda *_, **__: pytest.fail("a case was timed"))
    for name in ("x.doc", "x", "x.png.txt"):
        assert run("bench", "sample", "--quick", "--json", tmp_path / "x.json", "--plot", tmp_path / name) == 2
        assert "must end in .pdf, .png or .svg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_long_loading_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    seen = threading.Event()
    write_text = screen.write

    def watched(text: str) -> int:
        if re.search(r"\rloading blocks … \d+ s", text):
            seen.set()
        return write_text(text)

    monkeypatch.setattr(screen, "write", watched)
    with progress.loading("blocks"):
        assert seen.wait(60)
    assert screen.getvalue().startswith("loading blocks …")
    assert re.search(r"\rloaded blocks in [\d.]+ s +\n$", screen.getvalue())


@pytest.mark.parametrize(
    ("text", "draws", "wanted"),
    [
        (None, True, GUIDANCE),
        (None, False, None),
        ("none", True, None),
        ("2.5", True, 2.5),
        ("instruct", True, Guidance.instruct()),
        ("instruct:4,1.5", True, Guidance.instruct(4.0, 1.5)),
    ],
)
def test_guidance_option(text: str | None, draws: bool, wanted: object) -> None:
    assert decode_options.parse_guidance(text, draws) == wanted


def test_models_whose_prompts_the_command_does_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    assert (
        run("generate", "--prompt", "w1", "--mode", "text-only", "--model", tmp_path / "llama", "-o", tmp_path / "out")
        == 2
    )
    said = capsys.readouterr().err
    assert "llama is a LlamaForCausalLM, and without a task the command writes prompts of Chameleons" in said
    assert "give a task, such as --task chat" in said
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in ``fastdecode env | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastdecode", "env"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
