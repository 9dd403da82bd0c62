"""The README and the documentation: programs and commands run, links lead somewhere, and every message that is
quoted is one of the code's.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.utils.logging import get_logger

import fastdecode
from fastdecode.build_info import compiler_flags, linker_flags
from fastdecode.cli.main import parser
from fastdecode.versions import TRIED

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]

NOT_RUN = "not run here"
"""The title of blocks that need what we do not have. Their programs run with blocks in place of the checkpoint."""

STAND_INS = {'fastdecode.load("anole"': 'fastdecode.load("blocks"'}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows it on the line, the text, and the line where the text begins."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    every = [Block(m[1], m[2], m[3], text[: m.start(3)].count("\n") + 1) for m in found]
    return [block for block in every if block.language == language]


def commands(block: Block) -> list[str]:
    return [re.split(r"\s{4,}#", line)[0].strip() for line in block.text.splitlines() if line.strip()]


QUICK = ("make", "fastdecode env", "fastdecode serve")
ON_RAY = re.compile(r"^ray |--ray|^import ray$", re.MULTILINE)
"""What needs a cluster of Ray: one at a time is enough for this machine."""


def marks(text: str, quick: bool) -> list[pytest.MarkDecorator]:
    return [*([] if quick else [pytest.mark.long]), *([pytest.mark.xdist_group("ray")] if ON_RAY.search(text) else [])]


SHELL = [
    pytest.param(block, id=f"{page.name}:{block.line}", marks=marks(block.text, quick))
    for page in PAGES
    for block in blocks(page, "bash")
    if NOT_RUN not in block.title
    for quick in [all(line.startswith(QUICK) for line in commands(block))]
]


def test_there_is_something_to_run() -> None:
    assert len(blocks(PAGES[0], "python")) >= 4
    assert len(SHELL) >= 8
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 25


def test_only_what_needs_a_large_checkpoint_is_not_run() -> None:
    titled = {
        page.name for page in PAGES for b in [*blocks(page, "bash"), *blocks(page, "python")] if NOT_RUN in b.title
    }
    assert titled == {"anole.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=marks(p.read_text(), True)) for p in PAGES if blocks(p, "python")],
)
def test_programs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The programs of a page run one after another, as a reader would run them. None uses what is deprecated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(get_logger("transformers"), "propagate", True)
    get_logger("transformers").warning_once.cache_clear()
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        program = block.text
        if NOT_RUN in block.title:
            for name, stand_in in STAND_INS.items():
                program = program.replace(name, stand_in)
        code = compile("\n" * (block.line - 1) + program, str(page), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # transformers' category for what is deprecated
            exec(code, names)
    assert capsys.readouterr().out.strip()
    of_transformers = [r for r in caplog.records if r.name.startswith("transformers")]
    assert [r.getMessage() for r in of_transformers if "deprecated" in r.getMessage()] == []


@pytest.mark.parametrize("block", SHELL)
def test_commands(block: Block, tmp_path: Path) -> None:
    """The commands of a block run one after another, in one folder."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands(block):
        words = shlex.split(command)
        if words[0] == "make":  # what make would do here is what this test run is part of; the target must exist
            done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        elif words[0] in (".", "gcc", "g++", "cmake", "echo", "ray", "python"):
            command = f"{command}; fastdecode --version" if words[0] == "." else command
            environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                ["bash", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
        else:
            assert words[0] == "fastdecode", f"no way to test {command!r}"
            if words[1] == "serve":  # tests/serve starts it; here, its options must be ones that it has
                words.append("--help")
            call = [sys.executable, "-m", *words]
            done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


CPP = [pytest.param(b, id=f"{page.name}:{b.line}") for page in PAGES for b in blocks(page, "cpp")]


@pytest.mark.long
@pytest.mark.parametrize("block", CPP)
def test_cpp_programs(block: Block, tmp_path: Path) -> None:
    """Programs in C++ compile, link and print something."""
    (tmp_path / "main.cpp").write_text(block.text)
    flags = [*compiler_flags().split(), *linker_flags().split()]
    build = ["g++", "-std=c++17", "-Wall", "-Werror", "main.cpp", *flags, "-o", "main"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=120)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip()


def parses(words: list[str]) -> bool:
    try:
        parser().parse_args(words)
    except SystemExit as end:  # --help ends with 0
        return not end.code
    return True


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_sentences_have_options_that_exist(page: Path) -> None:
    for command in re.findall(r"`(fastdecode [^`\n]+)`", page.read_text()):
        words = shlex.split(command.replace("…", ""))[1:]
        if any(word.startswith("-") for word in words):
            assert parses(words), command
        else:
            assert words[0] in parser().format_help(), command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in name:
            assert (page.parent / name).exists(), name
    for name in re.findall(r"python (benchmarks/\S+\.py)", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m (tools[.\w]*)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_the_documentation_needs_no_packages_of_the_tests() -> None:
    """``-B``: as in a new clone. The last line says where the site is."""
    command = ["make", "--no-print-directory", "-nB", "docs"]  # a make that runs the tests says where this one works
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    installed = re.findall(r"pip install .* (\S+)$", done.stdout, re.MULTILINE)
    assert installed == ["torch==2.13.0", ".", '".[docs]"']
    assert "build/site/index.html" in done.stdout.splitlines()[-1]


def test_an_output_folder_is_used_once_in_all_pages() -> None:
    """A reader may run the commands of several pages in one folder; a folder of an earlier run is refused."""
    folders = re.findall(r"^fastdecode .* -o (\S+)", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    assert len(folders) >= 6
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pictures_are_described(page: Path) -> None:
    for words in re.findall(r"!\[([^\]]*)\]", page.read_text()):
        assert len(words.split()) >= 5, words


def test_messages_that_are_quoted_are_the_codes() -> None:
    quoted = re.findall("“([^”]+)”", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quoted) > 40
    source = "\n".join(file.read_text() for file in (ROOT / "fastdecode").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    assert [words for words in quoted if words not in source] == []


def test_versions_that_were_tried() -> None:
    text = " ".join((ROOT / "docs" / "install.md").read_text().split())
    for package, (lowest, highest) in TRIED.items():
        from_, to = (".".join(version.split(".")[:2]) for version in (lowest, highest))
        assert f"{package} {from_} to {to}" in text


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_names_of_the_reference_exist(page: Path) -> None:
    """``make docs`` reads them from the source; what is public is in ``fastdecode.__all__``."""
    names = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    for name in names:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
    if page.name == "api.md":
        told_elsewhere = {"__version__", "ops"}
        of_the_facade = {name.removeprefix("fastdecode.") for name in names if name.count(".") == 1}
        assert of_the_facade == set(fastdecode.__all__) - told_elsewhere
