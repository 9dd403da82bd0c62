"""Random arguments of `sample`, and comparison of its results bit by bit."""

import numpy as np
import torch

from fastdecode.ops import Sample, TokenSets, seen_bits

SIZES = (1, 2, 31, 32, 33, 63, 257, 500, 1000, 5000, 8192)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def assert_same_bits(got: Sample, expected: Sample) -> None:
    for name, a, b in zip(Sample._fields, got, expected, strict=True):
        assert a.dtype == b.dtype, name
        if a.dtype == torch.float32:
            a, b = a.view(torch.int32), b.view(torch.int32)
        assert torch.equal(a, b), f"{name}: {a.tolist()} != {b.tolist()}"


def random_logits(rng: np.random.Generator, rows: int, vocab: int, dtype: torch.dtype):
    """Rows with ties, -inf and, rarely, invalid or huge values, at a random row stride."""
    kind = rng.integers(5)
    values = rng.normal(0, rng.choice([0.1, 1, 5, 30]), (rows, vocab))
    if kind == 1:
        values = np.round(values)
    if kind == 2:
        values[rng.random((rows, vocab)) < 0.5] = -np.inf
    if kind == 3:
        values[rng.integers(rows), rng.integers(vocab)] = rng.choice([np.nan, np.inf, 3e38, -3e38])
    if kind == 4:
        values = np.full((rows, vocab), rng.choice([0.0, -0.0, -np.inf, 1e-40, -1e30]))
        values[:, rng.integers(vocab)] = rng.choice([0.0, -np.inf, 1.0])
    padded = torch.full((rows, vocab + int(rng.integers(4))), float("nan"))
    padded[:, :vocab] = torch.from_numpy(values).float()
    return padded.to(dtype)[:, :vocab]


def random_sets(rng: np.random.Generator, vocab: int) -> TokenSets:
    sets = []
    for _ in range(rng.integers(1, 4)):
        cuts = rng.integers(0, vocab + 1, 2 * rng.integers(0, 5))
        sets.append([(min(pair), max(pair)) for pair in cuts.reshape(-1, 2).tolist()])
    return TokenSets(sets, vocab)


def random_arguments(rng: np.random.Generator, vocab: int, dtype: torch.dtype, most_groups: int = 5) -> dict:
    """Keyword arguments of `sample`, logits included, each parameter left out at times."""
    groups, width = int(rng.integers(1, most_groups + 1)), int(rng.integers(1, 6))
    rows = int(rng.integers(1, 2 * groups + 1))
    streams = rng.integers(0, rows, (groups, width))
    streams[rng.random((groups, width)) < 0.2] = -1
    weights = rng.choice([1.0, -1.0, 3.0, -2.0, 0.0, 0.37, 1.7], (groups, width))

    def f32(values):
        return torch.tensor(rng.choice(values, groups), dtype=torch.float32)

    optional = {
        "streams": torch.tensor(streams, dtype=torch.int32),
        "weights": torch.tensor(weights, dtype=torch.float32),
        "allowed": random_sets(rng, vocab),
        "temperature": f32([0.0, 0.3, 0.7, 1.0, 1.3, 100.0, 1e-30, 1e30]),
        "top_k": torch.tensor(rng.choice([-1, 0, 1, 2, 31, 32, 33, 50, 2000, 2**31 - 1], groups), dtype=torch.int32),
        "top_p": f32([0.0, 1e-6, 0.3, 0.9, 0.9999999, 1.0]),
        "min_p": f32([0.0, 1e-30, 0.01, 0.2, 1.0]),
        "seed": torch.tensor(rng.integers(-(2**63), 2**63 - 1, groups)),
        "step": torch.tensor(rng.integers(0, 2**40, groups)),
    }
    chosen = {name: value for name, value in optional.items() if rng.random() < 0.6}
    if "streams" not in chosen:
        rows = groups
        if "weights" in chosen:
            chosen["weights"] = chosen["weights"][:, :1].contiguous()
    if "allowed" in chosen and rng.random() < 0.7:
        sets = len(chosen["allowed"])
        chosen["set_index"] = torch.tensor(rng.integers(0, sets, groups), dtype=torch.int32)
    if rng.random() < 0.5:
        chosen["penalty"] = f32([0.5, 1.0, 1.2, 3.0])
        chosen["seen"] = seen_bits(torch.tensor(rng.integers(-1, vocab, (groups, vocab))), vocab)
    if rng.random() < 0.2:
        chosen["contrast"] = (float(rng.choice([0.0, 0.01, 0.5, 1.0])), int(rng.choice([1, 2, 40, 10**6])))
    if rng.random() < 0.2:
        noise = rng.choice([0.0, 1.5, -1.0, -np.inf, np.nan, np.inf], (groups, vocab))
        chosen["noise"] = torch.tensor(noise, dtype=torch.float32)
    return {"logits": random_logits(rng, rows, vocab, dtype), **chosen}
