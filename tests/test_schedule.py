"""Schedules: their values, sums, words, and what is refused."""

import copy
import math
import re

import numpy as np
import pytest
import torch

import fastdecode
from fastdecode import Guidance, Schedule
from fastdecode.guidance import guidance_from
from fastdecode.vocabulary import Vocabulary


def louder(progress: float) -> float:
    return 2.0 + progress**2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.constant(3), [3.0] * 5),
        (Schedule.linear(5, 2), [5.0, 4.25, 3.5, 2.75, 2.0]),
        (Schedule.cosine(5, 1), [3 + 2 * math.cos(math.pi * i / 4) for i in range(5)]),
        (Schedule.table([1, 4, 2]), [1.0, 4.0, 2.0, 2.0, 2.0]),
        (Schedule.table(range(9)), [0.0, 1.0, 2.0, 3.0, 4.0]),
        (Schedule.table(np.array([1.5, 2.5])), [1.5, 2.5, 2.5, 2.5, 2.5]),
        (Schedule.table(torch.tensor([1.5, 2.5])), [1.5, 2.5, 2.5, 2.5, 2.5]),
        (Schedule.function(louder), [2 + (i / 4) ** 2 for i in range(5)]),
        (1.0 - Schedule.table([1, 4, 2]), [0.0, -3.0, -1.0, -1.0, -1.0]),
        (Schedule.linear(5, 1) - Schedule.table([1, 4]) + 2, [6.0, 2.0, 1.0, 0.0, -1.0]),
        (-Schedule.table([1, 0, 2]), [-1.0, 0.0, -2.0, -2.0, -2.0]),
    ],
    ids=repr,
)
def test_values(schedule: Schedule, expected: list[float]):
    assert schedule.values(5) == pytest.approx(expected, rel=1e-15, abs=1e-15)
    assert schedule.values(1) == pytest.approx(expected[:1])


def test_parts_that_are_given_directly():
    assert Schedule("linear", [5, 2]) == Schedule.linear(5.0, 2.0)
    assert Schedule("table", [1, 2]) == Schedule.table(number for number in (1.0, 2.0))
    assert Schedule("-", [Schedule.linear(5, 1), 1]) == Schedule.linear(5, 1) - 1


@pytest.mark.parametrize("kind", [Schedule.linear, Schedule.cosine])
@pytest.mark.parametrize("length", [2, 3, 64, 1024])
def test_the_ends_are_exact(kind, length: int):
    values = kind(0.1, 0.7).values(length)
    assert (values[0], values[-1], len(values)) == (0.1, 0.7, length)
    assert list(values) == sorted(values)


def test_a_function_is_called_once_for_each_token_of_a_length():
    called: list[float] = []

    def function(progress: float) -> float:
        called.append(progress)
        return progress

    schedule = Schedule.function(function)
    sums = 1.0 - schedule, schedule + 2.0
    for _ in range(2):
        for each in (schedule, *sums):
            each.values(5)
    assert called == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_sums_with_nothing_are_the_schedule_itself():
    schedule = Schedule.linear(5, 2)
    assert schedule + 0.0 is 0.0 + schedule is schedule - 0 is schedule
    with pytest.raises(TypeError):
        schedule + "1"
    with pytest.raises(TypeError):
        True - schedule


def test_equality_hash_and_copies():
    one, other = Schedule.linear(5, 2), Schedule.linear(5.0, 2.0)
    one.values(7)
    assert one == other
    assert len({one, other, Schedule.cosine(5, 2)}) == 2
    assert copy.deepcopy(Guidance.two_way(one)) == Guidance.two_way(other)
    assert Guidance.two_way(one) != Guidance.two_way(Schedule.linear(5, 3))
    assert hash(Guidance.two_way(one)) == hash(Guidance.two_way(other))


