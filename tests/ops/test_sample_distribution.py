"""Sampled tokens: support, frequencies, tails, and independence of the rest of the batch."""

import math

import numpy as np
import pytest
import torch
from cases import assert_same_bits
from scipy import stats

from fastdecode.ops import Sample, sample

DRAWS = 40_000
CASES = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.0, "top_k": 9},
    {"top_p": 0.8},
    {"min_p": 0.1, "top_p": 0.95},
    {"top_k": 6, "top_p": 0.7, "allowed": [[(2, 8), (10, 19)]]},
]
FAMILY_WISE = 1e-3


def final_distribution(logits: np.ndarray, case: dict) -> np.ndarray:
    """Probabilities left by the filters, in float64; the logits have no ties."""
    p = np.exp(logits.astype(np.float64) / case.get("temperature", 1.0))
    inside = np.zeros(len(p), dtype=bool)
    for lo, hi in case.get("allowed", [[(0, len(p))]])[0]:
        inside[lo:hi] = True
    p[~inside] = 0
    if "top_k" in case:
        p[p < np.sort(p)[-case["top_k"]]] = 0
    p /= p.sum()
    above = np.array([p[p > x].sum() for x in p])
    p[above >= case.get("top_p", 1.1)] = 0
    p[p < case.get("min_p", 0) * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("vary", ["step", "seed"])
def test_frequencies(case, vary):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, 20).astype(np.float32)
    p = final_distribution(logits, case)
    rows = torch.from_numpy(logits).expand(DRAWS, 20)
    token = sample(rows, **{vary: torch.arange(DRAWS)}, **case).token.numpy()
    counts = np.bincount(token, minlength=20)
    assert (counts[p == 0] == 0).all()
    pvalue = stats.chisquare(counts[p > 0], DRAWS * p[p > 0]).pvalue
    assert pvalue > FAMILY_WISE / (2 * len(CASES))


def test_logprob_and_kept_describe_the_final_distribution():
    logits = np.random.default_rng(6).normal(0, 1.5, 50).astype(np.float32)
    case = {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.02}
    p = final_distribution(logits, case)
    got = sample(torch.from_numpy(logits).expand(200, 50), step=torch.arange(200), **case)
    assert (got.kept == (p > 0).sum()).all()
    assert np.allclose(got.logprob, np.log(p[got.token]), atol=2e-6)


@pytest.mark.parametrize("gap", [18.0, 10.0])
def test_tail_is_neither_cut_nor_inflated(gap):
    """One likely id and 65,535 that lie `gap` nats below it."""
    vocab, draws = 65536, 10_000 if gap > 15 else 1_000
    logits = torch.full((1, vocab), -gap)
    logits[0, 12345] = 0.0
    rows = logits.expand(draws, vocab)
    token = sample(rows, seed=11, step=torch.arange(draws)).token
    hits = int((token != 12345).sum())
    mass = (vocab - 1) * math.exp(-gap)
    p = mass / (1 + mass)
    z = (hits - draws * p) / math.sqrt(draws * p * (1 - p))
    assert abs(z) < 3.5, f"{hits} hits, expected {draws * p:.1f}"
    if gap > 15:
        assert hits > 0


def test_seeds_are_all_used():
    """Rows with seeds 1..4 draw apart; equal seeds draw alike."""
    rows = torch.zeros(4, 50_000)
    apart = sample(rows, seed=torch.tensor([1, 2, 3, 4])).token
    assert len(set(apart.tolist())) == 4
    assert len(set(sample(rows, seed=torch.tensor([1, 1, 1, 1])).token.tolist())) == 1
    assert len(set(sample(rows, step=torch.tensor([1, 2, 3, 4])).token.tolist())) == 4
    high = sample(rows, seed=torch.tensor([1, 1 + 2**32, 1 + 2**62, -1])).token
    assert len(set(high.tolist())) == 4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_draw_does_not_depend_on_its_batch(backend):
    torch.manual_seed(2)
    groups, vocab = 6, 700
    logits = torch.randn(2 * groups, vocab) * 3
    streams = torch.randperm(2 * groups).to(torch.int32).reshape(groups, 2)
    parameters = {
        "weights": torch.randn(groups, 2),
        "temperature": torch.tensor([0.0, 0.5, 1.0, 1.5, 1.0, 0.9]),
        "top_k": torch.tensor([0, 1, 40, 0, 2000, 33], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 0.9, 0.5, 1.0, 0.99, 0.0]),
        "seed": torch.arange(groups),
        "step": torch.arange(groups) * 7,
    }
    whole = sample(logits, streams=streams, backend=backend, **parameters)
    order = torch.randperm(groups)
    shuffled = sample(
        logits,
        streams=streams[order],
        backend=backend,
        **{name: value[order] for name, value in parameters.items()},
    )
    assert_same_bits(shuffled, Sample(*(x[order] for x in whole)))
    for g in range(groups):
        alone = sample(
            logits[streams[g].long()],
            streams=torch.tensor([[0, 1]], dtype=torch.int32),
            backend=backend,
            **{name: value[g : g + 1] for name, value in parameters.items()},
        )
        assert_same_bits(alone, Sample(*(x[g : g + 1] for x in whole)))


def test_noise_belongs_to_the_id_not_to_its_rank():
    """Narrowing the set leaves the noise of the ids in it as it was."""
    logits = torch.zeros(1, 100)
    for seed in range(50):
        token = sample(logits, seed=seed).token.item()
        around = [[(max(0, token - 3), token + 1)]]
        assert sample(logits, seed=seed, allowed=around).token.item() == token
