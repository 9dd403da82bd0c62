"""The reference against an independent brute-force version, and the rules for ties and extreme values."""

import math

import numpy as np
import pytest
import torch

from fastdecode.ops import last_backend, sample, seen_bits
from fastdecode.ops.numerics import exp_f32, mass_of

INF = math.inf
BACKENDS = ("reference", "cpu")


def brute_force(rows, weights, allowed, seen, noise, temperature, top_k, top_p, min_p, penalty):
    """One group in float64, by sorting: (token, logprob, kept). Every row is finite or -inf."""
    z = {}
    for t in allowed:
        read = [(w, row[t]) for w, row in zip(weights, rows, strict=True) if w != 0]
        if any(value == -INF for _, value in read):
            continue
        z[t] = sum(w * value for w, value in read)
        if t in seen:
            z[t] = z[t] * penalty if z[t] < 0 else z[t] / penalty
    if temperature == 0:
        return min(z, key=lambda t: (-z[t], t)), 0.0, 1
    z = {t: value / temperature for t, value in z.items()}
    order = sorted(z, key=lambda t: -z[t])
    if 0 < top_k < len(order):
        order = [t for t in order if z[t] >= z[order[top_k - 1]]]
    top = z[order[0]]
    p = {t: math.exp(z[t] - top) for t in order}
    if top_p < 1:
        total = sum(p.values())
        above = {t: sum(p[u] for u in order if z[u] > z[t]) for t in order}
        order = [t for t in order if above[t] < top_p * total or z[t] == top]
    order = [t for t in order if p[t] >= min_p]
    token = min(order, key=lambda t: (-(z[t] + noise[t]), t))
    return token, z[token] - top - math.log(sum(p[t] for t in order)), len(order)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(40))
def test_matches_brute_force(case, backend):
    """Values on a grid, so that float32 is exact where it decides and ties are frequent."""
    rng = np.random.default_rng(case)
    vocab, width = int(rng.integers(1, 40)), int(rng.integers(1, 4))
    rows = rng.integers(-8, 9, (width, vocab)) / 4
    rows[rng.random(rows.shape) < 0.1] = -INF
    rows[:, 0] = 0
    weights = rng.choice([-2, -1, 0, 0.5, 1, 3], width)
    weights[0] = 1
    lo = 0
    hi = int(rng.integers(1, vocab + 1))
    seen = set(rng.integers(0, vocab, 5).tolist())
    noise = rng.integers(-8, 9, vocab) / 4
    parameters = {
        "temperature": float(rng.choice([0, 0.5, 1, 2])),
        "top_k": int(rng.integers(0, vocab + 3)),
        "top_p": float(np.float32(rng.choice([0, 0.31, 0.77, 0.9, 1]))),
        "min_p": float(np.float32(rng.choice([0, 0.013, 0.21, 1]))),
        "penalty": float(rng.choice([1, 2])),
    }
    expected = brute_force(rows, weights, range(lo, hi), seen, noise, **parameters)
    got = sample(
        torch.tensor(rows, dtype=torch.float32),
        streams=torch.arange(width, dtype=torch.int32).unsqueeze(0),
        weights=torch.tensor(weights, dtype=torch.float32).unsqueeze(0),
        allowed=[[(lo, hi)]],
        seen=seen_bits([sorted(seen)], vocab),
        noise=torch.tensor(noise, dtype=torch.float32).unsqueeze(0),
        backend=backend,
        **parameters,
    )
    assert last_backend() == backend
    assert (int(got.token), int(got.kept), int(got.status)) == (expected[0], expected[2], 0)
    assert float(got.logprob) == pytest.approx(expected[1], abs=2e-6)


def draw(logits, backend, **arguments):
    row = torch.tensor(np.asarray(logits, dtype=np.float32)).unsqueeze(0)
    got = sample(row, backend=backend, **arguments)
    return int(got.token), float(got.logprob), int(got.kept), int(got.status)


