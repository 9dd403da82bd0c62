"""Pages that stay when their rows leave: found by equal prompts, and given up in their turn."""

import pytest
import torch
from cache_model import DIM, HEADS, LAYERS, new_cache, stored, write
from models_for_tests import tiny_model

from fastdecode.decoder import Decoder
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PoolExhausted


def leave(cache: StreamCache, *prompts: str) -> None:
    """Rows of ``prompts`` that come and go, one after the other."""
    for prompt in prompts:
        cache.add([list(map(ord, prompt))])
        cache.remove(cache.rows - 1)


def known(cache: StreamCache, *prompts: str) -> list[int]:
    return [cache.known(list(map(ord, prompt))) for prompt in prompts]


def test_a_prompt_is_known_after_its_row_left():
    cache = new_cache(page_slots=4, retain=None)
    cache.add([range(6)])
    keys = [torch.full((LAYERS, HEADS, DIM), float(at)) for at in range(9)]
    for at in range(6):
        write(cache, 0, at, keys[at])
    for at in range(6, 9):  # generated: the rest of the prompt's last page, and one more page
        cache.make_room()
        write(cache, 0, at, keys[at])
        cache.grow()
    cache.remove(0)
    assert (cache.rows, cache.retained, cache.pool.used) == (0, 2, 2)
    assert (cache.known(range(6)), cache.known(range(7)), cache.known([0, 1]), cache.known([1])) == (6, 4, 2, 0)
    assert cache.pages_missing([range(6)]) == 2  # no new page, and two retained ones
    assert cache.pages_missing([range(6), range(6), range(9)]) == 2 + 2
    assert cache.add([range(6)])[1] == [6]
    assert (cache.retained, cache.pool.used, cache.pool.shared) == (0, 2, 0)
    assert torch.equal(stored(cache, 0), torch.stack(keys[:6]))
    cache.make_room()
    assert cache.pool.used == 2  # the last page is the row's own: no copy
    cache.remove(0)
    assert cache.retained == 2


def test_without_retain_nothing_stays():
    cache = new_cache(page_slots=4)
    leave(cache, "abcdef")
    assert (cache.retained, cache.pool.used, known(cache, "abcdef")) == (0, 0, [0])


def test_the_least_recently_used_page_goes_first_and_leaves_before_their_parents():
    cache = new_cache(page_slots=1, retain=4)
    leave(cache, "abc", "x")
    assert known(cache, "abc", "x") == [3, 1]
    leave(cache, "y")
    assert known(cache, "abc", "x", "y") == [2, 1, 1]
    leave(cache, "a", "z")  # "a" is used again; "b", the oldest leaf, goes
    assert known(cache, "abc", "x", "y", "z") == [1, 1, 1, 1]
    leave(cache, "z", "ab")
    assert known(cache, "abc", "x", "y", "z") == [2, 0, 1, 1]
    leave(cache, "12345")
    assert (known(cache, "12345", "abc"), cache.retained) == ([4, 0], 4)


def test_pages_that_are_needed_are_taken_from_the_retained_ones():
    cache = new_cache(pages=4, page_slots=1, retain=None)
    leave(cache, "abc")
    assert (cache.pool.free, cache.available, cache.retained) == (1, 4, 3)
    cache.add([[1]])
    cache.make_room()
    assert (cache.pool.free, cache.available, cache.retained, known(cache, "abc")) == (0, 2, 2, [2])
    cache.grow()
    assert cache.pages_for_steps(2) == 2
    cache.make_room(2)
    assert (cache.available, cache.retained) == (0, 0)
    with pytest.raises(PoolExhausted):
        cache.make_room(3)
    assert new_cache().available is None


def test_a_prompt_does_not_lose_the_pages_that_it_shares():
    cache = new_cache(pages=4, page_slots=1, retain=None)
    leave(cache, "xy", "ab")  # "xy" is older
    assert cache.pages_missing([list(map(ord, "abcd"))]) == 4
    assert cache.add([list(map(ord, "abcd"))])[1] == [2]
    cache.remove(0)
    before = list(cache._retained)
    assert cache.pages_missing([list(map(ord, "abcde"))]) == 5
    with pytest.raises(PoolExhausted, match="the KV pool needs 1 page, 0 of its 4 are free"):
        cache.add([list(map(ord, "abcde"))])
    assert (list(cache._retained), known(cache, "abcde"), cache.rows) == (before, [4], 0)


