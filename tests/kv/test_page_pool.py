"""The pool against a dictionary of owners: random taking, sharing and releasing of pages."""

import itertools
import random

import pytest
import torch

from fastdecode.kv import page_pool
from fastdecode.kv.page_pool import PAGE_SLOTS, PagePool, PoolExhausted

LAYERS, HEADS, DIM = 2, 3, 4


def new_pool(pages: int | None = None, page_slots: int = 2) -> PagePool:
    return PagePool(LAYERS, HEADS, DIM, torch.float32, "cpu", pages=pages, page_slots=page_slots)


@torch.inference_mode()
def fill(pool: PagePool, page: int, value: float) -> None:
    for layer in range(LAYERS):
        pool.keys[layer][page], pool.values[layer][page] = value + layer, -value - layer


def assert_filled(pool: PagePool, page: int, value: float) -> None:
    for layer in range(LAYERS):
        assert (pool.keys[layer][page] == value + layer).all()
        assert (pool.values[layer][page] == -value - layer).all()


def everything(pool: PagePool) -> tuple:
    return pool.statistics(), [pool.owners(page) for page in range(pool.capacity)], list(pool._free)


class Model:
    """What a pool should say: by page in use, how many own it and what fills it."""

    def __init__(self, seed: int, limit: int | None) -> None:
        self.rng, self.pool, self.limit = random.Random(seed), new_pool(limit), limit
        self.owners: dict[int, int] = {}
        self.filled: dict[int, float] = {}
        self.peak = self.refused = 0

    def some(self) -> list[int]:
        return self.rng.choices(list(self.owners), k=self.rng.randint(0, 4)) if self.owners else []

    def take(self) -> None:
        count = self.rng.choice([0, 1, 1, 2, 5])
        before = everything(self.pool)
        if self.limit is not None and len(self.owners) + count > self.limit:
            with pytest.raises(PoolExhausted):
                self.pool.take(count)
            assert everything(self.pool) == before
            self.refused += 1
            return
        pages = self.pool.take(count)
        assert len(set(pages)) == count
        assert not self.owners.keys() & set(pages)
        for page in pages:
            self.owners[page], self.filled[page] = 1, self.rng.random()
            fill(self.pool, page, self.filled[page])
        self.peak = max(self.peak, len(self.owners))

    def share(self) -> None:
        pages = self.some()
        self.pool.share(iter(pages))
        for page in pages:
            self.owners[page] += 1

    def release(self) -> None:
        pages = self.some()
        before = everything(self.pool)
        if any(pages.count(page) > self.owners[page] for page in pages):
            with pytest.raises(ValueError, match=r"is released . times at once; its owners are"):
                self.pool.release(pages)
            assert everything(self.pool) == before
            return
        freed = self.pool.release(iter(pages))
        for page in pages:
            self.owners[page] -= 1
        gone = [page for page, owners in self.owners.items() if owners == 0]
        assert sorted(freed) == sorted(gone)
        for page in gone:
            del self.owners[page], self.filled[page]
            fill(self.pool, page, float("nan"))

    def copy(self) -> None:
        if self.owners:
            source, target = self.rng.choices(list(self.owners), k=2)
            self.pool.copy(source, target)
            self.filled[target] = self.filled[source]

    def check(self) -> None:
        pool, used = self.pool, len(self.owners)
        assert [pool.owners(page) for page in range(pool.capacity)] == [
            self.owners.get(page, 0) for page in range(pool.capacity)
        ]
        assert all(pool.is_shared(page) == (owners > 1) for page, owners in self.owners.items())
        figures = pool.statistics()
        assert (figures.used, figures.peak) == (pool.used, pool.peak) == (used, self.peak)
        assert figures.shared == pool.shared == sum(owners > 1 for owners in self.owners.values())
        assert figures.free == pool.free == (None if self.limit is None else self.limit - used)
        assert figures.page_bytes == pool.page_bytes == 2 * LAYERS * HEADS * 2 * DIM * 4
        assert figures.bytes == pool.bytes == pool.capacity * pool.page_bytes
        assert figures.bytes_used == pool.bytes_used == used * pool.page_bytes
        assert used <= figures.capacity == pool.capacity <= (self.limit or pool.capacity)
        for stored in (*pool.keys, *pool.values):
            assert stored.shape == (pool.capacity, HEADS, 2, DIM)
            assert stored.is_inference()
        for page, value in self.filled.items():
            assert_filled(pool, page, value)


