"""Failures of other samplers: ties and thresholds. `tests/known_failures.md` lists all of them."""

import threading

import numpy as np
import pytest
import torch
from cases import assert_same_bits
from known_failures import INF, i32, one, randn

from fastdecode.ops import Sample


@pytest.mark.parametrize("k", [50, 2000])
def test_row_11_ties_of_bfloat16_logits_stay_together_in_every_batch(sample, k):
    logits = (randn(12, 4, 65_536) * 3).to(torch.bfloat16)
    got = sample(logits, top_k=k, seed=torch.arange(4))
    values = logits.float().numpy()
    kth = np.sort(values, axis=1)[:, -k]
    assert got.kept.tolist() == (values >= kth[:, None]).sum(1).tolist()
    assert (got.kept > k).sum() >= 2  # the k-th is one of several, in most rows
    for g in range(4):
        assert_same_bits(sample(logits[g : g + 1], top_k=k, seed=g), one(got, g))


def test_row_12_top_k_of_one_is_the_argmax_and_its_ties(sample):
    logits = randn(13, 8, 1000).mul(4).round()
    largest = logits.max(1, keepdim=True).values
    got = sample(logits, top_k=1, seed=torch.arange(8))
    assert got.kept.tolist() == (logits == largest).sum(1).tolist()
    assert torch.equal(logits.gather(1, got.token[:, None]), largest)
    assert torch.equal(sample(logits, temperature=0.0).token, logits.argmax(1))
    apart = randn(14, 8, 1000)
    assert torch.equal(sample(apart, top_k=1).token, apart.argmax(1))


@pytest.mark.parametrize(
    "filters", [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.0}, {"top_p": 0.3}, {"min_p": 1.0}], ids=str
)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e30, -1e30, 1e-40])
def test_row_13_a_few_equal_logits_among_minus_inf_are_all_kept(sample, filters, value):
    logits = torch.full((1, 300), -INF)
    logits[0, [0, 150, 299]] = value
    for seed in range(4):
        got = sample(logits, seed=seed, **filters)
        assert (got.kept.item(), got.status.item()) == (3, 0)
        assert got.token.item() in (0, 150, 299)


@pytest.mark.parametrize("vocab", [1, 2, 33, 1000])
def test_row_14_parameters_at_their_ends_draw_valid_ids(sample, vocab):
    logits = randn(15, 6, vocab)
    just_below = float(np.nextafter(np.float32(1), np.float32(0)))
    got = sample(
        logits,
        top_p=torch.tensor([0.0, just_below, 0.9999999, 1.0, 1e-45, 0.0]),
        top_k=i32(0, 0, vocab, -1, 0, 1),
        seed=torch.arange(6),
    )
    assert (got.status == 0).all()
    assert ((got.token >= 0) & (got.token < vocab)).all()
    assert got.kept.tolist() == [1, vocab, vocab, vocab, 1, 1]
    for g in (0, 4, 5):
        assert got.token[g] == logits[g].argmax()


def adjacent_rows() -> torch.Tensor:
    """Rows of 3000 whose values are neighbouring float32 numbers, at sizes from the subnormal to the largest."""
    rows = []
    for start in (0x00000001, 0x007FFFF0, 0x3F800000, 0x7F7FF000, 0x42AC0000):
        bits = start + torch.randperm(3000, generator=torch.Generator().manual_seed(start))
        rows += [bits.to(torch.int32).view(torch.float32), -bits.to(torch.int32).view(torch.float32)]
    return torch.stack(rows)


def test_row_15_searches_for_thresholds_end(sample):
    """Adjacent floats, a step of one unit in the last place, -inf among them: with every filter, in 60 seconds."""
    rows = adjacent_rows()
    rows = torch.cat([rows, rows.masked_fill(torch.arange(3000) % 7 != 0, -INF)])
    filters = [{"top_k": 700}, {"top_p": 0.37}, {"top_k": 2999, "top_p": 0.999999}, {"top_p": 1e-7}, {"min_p": 0.5}]
    results: list[Sample] = []
    worker = threading.Thread(target=lambda: results.extend(sample(rows, **f) for f in filters), daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive(), "a search did not end"
    for case, got in zip(filters, results, strict=True):
        assert (got.status == 0).all(), case
        assert (got.kept >= 1).all(), case
    assert results[0].kept[:10].tolist() == [700] * 10
    assert results[0].kept[10:].tolist() == [429] * 10


def test_row_16_top_p_weighs_what_top_k_left(sample):
    """Of 0.5, 0.3, 0.2 top-k leaves 0.625 and 0.375: a top_p of 0.6 is the first alone, 0.63 is both."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert sample(logits, top_k=2, top_p=0.6).kept.item() == 1
    assert sample(logits, top_k=2, top_p=0.63).kept.item() == 2
    faint = torch.tensor([[1e-6, 2e-6, 1.0]]).log()
    assert sample(faint, allowed=[[(0, 2)]], top_k=1, top_p=0.5).kept.item() == 1


@pytest.mark.parametrize("k", [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 500, 2000])
def test_row_17_top_k_of_every_width(sample, k):
    """Distinct values, in sets smaller and larger than k and not a multiple of any vector's width."""
    vocab = 4001
    logits = torch.stack([torch.randperm(vocab, generator=torch.Generator().manual_seed(g)) for g in range(5)]) / 512.0
    sizes = [1, 33, 500, 2001, vocab]
    sets = [[(0, n // 2), (vocab - (n - n // 2), vocab)] for n in sizes]
    got = sample(logits, top_k=k, allowed=sets, set_index=i32(0, 1, 2, 3, 4), seed=torch.arange(5))
    assert got.kept.tolist() == [min(k, n) for n in sizes]
    for g, ranges in enumerate(sets):
        inside = torch.cat([logits[g, lo:hi] for lo, hi in ranges])
        assert logits[g, got.token[g]] >= inside.sort(descending=True).values[min(k, sizes[g]) - 1]


def test_row_18_rows_with_filters_sets_and_none_are_mixed(sample):
    logits = randn(18, 8, 9000) * 3
    arguments = {
        "allowed": [[(0, 9000)], [(100, 8000)], [(5, 6), (8990, 8995)]],
        "set_index": i32(0, 1, 2, 0, 1, 2, 1, 0),
        "top_k": i32(0, 50, 3, 2000, 0, 0, 9000, 1),
        "top_p": torch.tensor([0.5, 1.0, 0.5, 0.9, 0.5, 1.0, 0.01, 1.0]),
        "min_p": torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]),
        "temperature": torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 0.0, 1.0, 3.0]),
    }
    got = sample(logits, seed=torch.arange(8), **arguments)
    sets = arguments["allowed"]
    for g in range(8):
        own = {name: value[g : g + 1] for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        own["allowed"] = [sets[own.pop("set_index").item()]]
        assert_same_bits(sample(logits[g : g + 1], seed=g, **own), one(got, g))
    p = logits[4, 100:8000].softmax(0).sort(descending=True).values  # a constrained row keeps its top-p
    assert got.kept[4].item() == pytest.approx(int((p.cumsum(0) - p < 0.5).sum()), abs=1)
    assert got.kept[4] < 7900
