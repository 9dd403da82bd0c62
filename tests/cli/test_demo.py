"""The demo: a self-contained page, and pictures that show what their sentences say."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from fastdecode.cli import demo, demo_page
from fastdecode.generation import prepared
from tools.blocks import world
from tools.blocks.recogniser import recognise

LOGGED: list[str] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "page"
    LOGGED.clear()
    prepared.logger.warning_once.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared.logger, "warning", lambda message, *args, **kwargs: LOGGED.append(message))
        demo.run_demo(target, seed=0)
    return target


def test_nothing_is_logged(folder: Path) -> None:
    assert LOGGED == []


def read(folder: Path, name: str) -> world.Scene | None:
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.size == (64 * demo_page.ENLARGE,) * 2
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


def test_alternative_texts_say_what_the_pictures_show(folder: Path) -> None:
    """The texts of pictures that were drawn from a caption or edited are scenes; those of steps name the steps."""
    page = (folder / "index.html").read_text()
    images = re.findall(r'<img(?P<kind>[^>]*) alt="(?P<alt>[^"]*)" src="data:image/png;base64,(?P<data>[^"]*)"', page)
    assert len(images) == page.count("<img") > 60
    agree = scenes = 0
    for kind, alt, data in images:
        if alt.startswith("The scene after: Put "):
            continue
        scene = recognise(Image.open(io.BytesIO(base64.b64decode(data))))
        said = alt.removesuffix(" This is not what was asked.")
        assert ("wrong" in kind) == (said != alt)
        if scene is not None:  # what is broken is described somehow
            scenes += 1
            agree += world.describe(scene) == said
    assert scenes > 40
    assert agree >= scenes - 1
    for number, goal in enumerate(demo.GOALS, 1):
        assert f"<h3>Asked: {goal}</h3>" in page
        steps = [alt for _, alt, _ in images if alt.startswith("The scene after: ")]
        assert len(steps) == len(list(folder.glob("instruction-*.png")))
        assert (folder / f"instruction-{number}-1.png").exists()


def test_what_was_not_drawn_as_asked_is_marked_and_counted(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    scores = [int(n) for n in re.findall(r"<div class=score>(\d) of 3 as asked</div>", page)]
    assert len(scores) == len(demo.DRAWINGS) * len(demo.SCALES)
    single = [int(n) for n in re.findall(r"<div class=score>(\d) of 1 as asked</div>", page)]
    assert len(single) == 2 * len(demo.LONG_DRAWINGS)
    assert page.count("class=wrong") == sum(3 - n for n in scores) + single.count(0) > 0
    for i, drawing in enumerate(demo.DRAWINGS):
        for j in range(len(demo.SCALES)):
            drawn = [read(folder, f"guidance-{i + 1}-{j + 1}-{k + 1}") for k in range(demo.SAMPLES)]
            right = sum(scene is not None and world.describe(scene) == drawing for scene in drawn)
            assert abs(right - scores[i * len(demo.SCALES) + j]) <= 1


def test_the_best_of_several_is_as_asked_more_often_than_the_first(folder: Path) -> None:
    right = []
    for column in (1, 2):
        drawn = [read(folder, f"best-{i + 1}-{column}-1") for i in range(len(demo.LONG_DRAWINGS))]
        pairs = zip(drawn, demo.LONG_DRAWINGS, strict=True)
        right.append(sum(scene is not None and world.describe(scene) == drawing for scene, drawing in pairs))
    assert right[0] < right[1]


def test_edits_show_before_and_after(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    for number, edit in enumerate(demo.EDITS, 1):
        assert re.search(
            rf"Before</figcaption></figure><div class=order>{edit}</div><figure>.*?After</figcaption>", page
        )
        assert read(folder, f"edit-{number}-1") != read(folder, f"edit-{number}-2")
