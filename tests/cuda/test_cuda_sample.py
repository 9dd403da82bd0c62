"""The CUDA kernels return the bits of the reference and of the CPU library: sets of every size, and bad values."""

import numpy as np
import pytest
import torch
from cases import DTYPES, SIZES, assert_same_bits, random_arguments
from kernels import Kernels

from fastdecode.ops import TokenSets, sample
from fastdecode.ops.cuda_library import SampleArgs, filled
from fastdecode.ops.sample.cpu import sample_fields

INF = torch.inf
LARGE = (16384, 16385, 17000, 65536, 70001)


@pytest.mark.parametrize("part", range(4))
def test_random_groups_of_small_sets(kernels: Kernels, part: int):
    share = np.array([1 / (size + 200) for size in SIZES])
    choose = np.random.default_rng(part)
    drawn = statuses = 0
    for case in range(part, 1200, 4):
        vocab = int(choose.choice(SIZES, p=share / share.sum()))
        arguments = random_arguments(np.random.default_rng([case, vocab]), vocab, DTYPES[case % 3], most_groups=8)
        expected = sample(**arguments, backend="reference")
        kernels.seed(case)
        assert_same_bits(kernels.sample(**arguments), expected)
        drawn += int((expected.status == 0).sum())
        statuses |= sum(1 << s for s in set(expected.status.tolist()))
    assert drawn > 800
    assert statuses == 0b111


@pytest.mark.parametrize("vocab", LARGE)
def test_random_groups_of_large_vocabularies(kernels: Kernels, vocab: int):
    drawn = 0
    for case in range(12):
        arguments = random_arguments(np.random.default_rng([case, vocab]), vocab, DTYPES[case % 3], most_groups=3)
        expected = sample(**arguments, backend="reference" if case < 3 else "cpu")
        kernels.seed(case)
        assert_same_bits(kernels.sample(**arguments), expected)
        drawn += int((expected.status == 0).sum())
    assert drawn > 8


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"top_k": 50},
        {"top_k": 65535},
        {"top_p": 0.9},
        {"top_p": 0.9, "top_k": 1000},
        {"top_p": 0.5, "min_p": 0.1},
        {"temperature": 0.0},
        {"contrast": (0.1, 40), "temperature": 0.0},
        {"contrast": (0.5, 10**6), "top_p": 0.95},
        {"top_p": torch.tensor([1.0, 0.3, 0.9, 0.0]), "top_k": torch.tensor([0, 0, 7, 70000], dtype=torch.int32)},
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_filters_of_large_sets(kernels: Kernels, given: dict, dtype: torch.dtype):
    """Four groups of two streams: random, ties, mostly −inf, and flat ones with a few that stand out."""
    torch.manual_seed(0)
    logits = torch.randn(8, 65536) * 3
    logits[2:4] = logits[2:4].round()
    logits[4:6, torch.rand(65536) < 0.999] = -INF
    logits[6:8] = 0
    logits[6, ::9999] = 2
    streams, weights = torch.arange(8, dtype=torch.int32).view(4, 2), torch.tensor([[3.0, -2.0]]).expand(4, 2)
    given = {"streams": streams, "weights": weights.contiguous(), "seed": torch.arange(4), **given}
    expected = sample(logits.to(dtype), **given, backend="cpu")
    assert expected.status.tolist() == [0] * 4
    assert_same_bits(kernels.sample(logits.to(dtype), **given), expected)


def test_groups_without_an_answer_among_large_sets(kernels: Kernels):
    """NaN, +inf, nothing but −inf, no ids, and z that overflows: each in a chunk of its own or in all."""
    logits = torch.randn(7, 40000)
    logits[1, 39999] = torch.nan
    logits[2, 20000] = INF
    logits[3] = -INF
    logits[5, 30000] = 3e38
    temperature = torch.tensor([1.0, 1, 1, 1, 1, 0.1, 0])
    sets = TokenSets([[(0, 40000)], []])
    index = torch.tensor([0, 0, 0, 0, 1, 0, 0], dtype=torch.int32)
    for more in ({}, {"top_p": 0.9}, {"contrast": (0.1, 3)}):
        given = {"allowed": sets, "set_index": index, "temperature": temperature, **more}
        expected = sample(logits, **given, backend="cpu")
        assert expected.status.tolist() == [0, 1, 1, 1, 2, 1, 0]
        assert_same_bits(kernels.sample(logits, **given), expected)


