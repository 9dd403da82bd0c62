"""The world of ``blocks`` and its recogniser: it reads exactly what was drawn."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from PIL import Image

from tools.blocks import world
from tools.blocks.recogniser import LIMIT, follow, recognise


def test_scenes_are_read_back() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = world.random_scene(rng, most=10)
        assert recognise(world.draw(scene)) == scene


def test_templates_are_further_apart_than_the_limit_allows_to_confuse() -> None:
    cells = {key: value.astype(np.float32) for key, value in world.CELLS.items()}
    for (a, x), (b, y) in itertools.combinations(cells.items(), 2):
        assert np.sqrt(((x - y) ** 2).mean()) > LIMIT, (a, b)


def test_floating_things_and_noise_are_not_read() -> None:
    scene = ((("red", "square"), ("blue", "circle")), (), (), ())
    floating = world.draw(scene)
    floating.paste(world.SKY, (0, 48, 16, 64))
    assert recognise(floating) is None
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert recognise(Image.fromarray(noise)) is None
    with pytest.raises(ValueError, match="64"):
        recognise(Image.new("RGB", (32, 32)))


def test_steps_lead_to_their_scenes() -> None:
    rng = random.Random(2)
    for _ in range(300):
        goal = world.random_goal(rng)
        before = world.EMPTY
        for step in goal.steps:
            assert step.scene in follow(before, step.sentence)
            before = step.scene
    assert follow(world.EMPTY, "Put a red square on the blue circle.") == []
    assert follow(world.EMPTY, "Make tea.") == []


def test_a_wrong_attribute_is_one_attribute() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = world.random_scene(rng)
        wrong = world.with_one_wrong_attribute(rng, scene)
        changed = [(a, b) for x, y in zip(scene, wrong, strict=True) for a, b in zip(x, y, strict=True) if a != b]
        assert len(changed) == 1
        assert sum(a != b for a, b in zip(*changed[0], strict=True)) == 1


def test_edits_change_the_scene() -> None:
    rng = random.Random(4)
    for _ in range(300):
        before, instruction, after = world.random_edit(rng)
        assert before != after
        assert instruction.endswith(".")
