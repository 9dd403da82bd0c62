"""`PagedCache` under a model's own forward and generate."""

import gc
import re

import pytest
import torch
from models_for_tests import padded, text_ids, tiny_model

import fastdecode
from fastdecode.kv.transformers_cache import PagedCache


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
        found.append(model.generate(**inputs, max_new_tokens=15, past_key_values=cache, **options))
    assert torch.equal(found[0], found[1])


def test_forward_in_parts_and_cropped():
    model = tiny_model(4)
    ids = torch.tensor([text_ids(model, 0, 30), text_ids(model, 1, 30)])
    cache = new_cache(model)
    with torch.no_grad():
        whole = model(ids).logits
        for begin, end in ((0, 7), (7, 8), (8, 30)):
            part = model(ids[:, begin:end], past_key_values=cache).logits
            torch.testing.assert_close(part, whole[:, begin:end])
        cache.crop(-11)
        assert cache.get_seq_length() == 19
        assert cache.rows.pool.used == 2 * 5
        again = model(ids[:, 19:25], past_key_values=cache).logits
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
        model(ids, past_key_values=cache)
        cache.batch_select_indices(torch.tensor(wanted))
        assert cache.rows.pool.used == 3 * len(set(wanted))
        got = model(more, past_key_values=cache).logits[:, -1]
        expected = model(torch.cat([ids[wanted], more], 1)).logits[:, -1]
    torch.testing.assert_close(got, expected)


def test_a_bound_and_pages_given_back():
    model = tiny_model(6)
    cache = new_cache(model, pages=4)
    pool = cache.rows.pool
    ids = torch.tensor([text_ids(model, 0, 16)])
    with torch.no_grad():
        model(ids[:, :15], past_key_values=cache)
        with pytest.raises(fastdecode.PoolExhausted, match="the KV pool needs 1 page, 0 of its 4 are free"):
            model(ids[:, :2], past_key_values=cache)
        assert (pool.used, cache.rows.longest, cache.get_seq_length()) == (4, 15, 15)
        expected = model(ids).logits[:, -1]
        torch.testing.assert_close(model(ids[:, 15:], past_key_values=cache).logits[:, -1], expected)
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