def test_a_page_is_shared_by_the_first_row_in_place_of_the_cache():
    cache = new_cache(page_slots=4, retain=None)
    leave(cache, "abcdef")
    assert cache.add([list(map(ord, "abcdef"))] * 2)[1] == [6, 6]
    assert (cache.pool.used, cache.pool.shared, cache.retained) == (2, 2, 0)
    cache.remove(1)
    assert (cache.pool.shared, cache.retained) == (0, 0)
    cache.remove(0)
    assert (cache.pool.used, cache.retained) == (2, 2)


def test_what_is_overwritten_goes_with_all_that_came_after_it():
    cache = new_cache(page_slots=4, retain=None)
    leave(cache, "abcdefghijkl", "abcdefgh1234")
    cache.add([list(map(ord, "abcdef"))])  # a part of the second page, which it then writes to
    assert cache.retained == 2
    cache.make_room()
    assert (cache.retained, cache.pool.used) == (0, 2)
    assert known(cache, "abcdefghijkl", "abcdef") == [4, 6]


def test_pages_that_are_cut_off_stay_known():
    cache = new_cache(page_slots=4, retain=None)
    cache.add([range(10)])
    cache.truncate(0, 4)
    assert (cache.retained, cache.known(range(10))) == (2, 10)
    cache.make_room()
    assert cache.known(range(10)) == 10
    cache.remove(0)
    assert (cache.retained, cache.pool.used) == (3, 3)


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_pages_that_were_never_written_are_not_retained(order: str):
    cache = new_cache(page_slots=2, retain=None)
    leave(cache, "abcd")
    prompts = [list(map(ord, prompt)) for prompt in ("abcdef", "abcdefgh", "abx")]
    rows, counts = cache.add(prompts)
    assert counts == [4, 6, 2]
    for row in [0, 0, 0] if order == "forwards" else reversed(range(rows.start, rows.stop)):
        cache.remove(row, retain=False)
    assert known(cache, "abcdefgh", "abx") == [4, 2]
    assert (cache.retained, cache.pool.used) == (2, 2)


def test_a_page_that_one_row_gave_up_unwritten_is_not_retained_by_the_next():
    cache = new_cache(page_slots=2, retain=None)
    cache.add([[1, 2, 3, 4], [1, 2, 3, 4, 5]])
    cache.remove(0, retain=False)
    cache.remove(0)
    assert (cache.retained, cache.pool.used, cache.known([1, 2])) == (0, 0, 0)


def test_a_page_that_may_not_stay_takes_those_below_it_along():
    cache = new_cache(page_slots=2, retain=None)
    cache.add([[1, 2]])
    cache.add([[1, 2, 3, 4, 5]])
    cache.remove(1)
    assert (cache.retained, cache.pool.used) == (2, 3)
    cache.remove(0, retain=False)
    assert (cache.retained, cache.pool.used, cache.known([1, 2])) == (0, 0, 0)


def test_a_failed_prefill_leaves_nothing_unwritten():
    model = tiny_model(1)
    decoder = Decoder(model)
    cache = StreamCache(decoder.new_pool(page_slots=4), retain=None)
    decoder.prefill(cache, [range(5, 15)])
    cache.remove(0)

    def fail(*args, **kwargs):
        raise RuntimeError("a layer's own")

    assert cache.known(range(5, 30)) == 8
    original, decoder.rope = decoder.rope, fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a layer's own"):
        decoder.prefill(cache, [range(5, 30), [5, 6, 7]])
    decoder.rope = original  # type: ignore[method-assign]
    assert (cache.rows, cache.known(range(5, 30)), cache.retained) == (0, 8, 3)
    tokens = torch.tensor([1])
    decoder.prefill(cache, [range(5, 30)])
    fresh = decoder.new_cache()
    decoder.prefill(fresh, [range(5, 30)])
    torch.testing.assert_close(decoder.step(cache, tokens), decoder.step(fresh, tokens))


def test_retained_pages_are_dropped_or_cleared():
    cache = new_cache(page_slots=2, retain=None)
    leave(cache, "abcd")
    cache.add([list(map(ord, "xyz"))])
    cache.drop_retained()
    assert (cache.retained, cache.pool.used, known(cache, "abcd", "xyz")) == (0, 2, [0, 3])
    leave(cache, "abcd")
    cache.clear()
    assert (cache.retained, cache.pool.used, known(cache, "abcd", "xyz")) == (0, 0, [0, 0])
