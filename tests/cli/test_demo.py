"""The demo: a self-contained page, and pictures that show what their sentences say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from fastdecode.cli import demo
from tools.blocks import world
from tools.blocks.recogniser import recognise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "page"
    demo.run_demo(target, seed=0)
    return target


def read(folder: Path, name: str) -> world.Scene | None:
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.size == (64 * demo.ENLARGE,) * 2
        return recognise(picture.resize((64, 64), Image.Resampling.NEAREST))


def test_the_page_is_self_contained(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 40
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "ms per picture" in page
    assert len(list(folder.glob("*.png"))) == len({n.stem for n in folder.glob("*.png")}) > 40


@pytest.mark.parametrize(
    ("number", "goal"),
    [
        (1, world.house(1, "blue", "red")),
        (2, world.figure(2, "snowman")),
        (3, world.figure(0, "tree")),
        (4, world.figure(3, "traffic light")),
    ],
)
def test_instructions_reach_their_goal(folder: Path, number: int, goal: world.Goal) -> None:
    assert demo.GOALS[number - 1] == goal.sentence
    drawn = [read(folder, f"instruction-{number}-{i + 1}") for i in range(len(goal.steps))]
    assert drawn == [step.scene for step in goal.steps]
