"""Contrast against contrastive decoding as its papers define it: in probabilities, in float64, without the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdecode.ops import STATUS_INVALID_LOGITS, STATUS_OK

GROUPS = 1000
PAIRS = torch.arange(2 * GROUPS, dtype=torch.int32).view(GROUPS, 2)
APART = {"streams": PAIRS, "weights": torch.tensor([[1.0, -1.0]]).expand(GROUPS, 2).contiguous()}


def log_softmax(z: np.ndarray) -> np.ndarray:
    top = z.max(1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(1, keepdims=True))


def cd_k(expert: np.ndarray, amateur: np.ndarray, alpha: float, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(groups, tokens): the scores log p_expert - log p_amateur, which tokens are likely, and which are so near the
    threshold that float32 decides.
    """
    log_p, log_q = log_softmax(expert), log_softmax(amateur)
    p = np.exp(log_p)
    kth = -np.sort(-p, 1)[:, min(k, (p[0] > 0).sum()) - 1][:, None]
    equal = p == kth  # equal logits are equally likely, also after rounding
    near = (np.abs(p / (alpha * kth) - 1) < 1e-5) & ~(equal & (alpha == 1)) if alpha else np.zeros_like(equal)
    return log_p - log_q, (p > 0) & (p >= alpha * kth), near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("alpha", "k"), [(0.1, 1), (0.3, 5), (1.0, 7), (0.01, 60), (0.5, 1000), (0.0, 3)])
def test_likely_tokens_and_their_scores(sample, dtype, alpha: float, k: int):
    rng = np.random.default_rng([k, 3])
    low, high, vocab = 5, 65, 80
    logits = torch.from_numpy(rng.normal(0, 3, (2 * GROUPS, vocab)).astype(np.float32))
    logits[::6, ::7] = -torch.inf  # of experts: impossible for every token number that 7 divides
    logits[::10] = (logits[::10] * 2).round() / 2  # many ties
    logits = logits.to(dtype)
    inside = logits[:, low:high].double().numpy()
    expert, amateur = inside[::2], inside[1::2]
    given = {**APART, "allowed": [[(low, high)]], "contrast": (alpha, k)}
    greedy, drawn = sample(logits, **given, temperature=0.0), sample(logits, **given, seed=torch.arange(GROUPS))
    assert (greedy.status == STATUS_OK).all()
    decided = 0
    for holes in (np.isinf(expert).any(1), ~np.isinf(expert).any(1)):
        rows = np.flatnonzero(holes)
        scores, likely, near = cd_k(expert[rows], amateur[rows], alpha, k)
        sure = ~near.any(1)
        decided += sure.sum()
        rows, scores, likely = rows[sure], scores[sure], likely[sure]
        assert (drawn.kept.numpy()[rows] == likely.sum(1)).all()
        scores[~likely] = -np.inf
        best = greedy.token.numpy()[rows] - low
        np.testing.assert_allclose(scores[np.arange(len(rows)), best], scores.max(1), atol=1e-5, rtol=1e-5)
        token = drawn.token.numpy()[rows] - low
        assert likely[np.arange(len(rows)), token].all()
        expected = log_softmax(scores)[np.arange(len(rows)), token]
        np.testing.assert_allclose(drawn.logprob.numpy()[rows], expected, atol=2e-4)
    assert decided > 0.95 * GROUPS


def test_what_the_amateur_finds_impossible_is_never_drawn(sample):
    """log p - log 0 would be infinitely good, and 0 - 0 no number: the sampler draws neither."""
    expert, amateur = torch.zeros(1, 4), torch.tensor([[-torch.inf, -torch.inf, 0.0, 1.0]])
    expert[0, 0] = -torch.inf
    given = {"streams": PAIRS[:1], "weights": torch.tensor([[1.0, -1.0]]), "contrast": (0.5, 2)}
    drawn = sample(torch.cat([expert, amateur]), **given)
    assert (drawn.kept.item(), drawn.status.item()) == (2, STATUS_OK)
    assert sample(torch.cat([expert, amateur]), **given, temperature=0.0).token.item() == 2


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 1])
def test_what_is_no_number_fails_its_group_alone(sample, wrong: float, row: int):
    logits = torch.tensor([[0.0, 1.0, -9.0], [0.0, 1.0, 2.0]]).repeat(2, 1)
    logits[row, 2] = wrong  # of a token that contrast does not keep
    given = {"streams": PAIRS[:2], "weights": torch.tensor([[1.0, -1.0]] * 2), "contrast": (0.5, 1)}
    assert sample(logits, **given).status.tolist() == [STATUS_INVALID_LOGITS, STATUS_OK]
