"""Hypothesis strategies for difficult arguments of `sample`, and for wrong ones."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from fastdecode.ops import TokenSets, seen_bits

INF = math.inf
INT64 = (-(2**63), 2**63 - 1)
LARGEST = float(np.finfo(np.float32).max)
SUBNORMAL = float(np.float32(1e-45))

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, -30.0, SUBNORMAL, -SUBNORMAL, 1e-38, -1e-38, 88.0, 1e30, -1e30]
HUGE = [LARGEST, -LARGEST, 65504.0, -65504.0, 3.3e38]
# Below the largest: where exp is 0, where a mass rounds to 0 or to 1 or 2, and where tiles are passed over.
EDGES = [-86.0, -29.0, -41 * math.log(2), -40 * math.log(2), -math.log(2**41 / 3), -28.0, -1.0, -2.0, -3.5, -7.0, -10.0]


def f32(low: float | None = None, high: float | None = None, **options) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_nan=False, **options)


def neighbours(value: float, count: int) -> list[float]:
    """The float32 number nearest to value, and the next ``count`` on either side."""
    up = down = np.float32(value)
    found = [float(up)]
    with np.errstate(over="ignore"):  # behind the largest lies infinity
        for _ in range(count):
            up, down = np.nextafter(up, np.float32(INF)), np.nextafter(down, np.float32(-INF))
            found += [float(up), float(down)]
    return [x for x in found if math.isfinite(x)]


@st.composite
def palettes(draw: st.DrawFn) -> list[float]:
    """Values that a row's logits are made of, finite or -inf."""
    kind = draw(st.sampled_from(["few", "adjacent", "edges", "equal", "lonely", "bits", "huge", "spread"]))
    if kind == "few":
        values = draw(st.lists(st.sampled_from(SPECIAL) | f32(-100, 100), min_size=1, max_size=6))
    elif kind == "adjacent":
        values = neighbours(draw(st.sampled_from(SPECIAL) | f32(allow_infinity=False)), draw(st.integers(1, 40)))
    elif kind == "edges":
        top = draw(st.sampled_from([0.0, 1.0, 50.0, -50.0, 0.1]))
        depths = draw(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4))
        values = [top, *(x for depth in depths for x in neighbours(float(np.float32(top + depth)), 2))]
    elif kind == "equal":
        values = [draw(st.sampled_from(SPECIAL + HUGE))]
    elif kind == "lonely":
        values = [draw(f32(-1000, 1000)), *[-INF] * draw(st.integers(1, 50))]
    elif kind == "bits":
        values = draw(st.lists(f32(allow_infinity=False), min_size=1, max_size=8))
    elif kind == "huge":
        values = draw(st.lists(st.sampled_from(HUGE + SPECIAL), min_size=1, max_size=4))
    else:
        scale = draw(st.sampled_from([0.01, 1.0, 6.0, 30.0]))
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        values = rng.normal(0, scale, draw(st.sampled_from([30, 1000]))).tolist()
    if draw(st.integers(0, 3)) == 0:
        values = [*values, -INF]
    return values


