"""`ForwardDecoder` by itself: prefill, steps and logits over ragged rows."""

import random

import pytest
import torch
from models_for_tests import drawing_model, text_ids, tiny_model, whole_logits

from fastdecode.decoder import ForwardDecoder, Upcoming
from fastdecode.kv.page_pool import PoolExhausted
from fastdecode.models.families import vocabulary_of


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("swin", [False, True])
def test_logits_of_ragged_rows_that_share_beginnings(swin: bool, whole: bool, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(5, layers=3, swin_norm=swin, kv_heads=2)
    if whole:
        model.register_forward_hook(lambda module, args, output: None)
    monkeypatch.setattr("fastdecode.decoder.forward.PREFILL_IDS", 16)
    decoder = ForwardDecoder(model)
    assert decoder.whole == whole
    first, other = text_ids(model, 0, 50), text_ids(model, 1, 23)
    rows = [first, first[:20] + other, first[:33], first[:51], other, first[:1], first[:40]]
    cache = decoder.new_cache(decoder.new_pool(pages=60, page_slots=4))
    cache.pool.allocate()
    with torch.inference_mode():
        for memory in (*cache.keys, *cache.values):
            memory.fill_(torch.nan)
    decoder.prefill(cache, [row[:-1] for row in rows[:1]], Upcoming([rows[0][-1]], [True]))
    decoder.prefill(cache, [row[:-1] for row in rows[1:4]])
    others = rows[4:]
    decoder.prefill(cache, [row[:-1] for row in others], Upcoming([row[-1] for row in others], [True] * 3))
    assert cache.pool.used < sum(-(-len(row) // 4) for row in rows)
    rng = random.Random(5)
    for step in range(9):
        if step == 4:  # some rows leave, and others take their numbers
            for leaving in (1, 0):
                assert cache.remove(leaving) == len(rows) - 1
                rows[leaving] = rows[-1]
                rows.pop()
        if step == 6:  # a row comes
            rows.append(other[:7])
            decoder.prefill(cache, [other[:6]], Upcoming([other[6]], [True]))
        logits = decoder.logits(decoder.step(cache, torch.tensor([row[-1] for row in rows])))
        assert logits.dtype == torch.float32
        for got, row in zip(logits, rows, strict=True):
            assert relative_error(got, whole_logits(model, row)[-1]) < 1e-5
        for row in rows:
            row.append(rng.choice(text_ids(model, 3, 9)))


def test_another_token_than_was_announced():
    model = tiny_model(5)
    decoder = ForwardDecoder(model)
    cache = decoder.new_cache()
    ids = text_ids(model, 0, 9)
    decoder.prefill(cache, [ids[:-1]], Upcoming([ids[-1] + 1], [True]))
    logits = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))
    assert relative_error(logits[0], whole_logits(model, ids)[-1]) < 1e-5


def test_prefill_without_pages_changes_nothing():
    model = tiny_model(5)
    decoder = ForwardDecoder(model)
    cache = decoder.new_cache(decoder.new_pool(pages=2, page_slots=4))
    decoder.prefill(cache, [text_ids(model, 0, 5)])
    with pytest.raises(PoolExhausted):
        decoder.prefill(cache, [text_ids(model, 1, 5)])
    assert (cache.rows, cache.pool.used) == (1, 2)
    calls = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(1) or 1 / 0)
    decoder.prefill(cache, [text_ids(model, 0, 5)[:3]])  # whose keys and values are there
    assert calls == []
    cache.remove(1)
    cache.truncate(0, 4)
    with pytest.raises(ZeroDivisionError):
        decoder.prefill(cache, [text_ids(model, 1, 3)])
    assert (cache.rows, cache.pool.used) == (1, 1)


def test_image_logits_are_real_in_rows_that_draw_only():
    model = drawing_model(2)
    v = vocabulary_of(model)
    images, masked = sorted(v.image_ids), torch.finfo(torch.float32).min
    model.register_forward_hook(lambda module, args, output: None)
    decoder = ForwardDecoder(model)
    rows = [text_ids(model, i, n) for i, n in enumerate((3, 7, 5))]
    draws = [True, False, True]
    cache = decoder.new_cache()
    decoder.prefill(cache, [r[:-1] for r in rows], Upcoming([r[-1] for r in rows], draws))
    for token in (4, 5):
        logits = decoder.logits(decoder.step(cache, torch.tensor([r[-1] for r in rows]), draws))
        for got, row, real in zip(logits, rows, draws, strict=True):
            expected = whole_logits(model, row)[-1]
            if not real:
                expected[images] = masked
            assert torch.allclose(got, expected, atol=1e-4)
            row.append(token)
    assert (model(torch.tensor([[4, 5]])).logits[..., images] == masked).all()  # other callers see what they saw
