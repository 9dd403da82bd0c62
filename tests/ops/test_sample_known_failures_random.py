"""Failures of other samplers: random numbers and distribution. `tests/known_failures.md` lists all of them."""

import math

import numpy as np
import pytest
import torch
from cases import assert_same_bits
from known_failures import FAMILY_WISE, INF, i32, one, randn
from scipy import stats

from fastdecode import _C
from fastdecode.ops import numerics
from fastdecode.ops import sample as sample_by


def test_row_01_every_row_uses_its_own_seed(sample):
    logits = torch.zeros(4, 5000)
    seeds = torch.tensor([1111, 2222, 3333, 4444])
    got = sample(logits, seed=seeds)
    assert len(set(got.token.tolist())) == 4
    for g in range(4):
        assert_same_bits(one(got, g), sample(logits[:1], seed=int(seeds[g])))
    assert len(set(sample(logits, seed=torch.full((4,), 1111)).token.tolist())) == 1


def test_row_02_a_neighbours_top_k_changes_no_seeded_row(sample):
    logits, seed = randn(2, 3, 3000), torch.arange(3)
    for step in range(5):
        plain = sample(logits, seed=seed, step=step)
        mixed = sample(logits, seed=seed, step=step, top_k=i32(0, 40, 0))
        for g in (0, 2):
            assert_same_bits(one(mixed, g), one(plain, g))


def test_row_02_noise_is_of_the_id_not_of_its_rank(sample):
    """What a set or top-k leaves out shifts the places of the others, and must not shift their noise."""
    logits = torch.zeros(1, 500)
    logits[0, ::3] = 1.0
    for step in range(20):
        open_to_all = sample(logits, seed=1, step=step).token.item()
        for lo in (0, max(open_to_all - 2, 0)):
            narrowed = [[(lo, lo + 1), (max(open_to_all - 1, lo + 1), 500)]]
            if lo < open_to_all:
                assert sample(logits, seed=1, step=step, allowed=narrowed).token.item() == open_to_all
        if open_to_all % 3 == 0:
            assert sample(logits, seed=1, step=step, top_k=167).token.item() == open_to_all


def test_row_03_the_noise_of_every_extreme_word_is_finite():
    extremes = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]
    word0, word1 = (w.flatten() for w in torch.meshgrid(torch.tensor(extremes), torch.tensor(extremes), indexing="ij"))
    noise = numerics.gumbel_of(word0, word1)
    assert noise.isfinite().all()
    words = [torch.from_numpy(w.numpy().astype(np.uint32)) for w in (word0, word1)]
    out = torch.empty(len(noise))
    _C.gumbel_of(words[0].data_ptr(), words[1].data_ptr(), out.data_ptr(), len(noise))
    assert torch.equal(out.view(torch.int32), noise.view(torch.int32))


@pytest.mark.parametrize("bad", [INF, math.nan])
def test_row_03_a_uniform_of_one_never_draws_a_masked_id(sample, bad):
    """Noise of +inf, as u = 1 would give, on an impossible id, a forbidden one and a filtered one."""
    logits = torch.tensor([[0.0, -INF, 3.0, 2.0, 9.0]])
    noise = torch.tensor([[0.0, bad, 0.0, 0.0, bad]])
    got = sample(logits, noise=noise, allowed=[[(0, 4)]])
    assert (got.token.item(), got.status.item(), got.kept.item()) == (2, 0, 3)
    noise = torch.tensor([[bad, bad, 0.0, 1.5, bad]])
    assert sample(logits, noise=noise, allowed=[[(0, 4)]], top_k=2).token.item() == 3
    assert sample(logits, noise=noise, allowed=[[(0, 4)]], top_p=0.9).token.item() == 3
    assert sample(logits, noise=noise, allowed=[[(0, 4)]], min_p=0.1).token.item() == 3


def test_row_04_draws_from_a_tail_that_float32_uniforms_cannot_reach(sample):
    """262,144 ids, all but one 20.5 nats below it. In 20,000 draws 6.6 come from the tail; these are all that do."""
    vocab, top, gap = 262_144, 200_000, 20.5
    logits = torch.full((1, vocab), -gap)
    logits[0, top] = 0.0
    tail = {4544: 181960, 8945: 164963, 10069: 246614, 12919: 23982, 15103: 186839, 15890: 53003, 18787: 183065}
    expected = 20_000 * (vocab - 1) * math.exp(-gap)
    assert stats.poisson.cdf(len(tail), expected) > 0.01
    assert stats.poisson.sf(len(tail) - 1, expected) > 0.01
    steps = torch.tensor(list(tail))
    got = sample(logits.expand(len(tail), vocab), seed=4, step=steps)
    assert got.token.tolist() == list(tail.values())
    assert got.logprob.tolist() == pytest.approx([-gap - expected / 20_000] * len(tail), abs=1e-5)
    noise = numerics.gumbel_noise(torch.tensor(4), steps, got.token)
    assert (noise.double() > gap + numerics.gumbel_noise(torch.tensor(4), steps, torch.tensor(top)).double()).all()
    assert set(sample(logits.expand(4, vocab), seed=4, step=steps[:4] + 1).token.tolist()) == {top}


