"""The command line: its files, its messages, and that no half-written file stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastdecode import cli, environment
from fastdecode.cli import generate as write
from fastdecode.cli import output
from fastdecode.cli.demo import GUIDANCE
from fastdecode.guidance import Guidance

DRAW = ["generate", "--prompt", "Draw: In column 2 a red circle.", "--mode", "image-only"]


def run(*arguments: str | Path) -> int:
    return cli.main([str(a) for a in arguments])


def test_generate_writes_a_document_and_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert run(*DRAW, "--seed", "3", "-o", folder, "--explain") == 0
    assert sorted(f.name for f in folder.iterdir()) == ["document.md", "picture-1.png"]
    with Image.open(folder / "picture-1.png") as picture:
        assert picture.size == (64, 64)
    assert "picture-1.png" in (folder / "document.md").read_text()
    said = capsys.readouterr().out
    assert "66 tokens" in said
    assert str(folder) in said
    assert "inside pictures" in said


def test_the_seed_decides_what_is_written(tmp_path: Path) -> None:
    def drawn(seed: int, name: str) -> bytes:
        assert run(*DRAW, "--temperature", "1.5", "--top-p", "1", "--seed", str(seed), "-o", tmp_path / name) == 0
        return (tmp_path / name / "picture-1.png").read_bytes()

    assert drawn(1, "a") == drawn(1, "b")
    assert any(drawn(seed, f"c{seed}") != drawn(1, "a") for seed in range(2, 6))


def test_generate_edits_a_picture(tmp_path: Path) -> None:
    assert run(*DRAW, "-o", tmp_path / "first") == 0
    edit = ["generate", "--prompt", "Paint the red circle blue.", "--mode", "image-only"]
    assert run(*edit, "--image", tmp_path / "first" / "picture-1.png", "-o", tmp_path / "second") == 0
    assert (tmp_path / "second" / "picture-1.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "pictures"], ["pictures", "interleaved-text-image"]),
        (["--guidance", "strong"], ["--guidance 'strong'", "instruct"]),
        (["--guidance", "instruct:1"], ["instruct:1", "instruct:TEXT,IMAGE"]),
        (["--image", "nowhere.png"], ["nowhere.png", "no such file"]),
        (["--image", __file__], ["test_cli.py", "not a picture"]),
        (["--prompt", "<image><image>Describe."], ["2 <image>", "0 pictures"]),
        (["--model", "no-such-folder"], ["no-such-folder", "blocks"]),
        (["--max-new-tokens", "20"], ["no room for one picture", "66"]),
        (["--max-new-tokens", "0"], ["max_new_tokens"]),
        (["--top-p", "1.5"], ["top_p"]),
        (["--temperature", "-1"], ["temperature"]),
        (["--vqgan", "nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--prompt", "red " * 600], ["context", "512"]),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "not" / "made"
    base = {"--prompt": "Draw: In column 2 a red circle."}
    base |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert run("generate", *(part for pair in base.items() for part in pair), "-o", folder) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert not (tmp_path / "not").exists()


def test_the_output_may_not_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert run(*DRAW, "-o", file) == 2
    assert "is a file" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_failure_while_writing_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), output.whole_folder(folder) as draft:  # noqa: PT012
        (draft / "new.txt").write_text("new")
        raise RuntimeError("halfway")
    assert [f.name for f in folder.iterdir()] == ["old.txt"]
    with output.whole_folder(folder) as draft:
        (draft / "new.txt").write_text("new")
    assert sorted(f.name for f in folder.iterdir()) == ["new.txt", "old.txt"]


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
    assert write.parse_guidance(text, draws) == wanted


def test_env_tells_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"].startswith("2.")
    assert facts["sampling backends"]["cpu"] == "available"
    assert run("env") == 0
    assert "sampling backends" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["torch", "transformers", "PIL"])
def test_env_works_when_an_import_is_broken(broken: str) -> None:
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {broken!r}: raise ImportError('libsomething.so: undefined symbol')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from fastdecode.cli import main\n"
        "raise SystemExit(main(['env', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = {"PIL": "pillow"}.get(broken, broken)
    assert "broken: ImportError: libsomething.so" in json.loads(done.stdout)["packages"][package]


def test_environment_variables_are_listed() -> None:
    assert "FASTDECODE_BACKEND" in environment.collect()["environment"]
