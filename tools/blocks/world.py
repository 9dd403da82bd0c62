"""The world that ``blocks`` knows: coloured shapes stacked in four columns, and sentences about them.

A *scene* is four columns of at most four things, bottom first; a thing is ``(colour, shape)``. This file
draws scenes (64 x 64 pixels, 16 to a cell), describes them, and makes the four tasks of the model. What a
picture shows is read back by ``recogniser.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLUMNS, HEIGHT, CELL = 4, 4, 16
SIDE = COLUMNS * CELL
SKY = (214, 232, 244)
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 208, 44),
    "green": (46, 160, 67),
    "blue": (30, 96, 200),
    "purple": (136, 60, 170),
    "brown": (110, 60, 20),
    "white": (255, 255, 255),
}
SHAPES = ("square", "circle", "triangle", "diamond")
OUTLINE = (52, 58, 64)

Thing = tuple[str, str]
Scene = tuple[tuple[Thing, ...], ...]
EMPTY: Scene = ((),) * COLUMNS


@dataclass(frozen=True)
class Step:
    """One line of an illustrated instruction: what to do, and the scene after it."""

    sentence: str
    scene: Scene


@dataclass(frozen=True)
class Goal:
    """A goal in words and the steps that reach it; the last step's scene is the goal's."""

    sentence: str
    steps: tuple[Step, ...]


def put(scene: Scene, column: int, thing: Thing) -> Scene:
    return tuple((*stack, thing) if i == column else stack for i, stack in enumerate(scene))


# --- pictures ---------------------------------------------------------------------------------------------------


def _draw_thing(thing: Thing, scale: int) -> Image.Image:
    """One cell, drawn ``scale`` times larger and averaged down so that its edges are smooth."""
    colour, shape = thing
    side = CELL * scale
    picture = Image.new("RGB", (side, side), SKY)
    draw = ImageDraw.Draw(picture)
    a, b, mid = scale * 0.75, side - 1 - scale * 0.75, (side - 1) / 2
    style = {"fill": COLOURS[colour], "outline": OUTLINE, "width": scale}
    if shape == "square":
        draw.rectangle((a, a, b, b), **style)
    elif shape == "circle":
        draw.ellipse((a, a, b, b), **style)
    elif shape == "triangle":
        draw.polygon([(mid, a), (b, b), (a, b)], **style)
    else:
        draw.polygon([(mid, a), (b, mid), (mid, b), (a, mid)], **style)
    return picture.resize((CELL, CELL), Image.Resampling.BOX)


CELLS: dict[Thing | None, np.ndarray] = {
    (colour, shape): np.asarray(_draw_thing((colour, shape), 8)) for colour in COLOURS for shape in SHAPES
}
CELLS[None] = np.full((CELL, CELL, 3), SKY, np.uint8)


def draw(scene: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB picture, ground at the bottom."""
    pixels = np.tile(CELLS[None], (HEIGHT, COLUMNS, 1))
    for x, stack in enumerate(scene):
        for y, thing in enumerate(stack):
            top = SIDE - (y + 1) * CELL
            pixels[top : top + CELL, x * CELL : (x + 1) * CELL] = CELLS[thing]
    return Image.fromarray(pixels)


# --- sentences --------------------------------------------------------------------------------------------------


def name(thing: Thing) -> str:
    colour, shape = thing
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def describe(scene: Scene) -> str:
    """The caption of a scene: columns left to right, each from the bottom up."""
    parts = [f"In column {x + 1} " + ", on it ".join(map(name, stack)) for x, stack in enumerate(scene) if stack]
    return ". ".join(parts) + "." if parts else "Nothing."


def drawing_prompt(scene: Scene) -> str:
    return f"Draw: {describe(scene)}"


CAPTION_PROMPT = "<image>Describe the picture."


def _step_sentence(scene: Scene, column: int, thing: Thing) -> str:
    if scene[column]:
        return f"Put {name(thing)} on the {' '.join(scene[column][-1])}."
    return f"Put {name(thing)} in column {column + 1}."


def _build(sentence: str, moves: list[tuple[int, Thing]]) -> Goal:
    scene, steps = EMPTY, []
    for column, thing in moves:
        step = _step_sentence(scene, column, thing)
        scene = put(scene, column, thing)
        steps.append(Step(step, scene))
    return Goal(sentence, tuple(steps))


def tower(column: int, things: list[Thing]) -> Goal:
    words = ", ".join(map(name, things[:-1])) + f" and {name(things[-1])}"
    return _build(f"Build a tower of {words} in column {column + 1}.", [(column, t) for t in things])