@pytest.mark.parametrize("gap", [9.0, 12.0])
def test_row_05_unlikely_ids_are_drawn_as_often_as_they_should(gap):
    """Two-sided, where hits are many: a tail that is too thick fails as one that is too thin does."""
    vocab, draws = 20_000, 6_000
    logits = torch.full((1, vocab), -gap)
    logits[0, 7] = 0.0
    token = sample_by(logits.expand(draws, vocab), seed=5, step=torch.arange(draws)).token
    hits = int((token != 7).sum())
    p = (vocab - 1) * math.exp(-gap) / (1 + (vocab - 1) * math.exp(-gap))
    assert stats.binomtest(hits, draws, p).pvalue > FAMILY_WISE, f"{hits} hits, expected {draws * p:.0f}"
    ids = token[token != 7].numpy()
    assert stats.kstest(ids / vocab, "uniform").pvalue > FAMILY_WISE


def test_row_06_draws_that_follow_each_other_share_no_noise(sample):
    """Two draws of one request, and equal steps of two requests: a contingency table of what they drew."""
    draws, vocab = 20_000, 5
    logits = torch.zeros(1, vocab).expand(draws, vocab)
    steps = torch.arange(draws)
    first = sample(logits, seed=1, step=steps).token.numpy()
    for other in (sample(logits, seed=1, step=steps + 1), sample(logits, seed=2, step=steps)):
        table = np.zeros((vocab, vocab))
        np.add.at(table, (first, other.token.numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > FAMILY_WISE


def test_row_07_steps_are_read_anew_at_every_call(sample):
    """The same tensors, changed in place between calls, as a replayed loop changes them."""
    logits, seed, step = torch.zeros(2, 5000), torch.tensor([3, 4]), torch.tensor([0, 9])
    drawn = []
    for _ in range(6):
        got = sample(logits, seed=seed, step=step)
        assert_same_bits(got, sample(logits.clone(), seed=seed.clone(), step=step.clone()))
        drawn.append(tuple(got.token.tolist()))
        step += 1
    assert len(set(drawn)) == 6
    before = sample(logits, seed=seed, step=step)
    seed += 1
    assert not torch.equal(sample(logits, seed=seed, step=step).token, before.token)


def test_row_08_mass_of_many_equal_bfloat16_logits_does_not_saturate(sample):
    """Half of 131,072 ids lie one nat below the others and hold 26.9% of the mass."""
    vocab = 131_072
    logits = torch.zeros(3, vocab, dtype=torch.bfloat16)
    logits[:, ::2] = -1.0
    got = sample(logits, top_p=torch.tensor([0.70, 0.74, 1.0]))
    assert got.kept.tolist() == [vocab // 2, vocab, vocab]
    below = torch.tensor(0.0 if got.token[0] % 2 else -1.0)
    assert got.logprob[0].item() == pytest.approx(below.item() - math.log(vocab // 2), abs=1e-5)
    below = 0.0 if got.token[2] % 2 else -1.0
    assert got.logprob[2].item() == pytest.approx(below - math.log(vocab // 2 * (1 + math.exp(-1))), abs=1e-5)


def test_row_08_mass_is_summed_to_the_last_id(sample):
    """131,072 logits that fall evenly from 0 to -1: where half of the mass lies, to a few ids."""
    vocab, half = 131_072, -math.log(1 - 0.5 * (1 - math.exp(-1)))
    got = sample(torch.linspace(0, -1, vocab)[None], top_p=0.5)
    assert got.kept.item() == pytest.approx(half * (vocab - 1), abs=4)


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.99999}, {"top_k": 60}, {"temperature": 50.0}], ids=str)
def test_row_09_an_impossible_id_is_never_drawn(sample, filters):
    vocab, draws = 67, 3000
    logits = torch.full((1, vocab), -INF)
    logits[0, 1:-1:5] = randn(9, 13)
    got = sample(logits.expand(draws, vocab), step=torch.arange(draws), **filters)
    assert set(got.token.tolist()) <= set(range(1, vocab - 1, 5))
    assert (got.status == 0).all()
    assert (got.kept == 13).all()


def test_row_10_equal_bits_give_equal_tokens_wherever_they_lie(sample):
    """The same row in other memory, at another place of the batch, beside others, at another row stride."""
    row = randn(10, 1, 4099) * 3
    alone = sample(row, seed=8, top_k=300, top_p=0.95)
    for place in (0, 3, 6):
        padded = torch.full((7, 4099 + place), 99.0)
        rows = padded[:, :4099]
        rows.copy_(randn(11 + place, 7, 4099) * 30)
        rows[place] = row[0]
        got = sample(rows, seed=8, top_k=300, top_p=0.95)
        assert_same_bits(one(got, place), alone)
