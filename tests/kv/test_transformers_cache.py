"""`PagedCache` in the model's own forward and generate."""

import gc
import inspect
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from models_for_tests import padded, text_ids, tiny_model
from transformers import LlamaModel

import fastdecode
from fastdecode.kv import page_pool
from fastdecode.kv.transformers_cache import PagedCache

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What this version of transformers calls the argument."""


def new_cache(model, pages: int | None = None) -> PagedCache:
    return PagedCache(fastdecode.new_pool(model, pages, page_slots=4))


@pytest.mark.parametrize("settings", [{}, {"swin_norm": True, "kv_heads": 2}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_return_sequences": 3, "do_sample": True},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_generate_returns_what_it_returns_without(settings: dict, options: dict):
    model = tiny_model(3, **settings)
    inputs = padded([text_ids(model, i, n) for i, n in enumerate((9, 4, 17))])
    found = []
    for cache in (None, new_cache(model)):
        torch.manual_seed(0)
        found.append(model.generate(**inputs, max_new_tokens=15, **{CACHE: cache}, **options))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", sorted({"past_key_values", CACHE}))
def test_each_name_of_the_argument(name: str):
    """The older name is taken too, as long as transformers takes it; only that one may be called deprecated."""
    model, ids = tiny_model(3), torch.tensor([text_ids(tiny_model(3), 0, 9)])
    cache, again = new_cache(model), new_cache(model)
    options = {"max_new_tokens": 5, "min_new_tokens": 5}
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        made = model.generate(ids, num_beams=2, **options, **{name: cache})
        forwarded = model(ids, **{name: again})
    assert torch.equal(made, model.generate(ids, num_beams=2, **options))
    assert (cache.get_seq_length(), again.get_seq_length()) == (13, 9)
    assert forwarded[CACHE] is again
    deprecated = {w.message.args[0].split(" is deprecated")[0] for w in said if w.category is FutureWarning}
    assert deprecated == (set() if name == CACHE else {"`past_key_values`"})


def test_forward_in_parts_and_cropped():
    model = tiny_model(4)
    ids = torch.tensor([text_ids(model, 0, 30), text_ids(model, 1, 30)])
    cache = new_cache(model)
    with torch.no_grad():
        whole = model(ids).logits
        for begin, end in ((0, 7), (7, 8), (8, 30)):
            part = model(ids[:, begin:end], **{CACHE: cache}).logits
            torch.testing.assert_close(part, whole[:, begin:end])
        cache.crop(-11)
        assert cache.get_seq_length() == 19
        assert cache.rows.pool.used == 2 * 5
        again = model(ids[:, 19:25], **{CACHE: cache}).logits
    torch.testing.assert_close(again, whole[:, 19:25])
    cache.reset()
    assert (cache.get_seq_length(), cache.rows.pool.used) == (0, 0)


@pytest.mark.parametrize("wanted", [[1, 0], [2, 2, 0, 1, 1], [1], [0, 1, 2], [2, 2, 2]], ids=str)
def test_rows_are_chosen_by_sharing_pages(wanted: list[int]):
    model = tiny_model(5)
    ids = torch.tensor([text_ids(model, i, 10) for i in range(3)])
    more = torch.tensor([text_ids(model, 7 + i, 1) for i in range(len(wanted))])
    cache = new_cache(model)
    with torch.no_grad():
        model(ids, **{CACHE: cache})
        cache.batch_select_indices(torch.tensor(wanted))
        assert cache.rows.pool.used == 3 * len(set(wanted))
        got = model(more, **{CACHE: cache}).logits[:, -1]
        expected = model(torch.cat([ids[wanted], more], 1)).logits[:, -1]
    torch.testing.assert_close(got, expected)


def test_a_bound_and_pages_given_back():
    model = tiny_model(6)
    cache = new_cache(model, pages=4)
    pool = cache.rows.pool
    ids = torch.tensor([text_ids(model, 0, 16)])
    with torch.no_grad():
        model(ids[:, :15], **{CACHE: cache})
        with pytest.raises(fastdecode.PoolExhausted, match="the KV pool needs 1 page, 0 of its 4 are free"):
            model(ids[:, :2], **{CACHE: cache})
        assert (pool.used, cache.rows.longest, cache.get_seq_length()) == (4, 15, 15)
        expected = model(ids).logits[:, -1]
        torch.testing.assert_close(model(ids[:, 15:], **{CACHE: cache}).logits[:, -1], expected)
    del cache
    gc.collect()
    assert pool.used == 0


def test_what_is_not_the_pools_is_refused():
    cache = new_cache(tiny_model(7))
    good = torch.zeros(2, 4, 3, 8)
    cases = [
        ((good[:, :2], good), "key_states is (2, 2, 3, 8) torch.float32 on cpu: must be (2, 4, 3, 8)"),
        ((good, good[:, :, :2]), "value_states is (2, 4, 2, 8) torch.float32 on cpu: must be (2, 4, 3, 8)"),
        ((good.half(), good), "key_states is (2, 4, 3, 8) torch.float16 on cpu: must be (2, 4, 3, 8) torch.float32"),
    ]
    for states, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            cache.update(*states, 0)
    assert cache.rows.pool.used == 0
    cache.update(good, good, 0)
    with pytest.raises(ValueError, match="key_states has 1 rows, and this cache 2"):
        cache.update(good[:1], good[:1], 0)
    with pytest.raises(ValueError, match=re.escape("crop(2): give a negative number")):
        cache.crop(2)


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_dropped_cache_gives_its_pages_back_at_once(no_garbage_collection: None):
    model = tiny_model(6)
    pool = fastdecode.new_pool(model, pages=8, page_slots=4)
    ids = torch.tensor([text_ids(model, 0, 16)])
    with torch.no_grad():
        cache = PagedCache(pool)
        model(ids, **{CACHE: cache})
        assert pool.used == 4
        del cache
        assert pool.used == 0
        for _ in range(30):
            model.generate(ids, max_new_tokens=16, min_new_tokens=16, **{CACHE: PagedCache(pool)})
    assert (pool.used, pool.peak) == (0, 8)


# --- threads ----------------------------------------------------------------------------------------------------


def test_threads_with_caches_of_one_pool_get_the_tokens_that_they_get_alone():
    model = tiny_model(3)
    prompts = [torch.tensor([text_ids(model, i, 5 + 3 * i)]) for i in range(4)]
    options = {"max_new_tokens": 12, "min_new_tokens": 12}
    expected = [model.generate(ids, **options) for ids in prompts]
    pool = fastdecode.new_pool(model, page_slots=2)

    def work(number: int) -> list[torch.Tensor]:
        return [model.generate(prompts[number], **{CACHE: PagedCache(pool)}, **options) for _ in range(3)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    for one, several in zip(expected, found, strict=True):
        assert all(torch.equal(one, other) for other in several)
    assert pool.used == 0


class NoLock:
    """In place of a pool's lock: lets everybody in."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("locked", [True, False])