def test_sets_with_holes_and_of_many_sizes(kernels: Kernels):
    """Sizes up to the bound that is given; a set beyond it gets status 1, and a wide one of few ids is drawn from."""
    sizes = (1, 1023, 1024, 1025, 16385, 30000)
    sets = TokenSets.from_ids([range(0, 65536, 2), *(range(7, 7 + 2 * n, 2) for n in sizes), [0, 65535]], 65536)
    groups = len(sets)
    logits, index = torch.randn(groups, 65536), torch.arange(groups, dtype=torch.int32)
    for more in ({"top_k": 20}, {"top_p": 0.97}):
        given = {"allowed": sets, "set_index": index, "seed": torch.arange(groups), **more}
        expected = sample(logits, **given, backend="cpu")
        assert_same_bits(kernels.sample(logits, **given, largest=32768), expected)
        bounded = kernels.sample(logits, **given, largest=30000)
        assert bounded.status.tolist() == [1] + [0] * (groups - 1)
        assert torch.equal(bounded.token[1:], expected.token[1:])


def test_launches(emulated: Kernels):
    """One for sets of at most 16,384 ids; for larger ones two, four with a filter and three more with contrast."""
    logits, sets = torch.randn(2, 65536), TokenSets([[(10, 16394)]])
    emulated.launches()
    for given, launches in (
        ({"allowed": sets, "largest": 16384, "top_p": 0.9}, 1),
        ({"min_p": 0.1}, 2),
        ({"top_p": 0.9}, 4),
        ({"top_k": torch.zeros(2, dtype=torch.int32)}, 4),
        ({"contrast": (0.1, 5)}, 5),
        ({"contrast": (0.1, 5), "top_k": 9}, 7),
    ):
        emulated.sample(logits, **given)
        assert emulated.launches() == launches


def test_sets_of_many_ranges(kernels: Kernels):
    """More than are listed at a time, and empty ones among them."""
    sets = TokenSets.from_ids([range(0, 5000, 2), range(1, 5000, 7), [], [4999]], 5000)
    index = torch.tensor([0, 1, 2, 3, 0], dtype=torch.int32)
    given = {"allowed": sets, "set_index": index, "seed": torch.arange(5), "top_p": 0.95}
    logits = torch.randn(5, 5000)
    assert_same_bits(kernels.sample(logits, **given), sample(logits, **given, backend="reference"))


def test_all_values_alike_or_far_apart(kernels: Kernels):
    """Of 9,000 equal values a histogram's bin holds the sum of all masses; the others span every exponent."""
    logits = torch.zeros(3, 9000)
    logits[1] = torch.logspace(-38, 38, 9000) * torch.tensor([1.0, -1.0]).repeat(4500)
    logits[2, ::2] = torch.finfo(torch.float32).min
    for given in ({"top_k": 4567}, {"top_p": 0.37}, {"top_p": 0.99, "top_k": 8999}, {"min_p": 0.5}):
        assert_same_bits(kernels.sample(logits, **given), sample(logits, **given, backend="reference"))


def test_wrong_values_in_device_memory_fail_their_group_alone(kernels: Kernels):
    vocab, groups = 100, 12
    logits = torch.randn(groups, vocab)
    expected = sample(logits, seed=torch.arange(groups), backend="reference")
    good = {
        "streams": torch.arange(groups, dtype=torch.int32).unsqueeze(1),
        "weights": torch.ones(groups, 1),
        "temperature": torch.ones(groups),
        "top_p": torch.ones(groups),
        "min_p": torch.zeros(groups),
        "penalty": torch.ones(groups),
        "set_index": torch.zeros(groups, dtype=torch.int32),
    }
    ranges = [[0, vocab], [5, 3], [0, 50], [40, 60], [-3, 50], [0, vocab + 1]]
    offsets = [0, 1, 2, 4, 5, 6, 3, 6]
    ranges, offsets = torch.tensor(ranges, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int32)
    wrong = [
        ("streams", groups),
        ("streams", -2),
        ("weights", INF),
        ("temperature", -1.0),
        ("top_p", 1.5),
        ("min_p", float("nan")),
        ("penalty", 0.0),
        *(("set_index", i) for i in (-1, 7, 1, 2, 3)),
    ]
    sets_alone = [("set_index", 4), ("set_index", 5), ("top_p", float("nan"))]
    for cases in (wrong[: groups - 1], wrong[groups - 1 :] + sets_alone):
        args, out = kernels.arguments(logits, streams=good["streams"], seed=torch.arange(groups))
        changed = {name: tensor.clone() for name, tensor in good.items()}
        for g, (name, value) in enumerate(cases):
            changed[name].view(groups)[g] = value
        parameters = {name: (changed[name], 0) for name in ("temperature", "top_p", "min_p", "penalty")}
        args = args._replace(
            **parameters,
            streams=changed["streams"],
            weights=changed["weights"],
            set_index=changed["set_index"],
            seen=torch.zeros(groups, 4, dtype=torch.int32),  # a penalty needs it
            allowed=TokenSets.from_tensors(ranges, offsets),
        )
        kernels.sample_raw(filled(SampleArgs, sample_fields(args, out)))
        bad = len(cases)
        assert out.status.tolist() == [1] * bad + [0] * (groups - bad), cases
        assert out.token.tolist() == [-1] * bad + expected.token[bad:].tolist()
