"""The cache against a dictionary of lists, under random adding, growing and removing."""

import random

import pytest
import torch

from fastdecode.kv_cache import SLOT_STEP, StreamCache

LAYERS, HEADS, DIM = 2, 3, 4


def new_cache() -> StreamCache:
    return StreamCache(LAYERS, HEADS, DIM, torch.float32, torch.device("cpu"))


class Model:
    """What a cache should hold: by row, the keys of its ids (values are their negatives)."""

    def __init__(self, seed: int) -> None:
        self.rng, self.cache = random.Random(seed), new_cache()
        self.rows: list[torch.Tensor] = []  # (layers, heads, length, dim)
        self.drawn = torch.Generator().manual_seed(seed)

    def fresh(self, length: int) -> torch.Tensor:
        return torch.randn((LAYERS, HEADS, length, DIM), generator=self.drawn)

    @torch.inference_mode()
    def add(self) -> None:
        lengths = [self.rng.choice([0, 1, 2, 7, 40]) for _ in range(self.rng.randint(0, 3))]
        rows = self.cache.add(torch.tensor(lengths, dtype=torch.long))
        assert rows == slice(len(self.rows), len(self.rows) + len(lengths))
        for row, length in zip(range(rows.start, rows.stop), lengths, strict=True):
            self.rows.append(self.fresh(length))
            for layer in range(LAYERS):
                self.cache.keys[layer][row, :, :length] = self.rows[-1][layer]
                self.cache.values[layer][row, :, :length] = -self.rows[-1][layer]

    @torch.inference_mode()
    def grow(self) -> None:
        self.cache.reserve(self.cache.rows, self.cache.longest + 1)
        for row, stored in enumerate(self.rows):
            new, at = self.fresh(1), stored.shape[2]
            for layer in range(LAYERS):
                self.cache.keys[layer][row, :, at] = new[layer, :, 0]
                self.cache.values[layer][row, :, at] = -new[layer, :, 0]
            self.rows[row] = torch.cat([stored, new], 2)
        self.cache.grow()

    def remove(self) -> None:
        if self.rows:
            row = self.rng.randrange(len(self.rows))
            assert self.cache.remove(row) == len(self.rows) - 1
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last

    def check(self) -> None:
        cache, lengths = self.cache, [row.shape[2] for row in self.rows]
        assert cache.rows == len(self.rows)
        assert cache.lengths.tolist() == lengths
        assert cache.longest == max(lengths, default=0)
        assert cache.slots % SLOT_STEP == 0
        for row, stored in enumerate(self.rows):
            for layer in range(LAYERS):
                assert torch.equal(cache.keys[layer][row, :, : lengths[row]], stored[layer])
                assert torch.equal(cache.values[layer][row, :, : lengths[row]], -stored[layer])


@pytest.mark.parametrize("seed", range(12))
def test_against_a_dictionary(seed: int):
    model = Model(seed)
    for _ in range(60):
        model.rng.choice([model.add, model.grow, model.grow, model.remove])()
        model.check()
    while model.rows:
        model.remove()
        model.check()
    assert model.cache.longest == 0


def test_rows_are_given_up_outside_inference_mode():
    model = Model(0)
    while len(model.rows) < 2:
        model.add()
    assert not torch.is_inference_mode_enabled()
    model.cache.remove(0)


def test_longest_shrinks_with_its_row():
    cache = new_cache()
    cache.add(torch.tensor([3, 50, 2]))
    cache.remove(1)
    assert cache.longest == 3
    assert cache.lengths.tolist() == [3, 2]


def test_reserving_keeps_what_is_stored_and_never_shrinks():
    cache = new_cache()
    cache.add(torch.tensor([5]))
    with torch.inference_mode():
        cache.keys[1][0, :, :5] = 7.0
    held = cache.bytes
    cache.reserve(4, 3 * SLOT_STEP + 1)
    assert cache.bytes > held
    assert cache.keys[0].shape == (4, HEADS, 4 * SLOT_STEP, DIM)
    assert (cache.keys[1][0, :, :5] == 7.0).all()
    held = cache.bytes
    cache.reserve(1, 1)
    assert cache.bytes == held


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_is_not_live_cannot_be_given_up(row: int):
    cache = new_cache()
    cache.add(torch.tensor([1, 1]))
    with pytest.raises(IndexError, match=f"row {row} is not live: the cache has 2 rows"):
        cache.remove(row)
