"""Rows whose prompts begin alike share pages, and copy one before they write to it."""

import pytest
import torch
from cache_model import DIM, HEADS, LAYERS, everything, new_cache, stored, write

from fastdecode.kv.page_pool import PoolExhausted


def test_equal_prompts_use_the_pages_of_one():
    cache = new_cache(page_slots=32)
    rows, known = cache.add([range(100)] * 8)
    assert (rows, known) == (slice(0, 8), [0] + [100] * 7)
    assert cache.pool.used == cache.pool.shared == 4
    assert (cache.page_table == cache.page_table[0]).all()
    assert cache.add([range(100)])[1] == [100]
    assert cache.pool.used == 4
    cache.make_room()  # nine rows, nine last pages
    assert cache.pool.used == 3 + 9
    assert len(set(cache.page_table[:, 3].tolist())) == 9


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        ("abcdefgh", "abcdefgh", 8),
        ("abcdefgh", "abcd", 4),
        ("abcdefgh", "abcdef", 6),  # a part of a full page
        ("abcdefg", "abcdef", 6),  # a part of a part
        ("abcdef", "abcdef", 6),
        ("abcdef", "abcdefg", 4),  # slot 6 is written by the second row only
        ("abcdef", "abcdefgh", 4),
        ("abcdefgh", "abcdxfgh", 4),
        ("abcdefgh", "xbcdefgh", 0),
        ("abcdefgh", "efgh", 0),  # equal tokens after others have other keys
        ("abcdabcd", "abcdabcdabcd", 8),
        ("abcdefgh", "", 0),
        ("", "", 0),
        ("ab", "a", 1),
        ("a", "ab", 0),
    ],
)
def test_how_much_of_a_prompt_is_known(first: str, second: str, known: int, together: bool):
    cache = new_cache(page_slots=4)
    prompts = [list(map(ord, first)), list(map(ord, second))]
    calls = [prompts] if together else [prompts[:1], prompts[1:]]
    found = [known for call in calls for known in cache.add(call)[1]]
    assert found == [0, known]
    fresh = -(-len(second) // 4) - -(-known // 4)
    assert cache.pool.used == -(-len(first) // 4) + fresh


def test_tokens_of_equal_hash_are_told_apart():
    cache = new_cache(page_slots=1)
    assert hash((-1,)) == hash((-2,))
    assert cache.add([[-1], [-2]])[1] == [0, 0]


def test_what_a_row_appended_is_not_taken_for_a_prompt():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2]])
    cache.make_room()
    cache.grow()
    assert cache.add([[1, 2, 3], [1, 2]])[1] == [0, 2]


def test_a_slot_overwritten_is_no_longer_known():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3, 4, 5]])
    cache.truncate(0, 2)
    assert cache.add([[1, 2, 3, 4]])[1] == [4]  # still there
    cache.remove(1)
    cache.make_room()
    assert cache.add([[1, 2, 3]])[1] == [0]
    cache.remove(1)
    assert cache.add([[1, 2]])[1] == [2]


def test_pages_may_be_cut_to_equal_tokens():
    cache = new_cache(page_slots=4)
    cache.add([[1, 2, 3, 4], [1, 2, 5, 6]])
    for row in range(2):
        cache.truncate(row, 2)
    cache.make_room()
    assert cache.add([[1, 2, 3], [1, 2, 5], [1]])[1] == [0, 0, 1]
    while cache.rows:
        cache.remove(0)
    assert cache.pool.used == 0
    assert not cache._prompts.root.children


def test_nothing_is_known_of_pages_given_up():
    cache = new_cache(page_slots=4)
    cache.add([range(9), range(9)])
    cache.remove(0)
    assert cache.add([range(9)])[1] == [9]
    cache.remove(0)
    cache.remove(0)
    assert cache.pool.used == 0
    assert cache.add([range(9)])[1] == [0]
    cache.clear()
    assert cache.add([range(9)])[1] == [0]


def test_a_refused_prompt_is_not_known_later():
    cache = new_cache(pages=3, page_slots=4)
    cache.add([range(4)])
    with pytest.raises(PoolExhausted, match="the KV pool needs 3 pages, 2 of its 3 are free"):
        cache.add([[9, 9], range(12)])
    assert cache.add([[9, 9], range(8)])[1] == [0, 4]


def test_prompts_that_are_not_tokens_change_nothing():
    cache = new_cache()
    cache.add([range(5)])
    before = everything(cache)
    with pytest.raises(TypeError):
        cache.add([range(7), [[1]], range(2)])  # type: ignore[list-item]
    assert everything(cache) == before


def test_one_of_the_owners_writes_where_it_is_and_the_others_copy():
    cache = new_cache(pages=5, page_slots=4)
    cache.add([range(6)] * 4)
    for at in range(6):
        write(cache, 0, at, torch.full((LAYERS, HEADS, DIM), float(at)))
    cache.make_room()  # one page for each of three
    assert (cache.pool.used, cache.pool.shared) == (5, 1)
    for row in range(4):
        write(cache, row, 6, torch.full((LAYERS, HEADS, DIM), float(row)))
    cache.grow()
    for row in range(4):
        assert stored(cache, row)[:, 0, 0, 0].tolist() == [*range(6), row]


def test_a_row_beyond_a_shared_page_keeps_it():
    cache = new_cache(page_slots=4)
    cache.add([range(8), range(3)])
    first = cache.pages(0)
    cache.make_room()
    assert cache.pages(0)[:2] == first
    assert cache.pages(1) != first[:1]