def test_a_thread_waits_while_another_lets_the_pool_grow(locked: bool, monkeypatch: pytest.MonkeyPatch):
    """The first thread stops while it gets memory. The second wants memory too: it waits for the lock. Without the lock
    the pool grows under the hands of the first.
    """
    pool = fastdecode.new_pool(tiny_model(3), page_slots=2)
    caches = [PagedCache(pool), PagedCache(pool)]
    states = [torch.full((1, 4, 2, 8), float(number)) for number in range(2)]
    inside, second_done, memory = threading.Event(), threading.Event(), page_pool._memory
    if not locked:
        pool.lock = NoLock()  # type: ignore[assignment]

    def slow_memory(*args):
        if not inside.is_set():
            inside.set()
            second_done.wait(0.2 if locked else 60)
        return memory(*args)

    monkeypatch.setattr(page_pool, "_memory", slow_memory)

    def second() -> None:
        inside.wait()
        caches[1].update(states[1], states[1], 0)
        second_done.set()

    thread = threading.Thread(target=second)
    thread.start()
    with nullcontext() if locked else pytest.raises((RuntimeError, StopIteration)):  # pages got lost
        caches[0].update(states[0], states[0], 0)
    thread.join()
    for number, cache in enumerate(caches if locked else []):
        keys, values = cache.update(states[number], states[number], 0)
        assert (keys == number).all()
        assert (values == number).all()