@pytest.mark.parametrize("backend", BACKENDS)
class TestRules:
    """Each corner of the contract, one by one."""

    def test_ties_with_the_kth_are_kept(self, backend):
        logits = np.log([0.4, 0.3, 0.3, 1e-9])
        assert draw(logits, backend, top_k=2)[2] == 3

    def test_top_k_one_keeps_the_ties_of_the_largest(self, backend):
        assert draw([1, 3, 3, 0], backend, top_k=1)[2] == 2

    @pytest.mark.parametrize("top_k", [-5, 0, 4, 5, 2**31 - 1])
    def test_top_k_off_or_beyond_the_set(self, backend, top_k):
        assert draw([1, 2, 3, 4], backend, top_k=top_k)[2] == 4

    def test_top_k_counts_possible_ids(self, backend):
        assert draw([1, -INF, 3, -INF], backend, top_k=3)[2] == 2

    def test_top_p_zero_keeps_the_largest_and_its_ties(self, backend):
        assert draw([1, 3, 3, 0], backend, top_p=0.0)[2] == 2

    def test_top_p_keeps_the_id_that_crosses(self, backend):
        logits = np.log([0.5, 0.3, 0.2])
        assert draw(logits, backend, top_p=0.6)[2] == 2
        assert draw(logits, backend, top_p=0.49)[2] == 1

    def test_top_p_keeps_ties_together(self, backend):
        assert draw([0, 0, 0, 0], backend, top_p=0.1)[2] == 4

    def test_top_p_uses_the_mass_that_top_k_left(self, backend):
        assert draw(np.log([0.5, 0.3, 0.2]), backend, top_k=2, top_p=0.6)[2] == 1

    def test_top_p_compares_exactly(self, backend):
        """The mass above the second id, 2^40, is just 0.48 below top_p of the total."""
        masses = torch.tensor([2**40, 2**40 - 2**18, 1])
        logits = torch.tensor([0.0, -(2.0**-22), -40 * math.log(2)])
        assert torch.equal(mass_of(exp_f32(logits)), masses)
        top_p = 0.5 + 2**-24
        assert 0 < top_p * int(masses.sum()) - 2**40 < 0.5
        assert draw(logits, backend, top_p=top_p)[2] == 2

    def test_top_p_just_below_one(self, backend):
        token, _, kept, _ = draw([0.0] + [-1.0] * 99, backend, top_p=0.9999999)
        assert 0 <= token < 100
        assert kept == 100

    def test_min_p_one_keeps_the_largest_and_its_ties(self, backend):
        assert draw([1, 3, 3, 0], backend, min_p=1.0)[2] == 2

    def test_greedy_takes_the_lowest_of_the_largest(self, backend):
        got = draw([1, 3, 3, 0], backend, temperature=0.0, top_k=1)
        assert got == (1, 0.0, 1, 0)

    def test_greedy_sees_the_penalty(self, backend):
        arguments = {"penalty": 4.0, "seen": seen_bits([[1, 2]], 4), "temperature": 0.0}
        assert draw([1, 3, -0.5, -1.9], backend, **arguments)[0] == 0
        assert draw([-2, -1, -1, -3], backend, **arguments)[0] == 0

    def test_negative_zero_ties_with_zero(self, backend):
        assert draw([-0.0, 0.0], backend, top_k=1)[2] == 2
        assert draw([-0.0, 0.0], backend, temperature=0.0)[0] == 0
        got = sample(torch.tensor([[-0.0]]), backend=backend).logprob
        assert math.copysign(1, got.item()) == 1

    def test_equal_noisy_values_give_the_lowest_id(self, backend):
        assert draw([1, 0, 0, 1], backend, noise=torch.tensor([[0.0, 1, 1, 0]]))[0] == 0

    def test_given_noise_without_a_number_never_wins(self, backend):
        noise = torch.tensor([[math.nan, -INF, -3.0, math.nan]])
        assert draw([9, 9, 0, 9], backend, noise=noise)[0] == 2
        noise = torch.tensor([[math.nan, -INF, math.nan]])
        assert draw([-INF, 0, 1], backend, noise=noise)[0] == 1

    @pytest.mark.parametrize("weight", [1.0, -1.0])
    def test_minus_inf_in_any_weighted_stream_is_impossible(self, backend, weight):
        got = sample(
            torch.tensor([[5.0, 1.0], [-INF, 1.0]]),
            streams=torch.tensor([[0, 1]], dtype=torch.int32),
            weights=torch.tensor([[2.0, weight]]),
            backend=backend,
        )
        assert (got.token.item(), got.kept.item(), got.status.item()) == (1, 1, 0)

    def test_streams_of_weight_zero_are_not_read(self, backend):
        got = sample(
            torch.tensor([[math.nan, math.nan], [0.0, 1.0], [INF, -INF]]),
            streams=torch.tensor([[0, 1, -1, 2]], dtype=torch.int32),
            weights=torch.tensor([[0.0, 1.0, 7.0, -0.0]]),
            temperature=0.0,
            backend=backend,
        )
        assert (got.token.item(), got.status.item()) == (1, 0)

    def test_ids_outside_the_set_are_not_read(self, backend):
        logits = [math.nan, 0, 1, INF]
        assert draw(logits, backend, allowed=[[(1, 3)]], top_k=1) == (2, 0.0, 1, 0)

    @pytest.mark.parametrize("bad", [math.nan, INF])
    def test_invalid_logits(self, backend, bad):
        assert draw([1, bad, 2], backend) == (-1, -INF, 0, 1)
        assert draw([1, bad, 2], backend, temperature=0.0) == (-1, -INF, 0, 1)

    def test_nothing_but_minus_inf(self, backend):
        assert draw([-INF, -INF], backend) == (-1, -INF, 0, 1)

    def test_minus_inf_does_not_excuse_a_nan_in_another_stream(self, backend):
        got = sample(
            torch.tensor([[-INF, 1.0], [math.nan, 1.0]]),
            streams=torch.tensor([[0, 1]], dtype=torch.int32),
            backend=backend,
        )
        assert got.status.item() == 1

    def test_overflow(self, backend):
        """To -inf: impossible. To +inf or NaN: invalid. From -inf times a weight: impossible."""

        def mixed(rows, weights):
            got = sample(
                torch.tensor(rows),
                streams=torch.arange(len(rows), dtype=torch.int32).unsqueeze(0),
                weights=torch.tensor([weights]),
                backend=backend,
            )
            return got.token.item(), got.status.item()

        assert mixed([[-3e38, 0.0]], [2.0]) == (1, 0)
        assert mixed([[3e38, 0.0]], [2.0]) == (-1, 1)
        assert mixed([[3e38, 0.0], [3e38, 0.0]], [2.0, -2.0]) == (-1, 1)
        assert mixed([[3e38, 0.0], [-INF, 0.0]], [2.0, 1.0]) == (1, 0)
        assert draw([1.0, 0.0], backend, temperature=1e-39) == (-1, -INF, 0, 1)

    def test_empty_set(self, backend):
        assert draw([1, 2], backend, allowed=[[]]) == (-1, -INF, 0, 2)
        assert draw([math.nan, 2], backend, allowed=[[(0, 0)]]) == (-1, -INF, 0, 2)

    def test_group_without_streams(self, backend):
        got = sample(torch.zeros(1, 4), streams=torch.tensor([[-1], [0]], dtype=torch.int32), backend=backend)
        assert got.status.tolist() == [1, 0]
        none = torch.full((1, 1), -1, dtype=torch.int32)
        assert sample(torch.zeros(0, 4), streams=none, backend=backend).status.tolist() == [1]

    def test_a_bad_group_leaves_its_neighbours_alone(self, backend):
        logits = torch.randn(5, 100)
        alone = [sample(row[None], seed=3, backend=backend).token.item() for row in logits]
        logits[1] = math.nan
        logits[3] = -INF
        got = sample(logits, seed=3, backend=backend)
        assert got.status.tolist() == [0, 1, 0, 1, 0]
        assert got.token.tolist() == [alone[0], -1, alone[2], -1, alone[4]]

    def test_few_equal_logits_among_minus_inf(self, backend):
        logits = [-INF] * 100
        logits[7] = logits[50] = logits[99] = -2.5
        token, logprob, kept, status = draw(logits, backend, top_k=2, top_p=0.5, min_p=0.5)
        assert (token in (7, 50, 99), kept, status) == (True, 3, 0)
        assert logprob == pytest.approx(-math.log(3), abs=1e-6)

    def test_zero_groups(self, backend):
        for got in (
            sample(torch.empty(0, 10), backend=backend),
            sample(torch.zeros(3, 10), streams=torch.empty(0, 2, dtype=torch.int32), backend=backend),
        ):
            assert [len(x) for x in got] == [0, 0, 0, 0]
            assert got.token.dtype == torch.int64

    def test_vocabulary_of_no_ids(self, backend):
        with pytest.raises(ValueError, match=r"logits\.shape\[1\] = 0: must be in \[1, 4194304\]"):
            sample(torch.zeros(2, 0), backend=backend)

    def test_rows_that_overlap(self, backend):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(5)).as_strided((5, 20), (3, 1))
        got = sample(logits, seed=2, noise=logits, backend=backend)
        expected = sample(logits.clone(), seed=2, noise=logits.clone(), backend="reference")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
class TestContrast:
    def test_keeps_what_the_expert_finds_likely(self, backend):
        expert = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        amateur = torch.tensor([[0.5, 0.1, 0.01, 0.39]]).log()
        arguments = {
            "streams": torch.tensor([[0, 1]], dtype=torch.int32),
            "weights": torch.tensor([[1.0, -1.0]]),
            "temperature": 0.0,
        }
        logits = torch.cat([expert, amateur])
        assert sample(logits, contrast=(0.5, 1), backend=backend, **arguments).token.item() == 1
        assert last_backend() == backend
        assert sample(logits, contrast=(0.5, 2), backend=backend, **arguments).token.item() == 2
        assert sample(logits, contrast=(1.0, 1), backend=backend, **arguments).token.item() == 0

    def test_keeps_everything_with_alpha_zero(self, backend):
        assert sample(torch.randn(1, 50), contrast=(0.0, 1), backend=backend).kept.item() == 50
        assert sample(torch.randn(1, 50), contrast=(1.0, 10), backend=backend).kept.item() == 10
        assert sample(torch.randn(1, 50), contrast=(1.0, 1000), backend=backend).kept.item() == 50
