"""Failures of other samplers, with one or two tests each. `tests/known_failures.md` lists all of them."""

import math
import re
import subprocess
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import SIZES, assert_same_bits
from scipy import stats

from fastdecode import _C, build_info
from fastdecode.ops import Sample, last_backend, numerics, seen_bits
from fastdecode.ops import sample as sample_by

INF = math.inf
ROOT = Path(__file__).resolve().parents[2]
FAMILY_WISE = 1e-6
"""Chance that a statistical test here fails though nothing is wrong; seeds are fixed."""


@pytest.fixture(params=["reference", "cpu"])
def sample(request):
    """`sample` by one backend, which is seen to have run."""

    def by_backend(logits, **arguments) -> Sample:
        got = sample_by(logits, backend=request.param, **arguments)
        assert last_backend() == request.param
        return got

    return by_backend


def i32(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def one(got: Sample, g: int) -> Sample:
    """What one group got."""
    return Sample(*(field[g : g + 1] for field in got))


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- random numbers and distribution ------------------------------------------------------------------------------


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


# --- ties and thresholds ------------------------------------------------------------------------------------------


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


# --- range, memory, shape -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", SIZES)
def test_row_19_lanes_behind_the_end_are_never_drawn(sample, vocab):
    """Every logit is far below the zeros, and far above the -inf, that a padded lane may hold."""
    logits = torch.full((2, vocab + 64), 1e9)[:, :vocab]
    logits[:] = -500.0
    for arguments in ({}, {"top_k": vocab}, {"top_p": 0.5}, {"temperature": 0.0}, {"min_p": 1.0}):
        got = sample(logits, seed=torch.tensor([1, 2]), **arguments)
        assert (got.status == 0).all()
        assert ((got.token >= 0) & (got.token < vocab)).all()
        if arguments.get("temperature") != 0.0:
            assert got.kept.tolist() == [vocab, vocab]


def test_row_21_parameters_are_of_groups_and_rows_of_streams(sample):
    """Six rows, two groups, three streams: rows beyond the number of groups, in an order of their own."""
    logits = randn(21, 6, 400)
    streams = i32([5, 2, 4], [3, -1, 0])
    weights = torch.tensor([[2.0, -0.5, -0.25], [1.5, 7.0, -0.5]])
    arguments = {"temperature": torch.tensor([0.5, 2.0]), "top_k": i32(3, 90), "seed": torch.tensor([7, -7])}
    got = sample(logits, streams=streams, weights=weights, **arguments)
    mixed = torch.stack(
        [2 * logits[5] - 0.5 * logits[2] - 0.25 * logits[4], 1.5 * logits[3] + -0.5 * logits[0]]
    )  # each product is exact, or its sum rounds as the contract says
    assert got.kept.tolist() == [3, 90]
    for g in range(2):
        own = {name: value[g : g + 1] for name, value in arguments.items()}
        alone = sample(logits, streams=streams[g : g + 1], weights=weights[g : g + 1], **own)
        assert_same_bits(alone, one(got, g))
        assert sample(mixed[g : g + 1], **own).token.item() == got.token[g].item()
    for name in arguments:
        per_row = arguments[name].repeat(3)
        with pytest.raises(ValueError, match=rf"{name}.shape = \(6,\): must be \(2,\)"):
            sample(logits, streams=streams, weights=weights, **{**arguments, name: per_row})


def test_row_21_seen_belongs_to_the_group(sample):
    """A group's penalty counts its own seen ids, whatever rows it reads."""
    logits = torch.tensor([[2.0, 1.5], [0.0, 9.0], [1.5, 2.0]])
    seen = seen_bits([[0], [1]], 2)
    got = sample(logits, streams=i32([2], [0]), seen=seen, penalty=torch.tensor([8.0, 8.0]), temperature=0.0)
    assert got.token.tolist() == [1, 0]
    got = sample(logits, streams=i32([0], [2]), seen=seen, penalty=torch.tensor([8.0, 1.0]), temperature=0.0)
    assert got.token.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_row_22_rows_of_a_padded_view_are_the_right_ones(sample, dtype):
    """What lies between the rows is larger than anything in them."""
    dense = (randn(22, 5, 130) * 2).to(dtype)
    wide = torch.full((11, 137), 1000.0, dtype=dtype)
    view = wide[1::2, 3:133]
    view.copy_(dense)
    assert view.stride() == (274, 1)
    for arguments in ({"temperature": 0.0}, {"top_p": 0.9}, {"streams": i32([4, 0], [1, 3])}):
        assert_same_bits(sample(view, seed=3, **arguments), sample(dense, seed=3, **arguments))
    repeated = dense[:1].expand(3, 130)  # a row stride of 0
    assert_same_bits(sample(repeated, seed=3), sample(repeated.clone(), seed=3))


@pytest.mark.parametrize("possible", [0, 1, 3])
@pytest.mark.parametrize("where", [0, 8191, 8192, 19_999])
def test_row_23_stretches_of_minus_inf_leave_nothing_unwritten(sample, possible, where):
    """Whole blocks of -inf, and fewer possible ids than top_k asks for. Outputs are poisoned before the call."""
    logits = torch.full((2, 20_000), -INF)
    at = [(where + 9973 * i) % 20_000 for i in range(possible)]
    logits[0, at] = 1.0
    logits[1, 5] = 0.0
    for arguments in ({}, {"top_k": 50}, {"top_p": 0.5}, {"top_k": 50, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0}):
        got = sample(logits, **arguments)
        if possible == 0:
            assert [field[0].item() for field in got] == [-1, -INF, 0, 1]
        else:
            assert got.token[0].item() in at
            assert got.status[0].item() == 0
        assert [field[1].item() for field in got] == [5, 0.0, 1, 0]


# --- NaN, temperature, guidance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}, {"min_p": 0.5}], ids=str)
def test_row_25_a_row_of_nan_is_never_served(sample, arguments):
    logits = randn(25, 3, 20_000)
    healthy = sample(logits, **arguments)
    logits[1] = math.nan
    got = sample(logits, **arguments)
    assert [field[1].item() for field in got] == [-1, -INF, 0, 1]
    for g in (0, 2):
        assert_same_bits(one(got, g), one(healthy, g))
    logits[1] = 0.0
    logits[1, 19_999] = math.nan  # one is enough, wherever it is
    assert sample(logits, **arguments).status.tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.5, 1.0, 3.0, 1e30])
