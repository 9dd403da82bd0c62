"""Which streams a schedule needs at which positions, and their weights there."""

import pytest
import torch

from fastdecode.engine.course import Course
from fastdecode.schedule import Schedule

A, B, C = (1,), (2,), (3,)


def course(*tables: list[float], skips: bool = True, length: int = 6) -> Course:
    """Of a full stream of weight 1, and others with these tables."""
    weights = [1.0, *(Schedule.table(table) if len(table) > 1 else table[0] for table in tables)]
    return Course([A, B, C][: len(tables)], weights, length, skips=skips)


def needed(c: Course) -> list[list[tuple[int, ...]]]:
    return [[c.streams[k] for k in c.needed(position)] for position in range(c.length + 2)]


def test_a_stream_is_needed_from_its_first_weight_to_its_last():
    late, early, inside = [0, 0, 0, 2], [2, 3, 0], [0, 1, 0, 1, 0]
    c = course(late, early, inside)
    assert c.streams == [B, C, A]  # in the order in which they begin
    assert needed(c) == [[B], [B, C], [C], [C, A], [A], [A], [A], [A]]
    assert [c.next_change(p) for p in range(8)] == [1, 2, 3, 4, None, None, None, None]
    assert [c.coming(p) for p in range(4)] == [[1, 2], [2], [2], []]
    assert [c.span(k) for k in range(3)] == [(0, 2), (1, 4), (3, 6)]


def test_weights_are_those_of_the_streams_that_are_needed():
    c = course([0, 0, 0, 2], [2, 3, 0])
    assert [c.weights_at(p, c.needed(p)) for p in (0, 1, 2, 3, 9)] == [[1, 2], [1, 3], [1], [1, 2], [1, 2]]
    assert torch.equal(c.weights_from(1, 3, (0, 1)), torch.tensor([[1.0, 3, 0], [1, 0, 0], [1, 0, 2]]))
    assert torch.equal(c.weights_from(5, 3, (1,)), torch.tensor([[1.0, 2]] * 3))  # the last row holds


def test_streams_without_any_weight_are_left_out():
    c = course([0, 0], [0, 0, 0, 0, 0, 0, 5])  # the last one only where no token is left
    assert c.streams == []
    assert c.next_change(0) is None
    assert c.weights_at(3, ()) == [1.0]


def test_without_skips_all_are_needed_all_along():
    c = course([0, 0, 0, 2], [2, 3, 0], skips=False)
    assert c.streams == [A, B]
    assert needed(c) == [[A, B]] * 8
    assert c.weights_at(0, (0, 1)) == [1, 0, 2]
    assert c.next_change(0) is None


@pytest.mark.parametrize("skips", [True, False])
def test_a_position_without_any_weight_is_refused(skips: bool):
    zero = Schedule.table([1, 1, 0, 1])
    with pytest.raises(ValueError, match=r"^the weights of this Guidance cancel to 0 at position 2, .* draw from$"):
        Course([A], [zero, 1.0 - Schedule.table([0, 0, 1, 0])], 6, skips=skips)
