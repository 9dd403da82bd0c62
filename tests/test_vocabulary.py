"""Vocabularies and layouts: what they refuse, and sizes of pictures."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest

from fastdecode.guidance import _USUAL, UNCONDITIONAL, Stream, usual_stream
from fastdecode.layout import Layout, SizeTokens
from fastdecode.vocabulary import USUAL_STREAMS, Vocabulary

BEGIN, END, PLACEHOLDER, ROW_END, FRAME_END, SIZE = 3, 4, 5, 6, 7, 10
IMAGE = (31, 30, 33, 32)
GOOD = {
    "size": 40,
    "code_ids": IMAGE,
    "begin_image": BEGIN,
    "end_image": END,
    "placeholder": PLACEHOLDER,
    "image_length": 4,
    "context": 99,
}


def made(**parts) -> Vocabulary:
    if isinstance(parts.get("layout"), Layout):
        parts = {"image_length": parts["layout"].length} | parts
    return Vocabulary(**(GOOD | parts))


def sizes(rows: int, columns: int, **parts) -> Vocabulary:
    tokens = SizeTokens(SIZE, 1, 8)
    return made(
        layout=Layout(rows, columns, ROW_END, tokens.of(rows, columns), (FRAME_END,)), size_tokens=tokens, **parts
    )


WRONG = {
    "no begin": ({"begin_image": -1}, "begin_image of a Vocabulary is -1, but it has image tokens"),
    "no end": ({"end_image": -1}, "end_image of a Vocabulary is -1, but it has image tokens"),
    "begin of another kind": ({"begin_image": "x"}, "begin_image of a Vocabulary = 'x': must be a whole number"),
    "begin below -1": ({"begin_image": -2}, "begin_image of a Vocabulary = -2: must be at least -1"),
    "end outside": ({"end_image": 40}, "end_image of a Vocabulary is 40: its 40 tokens are 0 to 39"),
    "end an image token": (
        {"end_image": 31},
        "code_ids and end_image of a Vocabulary have the same token 31: each needs",
    ),
    "begin is end": (
        {"end_image": BEGIN},
        "begin_image and end_image of a Vocabulary have the same token 3: each needs",
    ),
    "placeholder is begin": (
        {"placeholder": BEGIN},
        "begin_image and placeholder of a Vocabulary have the same token 3",
    ),
    "codes twice": ({"code_ids": (30, 31, 30)}, "code_ids of a Vocabulary have 30 twice: each image token means one"),
    "codes outside": ({"code_ids": (30, 40)}, "code_ids of a Vocabulary have 40: its 40 tokens are 0 to 39"),
    "codes below 0": ({"code_ids": (30, -1)}, "code_ids of a Vocabulary have -1: its 40 tokens are 0 to 39"),
    "codes of another kind": (
        {"code_ids": (30, "x")},
        "code_ids of a Vocabulary have 'x': a token is an integer of at",
    ),
    "codes that are lists": (
        {"code_ids": (30, [31])},
        "code_ids of a Vocabulary have [31]: a token is an integer of at",
    ),
    "codes in a str": ({"code_ids": "30"}, "code_ids of a Vocabulary: '30' are no tokens; give a list of integers"),
    "other tokens outside": (
        {"code_ids": (), "other_image_ids": (99,)},
        "other_image_ids of a Vocabulary have 99: its 40 tokens are 0 to 39",
    ),
    "no image token": ({"image_length": 0}, "the pictures of a Vocabulary have no image token, but it has code_ids"),
    "no row": ({"layout": Layout(0, 0, before=(8,))}, "the pictures of a Vocabulary have no image token"),
    "another length": ({"layout": Layout(2, 2), "image_length": 5}, "image_length=5, but the layout has 4 tokens"),
    "layout of another kind": ({"layout": (2, 2)}, "layout of a Vocabulary is a tuple: give a fastdecode.Layout"),
    "row end an image token": (
        {"layout": Layout(2, 2, 30)},
        "code_ids and row_end of the layout of a Vocabulary have the same token 30",
    ),
    "row end is end": (
        {"layout": Layout(2, 2, END)},
        "end_image and row_end of the layout of a Vocabulary have the same token 4",
    ),
    "before an image token": (
        {"layout": Layout(2, 2, before=(33,))},
        "code_ids and before of the layout of a Vocabulary have the same token 33",
    ),
    "after outside": (
        {"layout": Layout(2, 2, after=(41,))},
        "after of the layout of a Vocabulary is 41: its 40 tokens are 0 to 39",
    ),
    "sizes of another kind": ({"sizes": 3}, "sizes of a Vocabulary are 3: give (rows, columns) of each"),
    "sizes of 0": ({"sizes": {(2, 0)}}, "sizes of a Vocabulary have (2, 0): give (rows, columns), both above 0"),
    "size tokens of another kind": (
        {"size_tokens": 3},
        "size_tokens of a Vocabulary is an int: give a fastdecode.Size",
    ),
    "size tokens without a layout": (
        {"size_tokens": SizeTokens(SIZE, 1, 8)},
        "before of the layout is (), but size_tokens of a Vocabulary are (12, 12) for 2 rows of 2",
    ),
    "size tokens beyond the end": (
        {"size_tokens": SizeTokens(SIZE, 1, 10**12)},
        "size_tokens of a Vocabulary end at 1000000000009: its 40 tokens are 0 to 39",
    ),
    "size tokens among image tokens": (
        {"size_tokens": SizeTokens(20, 1, 11), "layout": Layout(2, 2, before=(22, 22))},
        "code_ids and size_tokens of a Vocabulary have the same token 30",
    ),
    "another unconditional": (
        {"unconditional": "foo"},
        "unconditional of a Vocabulary is 'foo': give one of unconditional, bare, blank, or tokens",
    ),
    "unconditional without tokens": ({"unconditional": ()}, "unconditional of a Vocabulary has no token"),
    "unconditional outside": (
        {"unconditional": (1, 99)},
        "unconditional of a Vocabulary is 99: its 40 tokens are 0 to",
    ),
    "cell of 0": ({"cell": 0}, "cell of a Vocabulary = 0: must be at least 1"),
    "no context": ({"context": None}, "context of a Vocabulary = None: must be a whole number"),
    "bos outside": ({"bos": 40}, "bos of a Vocabulary is 40: its 40 tokens are 0 to 39"),
    "reason of another kind": ({"cannot_draw": True}, "cannot_draw of a Vocabulary is a bool: give a str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_vocabulary_refuses(case: str):
    parts, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        made(**parts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Layout(2, 0, 5), "a Layout of 2 rows and 0 columns has no image token"),
        (lambda: Layout(-1, 2), "rows of a Layout = -1: must be at least 0"),
        (lambda: Layout(2.0, 2), "rows of a Layout = 2.0: must be a whole number"),
        (lambda: Layout(2, True), "columns of a Layout = True: must be a whole number"),
        (lambda: Layout(2, 2, -2), "row_end of a Layout = -2: must be at least -1"),
        (lambda: Layout(2, 2, before=(-1,)), "before of a Layout have -1: a token is an integer of at least 0"),
        (lambda: Layout(2, 2, after=3), "after of a Layout: 3 are no tokens; give a list of integers"),
        (lambda: SizeTokens(-1, 1, 8), "first of SizeTokens = -1: must be at least 0"),
        (lambda: SizeTokens(1, 0, 8), "unit of SizeTokens = 0: must be at least 1"),
        (lambda: SizeTokens(1, 1, "x"), "count of SizeTokens = 'x': must be a whole number"),
    ],
)
def test_what_a_layout_refuses(build, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("kind", [list, np.array, lambda tokens: iter(tokens)])
def test_lists_of_tokens_become_tuples(kind):
    found = made(
        code_ids=kind(IMAGE), layout=Layout(2, 2, ROW_END, kind((8, 9)), kind((FRAME_END,))), unconditional=[1]
    )
    wanted = made(code_ids=IMAGE, layout=Layout(2, 2, ROW_END, (8, 9), (FRAME_END,)), unconditional=(1,))
    assert found == wanted
    assert hash(found) == hash(wanted)
    assert found.image_ids == set(IMAGE)
    assert found.block_ids == {*IMAGE, ROW_END, 8, 9, FRAME_END}


def test_a_token_of_minus_1_is_none():
    """Some configs name the padding so."""
    assert (made(bos=-1, pad=-1).bos, made(pad=-1).pad, made(pad=2).pad) == (None, None, 2)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(0, 0),
        Layout(1, 1),
        Layout(3, 2),
        Layout(3, 2, 9),
        Layout(2, 5, 9, (1, 2), (3,)),
        Layout(4, 1, -1, (), (3,)),
    ],
)
def test_the_length_of_a_layout_is_that_of_its_tokens(layout: Layout):
    assert len(layout) == layout.length == len(layout.forced)
    assert layout.separators == set(layout.forced) - {-1}


def test_a_layout_of_any_size_has_a_length():
    assert Layout(10**12, 10**12, 5, (1,)).length == 10**12 * (10**12 + 1) + 1


def test_the_streams_are_those_of_guidance():
    assert set(USUAL_STREAMS) == set(_USUAL)
    assert usual_stream(made()) == UNCONDITIONAL
    assert usual_stream(made(unconditional=[1, 2])) == Stream("prompt", (1, 2), history=False)


# --- sizes ------------------------------------------------------------------------------------------------------

ANY = made(layout=Layout(2, 2, ROW_END, after=(FRAME_END,)), any_size=True, cell=8)
SOME = sizes(2, 2, sizes=[(2, 2), (3, 2)], cell=8)


@pytest.mark.parametrize("vocabulary", [ANY, SOME], ids=["any", "some"])
@pytest.mark.parametrize("size", [(8 * 10**9, 8), (8, 8 * 10**9), (8 * 10**5000, 8), (8 * 10**5000, 8 * 10**400)])
def test_enormous_pictures_are_refused_at_once(vocabulary: Vocabulary, size: tuple[int, int]):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"a picture of .* pixels takes .* tokens|this model draws no pictures of"):
        vocabulary.sized(*size)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("vocabulary", "size", "message"),
    [
        (ANY, (0, 0), "a picture of 0x0 pixels has no pixel: give at least 8x8"),
        (SOME, (16, 0), "a picture of 16x0 pixels has no pixel: give at least 8x8"),
        (ANY, (-8, 8), "width of a picture = -8: must be at least 0"),
        (ANY, ("8", 8), "width of a picture = '8': must be a whole number"),
        (ANY, (12, 21), "image_size=12x21: width and height must be multiples of 8 pixels, such as 8x24"),
        (ANY, (10**5000 + 1, 3), "width and height must be multiples of 8 pixels, such as over 10**30x8"),
        (ANY, (80, 80), "a picture of 80x80 pixels takes 113 tokens, and the context of this checkpoint is 99: give a"),
        (SOME, (24, 24), "draws no pictures of 24x24 pixels (width x height); near to it are 16x16, 16x24"),
        (made(code_ids=(), image_length=0), (16, 16), "no picture can be drawn: this model writes text only"),
    ],
)
def test_sizes_that_are_refused(vocabulary: Vocabulary, size, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        vocabulary.sized(*size)


def test_sizes_that_are_drawn():
    assert ANY.sized(24, 16).picture == replace(ANY.picture, rows=2, columns=3)
    assert SOME.sized(16, 24).picture.before == (SIZE + 3, SIZE + 2)
    assert SOME.sized(16, 16) is SOME