def test_row_26_minus_inf_is_impossible_at_every_temperature(sample, temperature):
    logits = torch.tensor([[-INF, 2e-6, 1e-6, -INF]])
    for seed in range(20):
        got = sample(logits, temperature=temperature, seed=seed)
        assert got.token.item() in (1, 2)
        assert got.kept.item() == (1 if temperature == 0 else 2)
    with pytest.raises(ValueError, match="temperature = -1: must be finite and >= 0"):
        sample(logits, temperature=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [3.0, 0.5, -1.0])
def test_row_27_guidance_on_masked_logits(sample, dtype, scale):
    """-inf in both streams is impossible; finfo.min, in a set that leaves it out, is not read; in the set it may
    overflow, and then no token comes rather than a plausible one."""
    streams, weights = i32([0, 1]), torch.tensor([[scale, 1 - scale]])
    logits = randn(27, 2, 40).to(dtype)
    logits[:, 20:] = -INF
    got = sample(logits, streams=streams, weights=weights)
    assert (got.status.item(), got.kept.item()) == (0, 20)
    assert got.token.item() < 20
    alone = sample(logits[:, :20], streams=streams, weights=weights)
    assert_same_bits(got, alone)
    logits[:, 20:] = torch.finfo(dtype).min
    inside = sample(logits, streams=streams, weights=weights, allowed=[[(0, 20)]])
    assert_same_bits(inside, alone)
    everything = sample(logits, streams=streams, weights=weights)
    assert everything.token.item() < 20
    overflows = dtype != torch.float16 and abs(scale) > 1
    assert everything.status.item() == (1 if overflows else 0)


def test_row_29_greedy_draws_follow_the_guidance(sample):
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 0.0, 0.0]])
    assert sample(logits[:1], temperature=0.0).token.item() == 0
    for temperature in (0.0, 1e-4):
        got = sample(logits, streams=i32([0, 1]), weights=torch.tensor([[3.0, -2.0]]), temperature=temperature, seed=1)
        assert got.token.item() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_row_30_half_precision_streams_are_mixed_in_float32(sample, dtype):
    """Against float64, with the difference of two close streams amplified by 12."""
    conditional = (randn(30, 1, 200) * 3).to(dtype)
    unconditional = (conditional.float() + randn(31, 1, 200) * 0.05).to(dtype)
    z = 13.0 * conditional.double() - 12.0 * unconditional.double()
    exact = z.log_softmax(1)[0]
    got = sample(
        torch.cat([conditional, unconditional]).expand(2, 200),
        streams=i32([0, 1]).expand(50, 2),
        weights=torch.tensor([[13.0, -12.0]]).expand(50, 2),
        step=torch.arange(50),
    )
    assert len(set(got.token.tolist())) > 5
    assert torch.allclose(got.logprob.double(), exact[got.token], atol=2e-5, rtol=0)


# --- build and dispatch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["decode_avx2", "decode_avx512", "decode_avx512bf16", "sample_avx2", "sample_avx512"])
def test_row_39_units_for_wide_instructions_share_no_code(tmp_path, unit):
    """A weak symbol is a copy that the linker may keep for everybody: there must be none, not even unoptimised."""
    if not (Path("/proc/cpuinfo").exists() and "avx2" in Path("/proc/cpuinfo").read_text()):
        pytest.skip("not an x86 processor")
    wide = ["-mavx2", "-mf16c"] if unit.endswith("avx2") else ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    wide += ["-mavx512bf16"] if unit.endswith("bf16") else []
    target = tmp_path / "unit.o"
    flags = ["-std=c++17", "-O0", "-w", "-mfma", *wide, "-DFASTDECODE_X86", "-DFASTDECODE_BUILDING"]
    source = ROOT / "csrc" / "cpu" / f"{unit}.cpp"
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    subprocess.run(["g++", *flags, *include, "-c", str(source), "-o", str(target)], check=True)
    symbols = subprocess.run(["nm", "-C", "-P", str(target)], check=True, capture_output=True, text=True).stdout
    kinds = [re.fullmatch(r"(.*?) ([A-Za-z])(?: [0-9a-f]+)*\s*", line).groups() for line in symbols.splitlines()]
    weak = [name for name, kind in kinds if kind in "WVuw" and not name.startswith("DW.ref.")]
    assert not weak
    assert any(kind in "TDR" and unit.rsplit("_", 1)[1] in name for name, kind in kinds)


def test_row_40_the_build_and_the_compiled_parts_need_no_torch():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert not any(name in need for need in build["requires"] for name in ("torch", "cuda", "nvidia"))
    assert "import torch" not in (ROOT / "setup.py").read_text()
    for compiled in (build_info.get_library(), _C.__file__):
        command = ["nm", "-D", "--undefined-only", compiled]
        needed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert not any(name in needed for name in ("c10", "2at", "torch", "cuda"))
