"""An exception between any two instructions of the pool and the cache, as from a signal handler, leaks no page."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastdecode.kv import kv_cache
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool, PoolExhausted

SOURCES = {str(path) for path in Path(kv_cache.__file__).parent.glob("*.py")}


class Interruption(BaseException):
    pass


class Tracer:
    """Sees every instruction of the sources before it runs; raises before number ``at``. ``seen``: which they were."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.seen = at, []

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in SOURCES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            if len(self.seen) == self.at:
                raise Interruption
            self.seen.append((frame.f_code, frame.f_lasti))
        return self

    def run(self, call: Callable[[], object]) -> bool:
        """Whether ``call`` came to its end."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except Interruption:
            return False
        finally:
            sys.settrace(before)
        return True


def points(seen: list) -> list[int]:
    """The first time that each instruction runs."""
    first: dict[object, int] = {}
    for number, place in enumerate(seen):
        first.setdefault(place, number)
    return list(first.values())


def new_pool(pages: int | None = None) -> PagePool:
    return PagePool(1, 1, 1, torch.float32, "cpu", pages=pages, page_slots=2)


def use(cache: StreamCache) -> None:
    """Every call that takes, shares or frees pages."""
    cache.add([[1, 2, 3], [1, 2, 3], [4]])
    cache.make_room(2)
    cache.grow(2)
    cache.fork(0, 3)
    cache.make_room()
    cache.truncate(1, 1)
    cache.make_room()
    cache.remove(0)
    cache.remove(2, retain=False)
    assert cache.known([1, 2]) == 2
    with contextlib.suppress(PoolExhausted):
        cache.add([range(6)])
    cache.pages_missing([[5]])
    cache.pages_for_steps(3)
    cache.remove(0)
    cache.drop_retained()
    cache.clear()
    cache.add([[1, 2, 3]])


def check(pool: PagePool, held: dict[int, int]) -> None:
    """``held``: the owners of all pages that have any."""
    assert pool.used == len(held)
    assert {page: pool.owners(page) for page in range(pool.capacity) if pool.owners(page)} == held
    assert sorted(pool._free) == [page for page in range(pool.capacity) if page not in held]
    assert pool.shared == sum(owners > 1 for owners in held.values())
    assert min(len(pool._owners), len(pool._holders), *map(len, pool.keys)) >= pool.capacity


def world(pages: int | None) -> tuple[PagePool, StreamCache, dict[int, int]]:
    """A pool with pages of nobody and of another cache."""
    pool = new_pool(pages)
    [own] = pool.take(1)
    other = StreamCache(pool)
    other.add([[1, 2, 3], [1, 2]])
    return pool, other, {own: 1, **{page: 2 - at for at, page in enumerate(other.pages(0))}}


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("pages", "end"), [(None, "clear"), (11, "drop")])
def test_an_interrupted_cache_gives_all_its_pages_back(pages: int | None, end: str, no_garbage_collection: None):
    """Every instruction once: half of them by each way to give the pages back."""
    pool, _, _ = world(pages)
    caches, tracer = [StreamCache(pool, retain=3)], Tracer()
    assert tracer.run(lambda: use(caches[0]))
    numbers = points(tracer.seen)
    assert len(numbers) > 2000
    for at in numbers[end == "drop" :: 2]:
        pool, other, held = world(pages)
        caches = [StreamCache(pool, retain=3)]
        completed = Tracer(at).run(lambda caches=caches: use(caches[0]))
        assert not completed
        if end == "clear":
            caches[0].clear()
        else:
            caches[0] = None
            caches[0] = StreamCache(pool, retain=3)
        assert (caches[0].rows, caches[0].retained) == (0, 0)
        check(pool, held)
        assert other.add([[1, 2]])[1] == [2]
        other.remove(2)
        if at % 5 == 0:
            use(caches[0])
            caches[0].clear()
            check(pool, held)


def test_giving_back_may_be_interrupted_itself(no_garbage_collection: None):
    def end(how: str, pool: PagePool, caches: list[StreamCache]) -> None:
        if how == "clear":
            caches[0].clear()
        else:
            caches.clear()
            pool.statistics()

    for how in ("clear", "drop"):
        for at in range(2000):
            pool, _, held = world(None)
            caches = [StreamCache(pool, retain=None)]
            caches[0].add([range(5), range(5)])
            caches[0].remove(0)
            tracer = Tracer(at)
            if tracer.run(lambda pool=pool, caches=caches, how=how: end(how, pool, caches)):
                break
            end(how, pool, caches)
            check(pool, held)
        assert 100 < at < 2000


@pytest.mark.parametrize("holders", ["one", "two", "none"])
def test_an_interrupted_pool_is_put_in_order(holders: str):
    """Pages that an interrupted `take` or `release` had begun with may have been given to somebody else since."""

    class Holder:
        pass

    first = Holder()
    second = {"one": first, "two": Holder(), "none": None}[holders]
    tried = 0
    for at in range(2000):
        pool = new_pool()
        pages = pool.take(3, first)
        pool.share(pages[:1])
        kept = pool.take(1, second)
        pool.release(pool.take(2))

        def work(pool: PagePool = pool, pages: list[int] = pages) -> None:
            pool.take(3, first)
            pool.release(pages)
            pool.release(pages[:1])
            pool.take(2, first)

        if Tracer(at).run(work):
            break
        tried += 1
        kept += pool.take(4, second)
        assert len(set(kept)) == 5
        pool.recover(first)
        check(pool, {} if first is second else dict.fromkeys(kept, 1))
        pool.recover(first)
        check(pool, {} if first is second else dict.fromkeys(kept, 1))
        assert len(set(pool.take(pool.capacity, first)) & set(kept)) == (5 if first is second else 0)
    assert 300 < tried < 2000


def test_pages_of_a_dropped_holder_are_free():
    class Holder:
        pass

    pool, holder = new_pool(4), Holder()
    pool.take(3, holder)
    assert (pool.used, pool.free) == (3, 1)
    del holder
    assert (pool.used, pool.free, pool.shared) == (0, 4, 0)
    assert len(pool.take(4, Holder())) == 4
    assert len(pool.take(4)) == 4  # those of the holder that nobody kept
    pool.recover(Holder())
    assert pool.used == 4