def row(first: int, things: list[Thing]) -> Goal:
    words = ", ".join(map(name, things[:-1])) + f" and {name(things[-1])}"
    return _build(
        f"Build a row of {words} from column {first + 1}.",
        [(first + i, t) for i, t in enumerate(things)],
    )


def house(column: int, walls: str, roof: str) -> Goal:
    return _build(
        f"Build a house with {walls} walls and a {roof} roof in column {column + 1}.".replace("a orange", "an orange"),
        [(column, (walls, "square")), (column, (roof, "triangle"))],
    )


FIGURES: dict[str, tuple[Thing, ...]] = {
    "snowman": (("white", "circle"),) * 3,
    "tree": (("brown", "square"), ("green", "triangle"), ("green", "triangle")),
    "traffic light": (("green", "circle"), ("yellow", "circle"), ("red", "circle")),
    "rocket": (("white", "square"), ("white", "square"), ("red", "triangle")),
    "flower": (("green", "square"), ("yellow", "diamond")),
}


def figure(column: int, what: str) -> Goal:
    return _build(f"Build a {what} in column {column + 1}.", [(column, t) for t in FIGURES[what]])


# --- random material --------------------------------------------------------------------------------------------


def random_thing(rng: random.Random) -> Thing:
    return rng.choice(list(COLOURS)), rng.choice(SHAPES)


def random_scene(rng: random.Random, most: int = 4) -> Scene:
    """One to ``most`` things dropped into random columns."""
    scene = EMPTY
    for _ in range(rng.randint(1, most)):
        column = rng.choice([i for i in range(COLUMNS) if len(scene[i]) < HEIGHT])
        scene = put(scene, column, random_thing(rng))
    return scene


def random_goal(rng: random.Random) -> Goal:
    kind = rng.random()
    if kind < 0.35:
        return tower(rng.randrange(COLUMNS), [random_thing(rng) for _ in range(rng.randint(2, 4))])
    if kind < 0.6:
        count = rng.randint(2, 4)
        return row(rng.randint(0, COLUMNS - count), [random_thing(rng) for _ in range(count)])
    if kind < 0.8:
        return house(rng.randrange(COLUMNS), rng.choice(list(COLOURS)), rng.choice(list(COLOURS)))
    return figure(rng.randrange(COLUMNS), rng.choice(list(FIGURES)))


EQUAL_SHARES = {"put": 1.0, "remove": 1.0, "paint": 1.0}
"""Kinds of edits and how often each is asked for."""


def random_edit(rng: random.Random, shares: Mapping[str, float] = EQUAL_SHARES) -> tuple[Scene, str, Scene]:
    """A scene, an instruction that has one meaning in it, and the scene after."""
    kind = rng.choices(list(shares), list(shares.values()))[0]
    while True:
        scene = random_scene(rng)
        x = rng.randrange(COLUMNS)
        stack = scene[x]
        if kind == "put" and len(stack) < HEIGHT:
            thing = random_thing(rng)
            return scene, f"Put {name(thing)} in column {x + 1}.", put(scene, x, thing)
        if kind == "remove" and stack:
            after = tuple(s[:-1] if i == x else s for i, s in enumerate(scene))
            return scene, f"Take the top of column {x + 1} away.", after
        if kind == "paint" and stack:
            y = rng.randrange(len(stack))
            if sum(stack[y] == thing for s in scene for thing in s) > 1:
                continue
            colour = rng.choice([c for c in COLOURS if c != stack[y][0]])
            painted = tuple((colour, t[1]) if j == y else t for j, t in enumerate(stack))
            after = tuple(painted if i == x else s for i, s in enumerate(scene))
            return scene, f"Paint the {' '.join(stack[y])} {colour}.", after


def with_one_wrong_attribute(rng: random.Random, scene: Scene) -> Scene:
    """A scene that differs in one thing's colour or shape.

    Never in its place: guidance raises what the text makes likelier than nothing does, and a thing that is mentioned is
    likelier than nothing at every place where captions are wrong about places.
    """
    x = rng.choice([i for i, stack in enumerate(scene) if stack])
    y = rng.randrange(len(scene[x]))
    colour, shape = scene[x][y]
    if rng.random() < 0.5:
        colour = rng.choice([c for c in COLOURS if c != colour])
    else:
        shape = rng.choice([s for s in SHAPES if s != shape])
    stack = tuple((colour, shape) if j == y else t for j, t in enumerate(scene[x]))
    return tuple(stack if i == x else s for i, s in enumerate(scene))