@pytest.mark.parametrize("limit", [None, 1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_dictionary(seed: int, limit: int | None):
    model = Model(seed, limit)
    for _ in range(400):
        model.rng.choice([model.take, model.share, model.release, model.release, model.copy])()
        model.check()
    assert limit is None or model.refused
    model.pool.release([page for page, owners in model.owners.items() for _ in range(owners)])
    assert model.pool.used == model.pool.shared == 0


def test_a_page_has_32_slots_unless_told():
    pool = PagePool(1, 2, 8, torch.bfloat16, torch.device("cpu"))
    pool.take(3)
    assert PAGE_SLOTS == pool.page_slots == 32
    assert pool.keys[0].shape == pool.values[0].shape == (3, 2, 32, 8)
    assert pool.keys[0].dtype == torch.bfloat16
    assert pool.page_bytes == 2 * 2 * 32 * 8 * 2


def test_storage_grows_by_half_at_least_and_to_the_limit_at_most():
    pool = new_pool(30)
    lists, capacities = (pool.keys, pool.values), [0]
    for page in range(30):
        fill(pool, *pool.take(1), page)
        if pool.capacity > capacities[-1]:
            capacities.append(pool.capacity)
    assert pool.keys is lists[0]
    assert pool.values is lists[1]
    assert all(new >= min(1.5 * old, 30) for old, new in itertools.pairwise(capacities))
    assert pool.capacity == 30
    assert sorted(pool.keys[0][:, 0, 0, 0].tolist()) == list(range(30))
    assert pool.take(0) == []


def test_expected_pages_get_their_memory_at_once_and_within_the_limit():
    pool = new_pool(30)
    pool.take(2)
    fill(pool, 0, 7.0)
    pool.expect(20)
    assert pool.capacity == 2
    pool.take(1)
    assert pool.capacity == 22
    stored = list(pool.keys)
    pool.take(19)
    assert all(now is then for now, then in zip(pool.keys, stored, strict=True))
    assert_filled(pool, 0, 7.0)
    pool.expect(100)
    assert len(pool.take(1)) == 1
    assert pool.capacity == 30


def test_allocated_storage_stays():
    pool = new_pool(7)
    [page] = pool.take(1)
    with torch.inference_mode():
        pool.keys[1][page] = 3.0
    pool.allocate()
    stored = [*pool.keys, *pool.values]
    assert (pool.capacity, pool.used, pool.free, {len(t) for t in stored}) == (7, 1, 6, {7})
    assert (pool.keys[1][page] == 3.0).all()
    pool.take(6)
    pool.allocate()
    assert all(a is b for a, b in zip((*pool.keys, *pool.values), stored, strict=True))
    endless = new_pool(None)
    endless.allocate()
    assert endless.capacity == 0


def test_expecting_nothing_changes_nothing():
    pool = new_pool()
    pool.take(4)
    pool.expect(0)
    pool.take(1)
    assert pool.capacity == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_storage_begins_at_a_page_of_the_system(dtype: torch.dtype):
    for pages in (1, 3, 5000):
        pool = PagePool(2, 2, 8, dtype, torch.device("cpu"))
        pool.take(pages)
        for stored in (*pool.keys, *pool.values):
            assert stored.data_ptr() % 4096 == 0
            assert stored.shape == (pages, 2, 32, 8)
            assert stored.dtype == dtype
            assert stored.is_contiguous()
            assert stored.is_inference()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_memory_that_runs_out_while_storage_grows_costs_no_page(one_by_one: bool, monkeypatch: pytest.MonkeyPatch):
    if one_by_one:
        monkeypatch.setattr(page_pool, "ASKED_FROM", 0)  # all tensors are large
    pool, memory, calls = new_pool(), page_pool._memory, []
    fill(pool, *pool.take(1), 7.0)
    before = everything(pool)[1:]

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == (3 if one_by_one else 1):
            raise MemoryError("no memory")
        return memory(*args, **kwargs)

    monkeypatch.setattr(page_pool, "_memory", failing)
    with pytest.raises(MemoryError):
        pool.take(4)
    assert everything(pool)[1:] == before
    assert (pool.capacity, pool.used) == (1, 1)
    pool.take(4)
    assert (len(calls) > 2) is one_by_one
    assert {len(stored) for stored in (*pool.keys, *pool.values)} == {pool.capacity} == {5}
    assert_filled(pool, 0, 7.0)


def test_an_exhausted_pool_says_how_much_it_lacks():
    pool = new_pool(100)
    pool.take(97)
    with pytest.raises(PoolExhausted, match=r"^the KV pool needs 5 pages, 3 of its 100 are free$"):
        pool.take(5)
    pool.take(3)
    with pytest.raises(PoolExhausted, match=r"^the KV pool needs 1 page, 0 of its 100 are free$"):
        pool.take(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool: pool.release([0, 1]), "page 1 is free; only a page that was taken and not released can be used"),
        (lambda pool: pool.release([0, 2]), "there is no page 2: the KV pool has 2, counted from 0"),
        (lambda pool: pool.release([0, -1]), "there is no page -1"),
        (lambda pool: pool.release([0, 0]), "page 0 is released 2 times at once; its owners are 1"),
        (lambda pool: pool.share([0, 1]), "page 1 is free"),
        (lambda pool: pool.is_shared(1), "page 1 is free"),
        (lambda pool: pool.copy(0, 1), "page 1 is free"),
        (lambda pool: pool.copy(1, 0), "page 1 is free"),
        (lambda pool: pool.take(-1), "cannot take -1 pages"),
    ],
)
def test_bad_calls_change_nothing(call, message: str):
    pool = new_pool()
    first, second = pool.take(2)
    pool.release([second])
    assert (first, second) == (0, 1)
    before = everything(pool)
    with pytest.raises(ValueError, match=message):
        call(pool)
    assert everything(pool) == before


