"""The cache against a list of rows: random adding, growing, forking, cutting and removing in a small pool."""

import random
import re
import sys
from collections.abc import Callable

import pytest
import torch
from cache_model import Model, everything, new_cache, stored

from fastdecode.kv.kv_cache import StreamCache


@pytest.mark.parametrize(
    ("page_slots", "pages", "retain"),
    [
        (1, 40, 0),
        (2, 20, 0),
        (4, 12, 0),
        (4, None, 0),
        (32, 5, 0),
        (1, 40, None),
        (2, 20, 6),
        (4, 12, None),
        (4, 12, 1),
        (3, None, 9),
        (3, None, None),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_against_a_list_of_rows(seed: int, page_slots: int, pages: int | None, retain: int | None):
    model = Model(seed, page_slots, pages, retain)
    calls = [model.add, model.step, model.room, model.fork, model.truncate, model.remove, model.clear, model.fail]
    calls += [model.drop, model.reclaim]
    for _ in range(600):
        call = model.rng.choices(calls, weights=[6, 10, 1, 3, 3, 9, 0.2, 1, 0.1, 0.2])[0]
        (call if len(model.rows) < 20 else model.remove)()
        model.check()
        model.poison()
    for name in ["shared", "steps", *(["shared in part"] if page_slots > 1 else [])]:
        assert model.counts[name] > 20
    assert model.counts["several steps"] > 2
    if pages:
        assert model.counts["add refused"] > 2
        assert model.counts["step refused"] > 5
    while model.rows:
        model.remove()
        model.check()
    assert model.counts["most retained"] >= (3 if retain is None else retain)
    model.drop()
    model.check()
    assert model.cache.pool.used == model.cache.pool.shared == model.cache.longest == 0
    assert not model.cache._prompts.root.children


@pytest.mark.parametrize("page_slots", [1, 3, 32])
def test_rows_leave_in_the_course_of_long_runs(page_slots: int):
    model = Model(0, page_slots, None)
    for _ in range(8):
        while len(model.rows) < 8:
            model.add()
        for _ in range(20):
            model.rng.choice([model.step, model.step, model.step, model.remove])()
            model.check()
            model.poison()


def test_two_caches_may_use_one_pool():
    first = Model(0, 2, 24)
    second = Model(1, 2, None)
    second.cache = StreamCache(first.cache.pool)
    for number in range(400):
        model, other = (first, second) if number % 2 else (second, first)
        model.rng.choice([model.add, model.step, model.fork, model.truncate, model.remove, model.remove])()
        for row, content in enumerate(other.rows):
            assert len(content) == 0 or torch.equal(stored(other.cache, row), torch.stack(content))
    assert first.counts["step refused"] + second.counts["step refused"] > 0
    first.cache.clear()
    second.cache.clear()
    assert first.cache.pool.used == 0


def test_ten_thousand_steps_need_no_more_memory_than_a_few():
    cache, rng, capacity = new_cache(), random.Random(0), 0
    for step in range(10_000):
        while cache.rows < 6:
            cache.add([[rng.randint(0, 1) for _ in range(rng.randint(0, 20))]])
        cache.make_room()
        cache.grow()
        for row in reversed(range(cache.rows)):
            if cache.length(row) >= 40:
                cache.remove(row)
        if step == 1000:
            capacity = cache.pool.capacity
    assert cache.pool.capacity == capacity <= 6 * 10 * 3 // 2
    assert len(cache._due) <= 4
    assert sum(map(len, cache._due.values())) <= 6 + 6 * 4
    cache.clear()
    assert cache.pool.used == 0
    assert not cache._prompts.nodes
    assert not cache._prompts.root.children


def test_storage_that_moves_keeps_what_rows_hold():
    model = Model(0, 4, None)
    model.prompts = [tuple(range(14))]
    capacities = set()
    for _ in range(25):
        model.add()
        model.step()
        model.check()
        capacities.add(model.cache.pool.capacity)
    assert len(capacities) > 5
    assert model.cache.keys is model.cache.pool.keys


# --- cost -------------------------------------------------------------------------------------------------------------


def python_calls(call: Callable[[], object]) -> int:
    count = 0

    def profile(frame, event, arg) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_a_step_within_pages_costs_the_same_for_any_number_of_rows():
    costs = []
    for rows in (2, 50, 400):
        cache = new_cache(page_slots=32)
        cache.add([[row, *range(70)] for row in range(rows)])
        cache.make_room()
        cache.grow()

        def step(cache: StreamCache = cache) -> None:
            cache.make_room()
            cache.grow()

        table = cache.page_table
        costs.append(python_calls(step))
        assert cache.page_table is table
    assert costs[0] == costs[1] == costs[2] < 30


def test_only_rows_at_the_end_of_a_page_are_looked_at():
    costs = []
    for rows in (2, 50, 400):
        cache = new_cache(page_slots=32)
        cache.add([[0] * 31, *([row, *range(70)] for row in range(rows))])
        cache.make_room()
        cache.grow()
        used = cache.pool.used
        costs.append(python_calls(cache.make_room))
        assert cache.pool.used == used + 1
    assert costs[0] == costs[1] == costs[2]


# --- bad calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("name", ["remove", "fork", "length", "pages", "truncate"])
def test_a_row_that_is_not_live_is_refused(name: str, row: int):
    cache = new_cache()
    cache.add([[1], [2]])
    before = everything(cache)
    with pytest.raises(IndexError, match=f"there is no row {row}: the cache has 2 rows"):
        getattr(cache, name)(row, *([0] if name == "truncate" else []))
    assert everything(cache) == before


@pytest.mark.parametrize("length", [-1, 4])
@pytest.mark.parametrize("name", ["fork", "truncate"])
def test_a_length_that_a_row_has_not_is_refused(name: str, length: int):
    cache = new_cache()
    cache.add([[1, 2, 3]])
    before = everything(cache)
    with pytest.raises(ValueError, match=f"row 0 cannot be cut to {length} tokens: it has 3, so 0 to 3 are possible"):
        getattr(cache, name)(0, length)
    assert everything(cache) == before


@pytest.mark.parametrize("change", ["add", "fork", "truncate", "step"])
def test_rows_without_room_cannot_grow(change: str):
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3]])
    cache.make_room()
    if change == "add":
        cache.add([[1]])
    elif change == "fork":
        cache.fork(0)
    elif change == "truncate":
        cache.truncate(0, 1)
    else:
        cache.grow()
    before = everything(cache)
    with pytest.raises(RuntimeError, match="call make_room before"):
        cache.grow()
    assert everything(cache) == before
    cache.make_room()
    cache.grow()


def test_a_cache_without_rows_takes_steps():
    cache = new_cache()
    cache.make_room()
    cache.grow()
    assert (cache.rows, cache.longest, cache.page_table.shape) == (0, 0, (0, 0))
    assert cache.add([]) == (slice(0, 0), [])


def test_tensors_are_changed_outside_inference_mode():
    cache = new_cache()
    assert not torch.is_inference_mode_enabled()
    cache.add([[1, 2, 3], [1, 2]])
    cache.make_room()
    cache.grow()
    cache.truncate(cache.fork(0), 1)
    assert cache.lengths.is_inference()
    assert cache.page_table.is_inference()
    cache.remove(0)
    cache.clear()


def test_a_number_of_pages_that_cannot_be_is_refused():
    pool = new_cache().pool
    with pytest.raises(ValueError, match="retain is -1; it must be a number of pages from 0, or None"):
        StreamCache(pool, retain=-1)
    for retain in (True, 1.5, "all"):
        with pytest.raises(TypeError, match=re.escape(f"retain is {retain!r}; it must be a number of pages, or None")):
            StreamCache(pool, retain=retain)  # type: ignore[arg-type]