@st.composite
def logits(draw: st.DrawFn, rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """(rows, vocab) at some row stride, with what lies between the rows poisoned; rarely NaN or +inf in a row."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.empty((rows, vocab), dtype=np.float32)
    for row in values:
        palette = np.array(draw(palettes()), dtype=np.float32)
        row[:] = rng.choice(palette, vocab)
        if draw(st.integers(0, 12)) == 0:
            row[rng.integers(vocab)] = draw(st.sampled_from([math.nan, INF]))
    if draw(st.integers(0, 8)) == 0 and rows > 1:
        values[1:] = values[0]
    pad = draw(st.sampled_from([0, 1, 7, 64]))
    memory = torch.full((rows, vocab + pad), math.nan, dtype=dtype)
    memory[:, :vocab] = torch.from_numpy(values).to(dtype)
    return memory[:, :vocab]


@st.composite
def token_sets(draw: st.DrawFn, vocab: int) -> TokenSets:
    sets = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["ranges", "ids", "all", "one", "none"]))
        if kind == "ranges":
            cuts = sorted(draw(st.lists(st.integers(0, vocab), max_size=12)))
            sets.append(list(zip(cuts[::2], cuts[1::2], strict=False)))
        elif kind == "ids":
            rng = np.random.default_rng(draw(st.integers(0, 2**16)))
            ids = np.flatnonzero(rng.random(min(vocab, 600)) < draw(st.sampled_from([0.02, 0.5])))
            sets.append([(int(i), int(i) + 1) for i in ids])
        elif kind == "all":
            sets.append([(0, vocab)])
        elif kind == "one":
            only = draw(st.integers(0, vocab - 1))
            sets.append([(only, only + 1)])
        else:
            sets.append([])
    return TokenSets(sets, vocab)


def parameters(vocab: int) -> dict[str, tuple[st.SearchStrategy, torch.dtype]]:
    unit = f32(0, 1) | st.sampled_from([0.0, SUBNORMAL, 1e-30, 1e-7, 0.5, 0.9, *neighbours(1.0, 1)[::2], 1.0])
    counts = [-1, 0, 1, 2, 15, 16, 31, 32, 33, vocab - 1, vocab, vocab + 1, 2**31 - 1, -(2**31)]
    numbers = st.integers(*INT64) | st.sampled_from([0, 1, -1, 2**32, 2**32 - 1, 2**31, *INT64])
    warmth = f32(0, LARGEST) | st.sampled_from([0.0, SUBNORMAL, 1e-38, 1e-3, 0.7, 1.0, 2.0, 1e30, LARGEST])
    penalties = f32(SUBNORMAL, LARGEST) | st.sampled_from([SUBNORMAL, 0.5, 1.0, 1.2, 1e10, LARGEST])
    return {
        "temperature": (warmth, torch.float32),
        "top_k": (st.integers(1, vocab + 3) | st.sampled_from([c for c in counts if c <= 2**31 - 1]), torch.int32),
        "top_p": (unit.filter(lambda p: p <= 1), torch.float32),
        "min_p": (unit.filter(lambda p: p <= 1), torch.float32),
        "penalty": (penalties, torch.float32),
        "seed": (numbers, torch.int64),
        "step": (numbers, torch.int64),
    }


@st.composite
def arguments(draw: st.DrawFn, sizes: list[int]) -> dict:
    """Valid keyword arguments of `sample`, logits included."""
    vocab = draw(st.sampled_from(sizes) | st.integers(1, 200))
    most = 4 if vocab < 3000 else 2
    groups, width = draw(st.integers(1, most)), draw(st.integers(1, 4))
    rows = draw(st.integers(1, 2 * most))
    chosen: dict = {}
    if draw(st.booleans()):
        row = st.integers(-1, rows - 1)
        table = draw(st.lists(st.lists(row, min_size=width, max_size=width), min_size=groups, max_size=groups))
        chosen["streams"] = torch.tensor(table, dtype=torch.int32)
    else:
        rows, width = groups, 1
    if draw(st.booleans()):
        weight = st.sampled_from([1.0, -1.0, 3.0, -2.0, 0.0, -0.0, 0.1]) | f32(-10, 10) | f32(allow_infinity=False)
        table = draw(st.lists(st.lists(weight, min_size=width, max_size=width), min_size=groups, max_size=groups))
        chosen["weights"] = torch.tensor(table, dtype=torch.float32)
    if draw(st.booleans()):
        sets = chosen["allowed"] = draw(token_sets(vocab))
        if draw(st.booleans()):
            index = draw(st.lists(st.integers(0, len(sets) - 1), min_size=groups, max_size=groups))
            chosen["set_index"] = torch.tensor(index, dtype=torch.int32)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if draw(st.integers(0, 2)) == 0:
        chosen["seen"] = seen_bits(torch.from_numpy(rng.integers(-1, vocab, (groups, max(1, vocab // 2)))), vocab)
    for name, (values, dtype) in parameters(vocab).items():
        how = draw(st.sampled_from(["none", "scalar", "tensor"]))
        if how == "none" or (name == "penalty" and "seen" not in chosen):
            continue
        if how == "scalar":
            chosen[name] = draw(values)
        else:
            chosen[name] = torch.tensor(draw(st.lists(values, min_size=groups, max_size=groups)), dtype=dtype)
    if draw(st.integers(0, 4)) == 0:
        k = st.integers(1, vocab + 2) | st.sampled_from([1, 2**22, 2**22 + 1, 2**40])
        alpha = f32(0, 1) | st.sampled_from([0.0, 1.0, SUBNORMAL])
        chosen["contrast"] = (draw(alpha), draw(k))
    if draw(st.integers(0, 4)) == 0:
        palette = [0.0, 1.5, -1.0, -INF, INF, math.nan, LARGEST, -LARGEST, *draw(palettes())]
        noise = torch.from_numpy(rng.choice(palette, (groups, vocab + 3)).astype(np.float32))
        chosen["noise"] = noise[:, :vocab]
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    return {"logits": draw(logits(rows, vocab, dtype)), **chosen}