def test_releasing_twice_is_an_error():
    pool = new_pool()
    pages = pool.take(3)
    assert sorted(pool.release(pages)) == sorted(pages)
    with pytest.raises(ValueError, match=r"page . is free"):
        pool.release(pages)
    assert pool.used == 0


@pytest.mark.parametrize("name", ["layers", "kv_heads", "head_dim", "page_slots", "pages"])
def test_sizes_below_one_are_refused(name: str):
    sizes = {"layers": 1, "kv_heads": 1, "head_dim": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; a pool of pages needs at least 1"):
        PagePool(dtype=torch.float32, device="cpu", **sizes)


def test_statistics_read_well():
    pool = PagePool(1, 8, 1000, torch.float32, "cpu", page_slots=2, pages=8)
    pages = pool.take(4)
    pool.share(pages[:1])
    pool.release(pages[2:])
    assert str(pool.statistics()) == (
        "2 pages of 2 tokens used (1 shared, 4 at peak, 6 free); 0.5 MB taken so far, 0.3 MB of them used"
    )
    assert "no limit" in str(new_pool().statistics())


def test_reserved_memory_is_not_got_again():
    pool = PagePool(2, 1, 4, torch.float32, "cpu", page_slots=4, pages=9)
    pool.reserve(5)
    assert (pool.capacity, pool.used) == (5, 0)
    keys = pool.keys[0]
    pool.take(5)
    assert pool.keys[0] is keys
    pool.reserve(3)
    assert pool.keys[0] is keys
    pool.reserve(100)
    assert pool.capacity == 9  # the limit


def test_more_memory_than_there_is():
    pool = PagePool(1, 4, 8, torch.float32, "cpu", page_slots=10**12)
    with pytest.raises(MemoryError, match=r"1 pages? of \d+ tokens take .* GB .*: ask for fewer or smaller pages"):
        pool.take(1)
