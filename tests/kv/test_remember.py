"""Generated tokens that later prompts find: whole pages only, and only what the row really holds."""

import random

import pytest
import torch
from models_for_tests import tiny_model

from fastdecode.decoder import Decoder
from fastdecode.kv.kv_cache import StreamCache


def new_cache(pages: int | None = None, retain: int | None = None) -> StreamCache:
    return StreamCache(Decoder(tiny_model(0)).new_pool(pages, 4), retain)


def grown(cache: StreamCache, prompt: list[int], more: int) -> int:
    rows, _ = cache.add([prompt])
    for _ in range(more):
        cache.make_room()
        cache.grow()
    return rows.start


def test_a_row_that_left_is_found_in_whole_pages():
    cache = new_cache()
    tokens = list(range(20, 42))
    row = grown(cache, tokens[:6], 12)  # 18 stored: four pages of 4, and a half
    pages = cache.pages(row)
    cache.remember(row, tokens)
    assert cache.known(tokens) == 16
    cache.remove(row)
    assert (cache.retained, cache.pool.used) == (4, 4)
    rows, known = cache.add([tokens[:17], [*tokens[:8], 7, 7, 7, 7]])
    assert known == [16, 8]
    assert cache.pages(rows.start)[:4] == pages[:4]
    assert cache.pages(rows.start + 1)[:2] == pages[:2]


def test_what_is_not_remembered_is_freed():
    cache = new_cache()
    cache.remove(grown(cache, list(range(20, 26)), 12))
    assert cache.retained == 2  # the prompt's
    none = new_cache(retain=0)
    row = grown(none, list(range(20, 26)), 12)
    none.remember(row, list(range(20, 42)))
    none.remove(row)
    assert none.pool.used == 0


def test_tokens_that_another_page_holds_stay_there():
    cache = new_cache()
    tokens = list(range(20, 40))
    one, other = grown(cache, tokens[:5], 0), grown(cache, tokens[:3], 15)  # all rows grow: 20 and 18 are stored
    assert cache.pages(one)[0] != cache.pages(other)[0]
    cache.remember(one, tokens)
    cache.remember(other, tokens)  # the same tokens in pages of its own
    assert cache.known(tokens) == 20
    kept = cache.pages(one)
    cache.remove(other)
    cache.remove(one)
    assert cache.retained == cache.pool.used == 5
    rows, _ = cache.add([tokens])
    assert cache.pages(rows.start) == kept
    cache.clear()
    assert cache.pool.used == 0


def test_a_row_that_is_not_there():
    with pytest.raises(IndexError, match="row 0"):
        new_cache().remember(0, [1, 2])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("pages", "retain"), [(None, None), (40, None), (40, 5), (26, None)])
def test_what_is_found_was_stored(seed: int, pages: int | None, retain: int | None):
    """Every slot holds the number of a hash of all tokens up to its own: whatever an add finds must be that."""
    generator = random.Random(seed)
    cache = new_cache(pages, retain)
    rows: list[list[int]] = []
    prompts: list[list[int]] = []
    remembered: list[list[int]] = []
    generated = 0  # tokens found that were part of no prompt
    with torch.inference_mode():
        for _ in range(150):
            action = generator.random()
            if action < 0.35 and len(rows) < 5:
                sources = [*rows, *remembered[-4:]]
                source = generator.choice(sources) if sources and generator.random() < 0.8 else []
                prompt = source[: generator.choice([len(source), generator.randrange(len(source) + 1)])] + [
                    generator.randrange(3) for _ in range(generator.randrange(1, 9))
                ]
                if cache.available is not None and cache.pages_missing([prompt]) > cache.available:
                    continue
                found, known = cache.add([prompt])
                for at in range(known[0], len(prompt)):
                    write(cache, found.start, at, prompt)
                of_prompts = max((common(prompt, other) for other in prompts), default=0)
                generated += max(0, known[0] - of_prompts)
                prompts.append(list(prompt))
                rows.append(prompt)
            elif action < 0.75 and rows:
                if cache.available is not None and cache.pages_for_steps(1) > cache.available:
                    continue
                cache.make_room()
                for row, tokens in enumerate(rows):
                    tokens.append(generator.randrange(3))
                    write(cache, row, len(tokens) - 1, tokens)
                cache.grow()
            elif rows:
                row = generator.randrange(len(rows))
                if generator.random() < 0.8:
                    cache.remember(row, rows[row])
                    remembered.append(list(rows[row]))
                if generator.random() < 0.3:
                    continue  # the row stays, and is found by others while it grows
                moved = cache.remove(row)
                last = rows.pop()
                if moved != row:
                    rows[row] = last
            for row, tokens in enumerate(rows):
                for at in range(len(tokens)):
                    assert read(cache, row, at) == mark(tokens[: at + 1])
    assert generated > 2
    cache.clear()
    assert cache.pool.used == 0


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def mark(tokens: list[int]) -> float:
    return float(hash(tuple(tokens)) % 100_003)


def place(cache: StreamCache, row: int, at: int) -> tuple[int, int]:
    slots = cache.pool.page_slots
    return int(cache.page_table[row, at // slots]), at % slots


def write(cache: StreamCache, row: int, at: int, tokens: list[int]) -> None:
    page, slot = place(cache, row, at)
    cache.keys[0][page, :, slot] = mark(tokens[: at + 1])


def read(cache: StreamCache, row: int, at: int) -> float:
    page, slot = place(cache, row, at)
    return float(cache.keys[0][page, 0, slot, 0])