@pytest.mark.parametrize(
    ("schedule", "shown", "words"),
    [
        (Schedule.constant(3), "Schedule.constant(3.0)", "3"),
        (Schedule.linear(5, 2), "Schedule.linear(5.0, 2.0)", "5 to 2 in a straight line"),
        (1 - Schedule.cosine(5, 2), "(1.0 - Schedule.cosine(5.0, 2.0))", "5 to 2 along a cosine"),
        (Schedule.table([1, 1, 3]), "Schedule.table([1.0, 1.0, 3.0])", "1 for 2 tokens, then 3"),
        (Schedule.table([1, 2]), "Schedule.table([1.0, 2.0])", "1 for 1 token, then 2"),
        (Schedule.table([4, 3, 2, 1, 0]), "Schedule.table([4.0, 3.0, 2.0, 1.0, 0.0])", "a table of 5 values, 4 to 0"),
        (Schedule.function(louder), "Schedule.function(louder)", "the function louder"),
    ],
)
def test_words(schedule: Schedule, shown: str, words: str):
    assert (repr(schedule), schedule.words) == (shown, words)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule.constant(math.nan), "value of Schedule.constant is nan, which is not a finite number"),
        (lambda: Schedule.linear(1, "2"), "end of Schedule.linear is '2', which is not a finite number"),
        (lambda: Schedule.linear(True, 2), "start of Schedule.linear is True, which is not a finite number"),
        (lambda: Schedule.cosine(1e39, 1), "start of Schedule.cosine is 1e+39, which is not a finite number"),
        (lambda: Schedule.table([]), "values of Schedule.table: the list is empty; give at least one number"),
        (lambda: Schedule.table(3.0), "values of Schedule.table: 3.0 is no flat list of numbers"),
        (lambda: Schedule.table("12"), "values of Schedule.table: '12' is no flat list of numbers"),
        (lambda: Schedule.table([1, None]), "values[1] of Schedule.table is None, which is not a finite number"),
        (lambda: Schedule.table(np.ones((2, 2))), "is no flat list of numbers"),
        (lambda: Schedule.function(3), "function of Schedule.function is 3: give a function from the progress"),
        (lambda: Schedule.function(float), "function of Schedule.function is <class 'float'>: give a function"),
        (lambda: Schedule.table({1, 2}), "values of Schedule.table: {1, 2} is no flat list of numbers"),
        (lambda: Schedule.table({1: 2}), "values of Schedule.table: {1: 2} is no flat list of numbers"),
        (lambda: Schedule.table(torch.ones(3, device="meta")), "is no list whose numbers can be read"),
        (lambda: Schedule("constant", ()), "Schedule.constant takes value, not ()"),
        (lambda: Schedule("linear", (1,)), "Schedule.linear takes start and end, not (1,)"),
        (lambda: Schedule("cosine", (1, "2")), "end of Schedule.cosine is '2', which is not a finite number"),
        (lambda: Schedule("table", ()), "values of Schedule.table: the list is empty; give at least one number"),
        (lambda: Schedule("table", (1, None)), "values[1] of Schedule.table is None, which is not a finite number"),
        (lambda: Schedule("function", (3,)), "function of Schedule.function is 3: give a function from the progress"),
        (lambda: Schedule("+", (1, 2)), "a sum of Schedules has two parts, one of them a Schedule, not (1, 2)"),
        (lambda: Schedule("-", (Schedule.linear(1, 2), "x")), "a number added to a Schedule is 'x'"),
        (lambda: Schedule("linear", None), "parts of a Schedule are None: use Schedule.constant, linear, cosine"),
        (lambda: Schedule("", (1,)), "a Schedule is not made of '': use Schedule.constant, linear, cosine"),
        (lambda: Schedule(["linear"], (1, 2)), "a Schedule is not made of ['linear']: use Schedule.constant"),
        (lambda: Schedule("ramp", (1, 2)), "a Schedule is not made of 'ramp': use Schedule.constant, linear, cosine"),
        (lambda: Schedule.linear(1, 2) - math.inf, "a number added to a Schedule is inf"),
        (lambda: Guidance.two_way([3.0, 2.0]), "scale of Guidance.two_way is [3.0, 2.0], which is not a finite number"),
        (
            lambda: Schedule.function(lambda p: math.inf if p == 1 else p).values(3),
            "Schedule.function(<lambda>) at token 2 of 3 is inf, which is not a finite number",
        ),
        (
            lambda: Schedule.function(lambda p: 1 / p).values(3),
            "the function <lambda> of a Schedule raised ZeroDivisionError at the progress 0 (float division by zero): "
            "it must return a number for every progress from 0 to 1",
        ),
        (lambda: (Schedule.linear(3e38, 1) + 3e38).values(3), "at token 0 of 3 is 6e+38, which is not a finite"),
    ],
)
def test_what_is_refused(build, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# --- as scales of guidance --------------------------------------------------------------------------------------------

BOS, BEGIN, WORD = 0, 3, 6
VOCABULARY = Vocabulary(
    size=12, code_ids=(9, 7, 10), begin_image=BEGIN, end_image=4, placeholder=11, image_length=4, context=99, bos=BOS
)


def numbers(guidance: Guidance, length: int = 4) -> list[list[float]]:
    """The weights of every stream, at every token."""
    return [list(w.values(length)) if isinstance(w, Schedule) else [w] * length for w in guidance.weights]


def test_a_constant_schedule_is_its_number():
    assert Guidance.two_way(Schedule.constant(3)) == Guidance.two_way(3.0)
    assert Guidance.instruct(Schedule.constant(3), Schedule.constant(1.2)) == Guidance.instruct(3.0, 1.2)
    assert guidance_from(Schedule.constant(1)) == Guidance.none()
    assert not Guidance.two_way(Schedule.constant(3)).scheduled


@pytest.mark.parametrize("length", [1, 4, 7])
def test_recipes_have_at_each_token_the_weights_of_their_numbers(length: int):
    text, image = Schedule.linear(5, 2), Schedule.cosine(1, 3)
    against, toward = Schedule.table([0, 1, 0]), Schedule.function(louder)
    values = [s.values(length) for s in (text, image, against, toward)]
    for place, (a, b, c, d) in enumerate(zip(*values, strict=True)):
        for scheduled, plain in (
            (Guidance.two_way(text), Guidance.two_way(a)),
            (guidance_from(text), Guidance.two_way(a)),
            (Guidance.two_way(text, [WORD]), Guidance.two_way(a, [WORD])),
            (Guidance.instruct(text, 1.2), Guidance.instruct(a, 1.2)),
            (Guidance.instruct(3.0, image), Guidance.instruct(3.0, b)),
            (Guidance.instruct(text, image), Guidance.instruct(a, b)),
            (
                Guidance.five_way([BOS], [WORD], full=text, image=image, against=against, toward=toward),
                Guidance.five_way([BOS], [WORD], full=a, image=b, against=c, toward=d),
            ),
        ):
            assert scheduled.scheduled
            assert scheduled.streams == plain.streams
            assert [w[place] for w in numbers(scheduled, length)] == list(plain.weights)  # bit for bit


def test_equal_streams_are_merged():
    guidance = Guidance.instruct(Schedule.linear(5, 2), Schedule.linear(1, 3))
    others, weights = guidance.plan((BOS, WORD, BEGIN), 2, 2, VOCABULARY)
    assert others == [(BOS, BEGIN)]
    merged = Guidance((*guidance.streams[:2],), tuple(weights))
    for full, other in zip(*numbers(merged, 6), strict=True):
        assert full + other == pytest.approx(1.0)


def test_it_is_exported():
    assert fastdecode.Schedule is Schedule
    assert "Schedule" in fastdecode.__all__


def test_weights_of_few_lengths_are_kept():
    schedule = Schedule.linear(3, 1)
    for length in range(2, 40):
        assert len(schedule.values(length)) == length
    assert len(schedule._tables) <= 8
    assert schedule.values(39) is schedule.values(39)
