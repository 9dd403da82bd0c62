"""The CUDA kernels' own lines, run on the CPU: the reference's bits for small and large sets, and for advance."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))

from cases import DTYPES, SIZES, assert_same_bits, random_arguments, random_logits
from emulated import ROOT, Emulated, SampleArgs, filled
from test_advance import advance_by_hand, assert_same_state, copy, random_state, random_streams, random_tables

from fastdecode.ops import TokenSets, cpu, sample, sample_advance

INF = torch.inf


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("part", range(4))
def test_random_groups_of_small_sets(emulated: Emulated, part: int):
    share = np.array([1 / (size + 200) for size in SIZES])
    choose = np.random.default_rng(part)
    drawn = statuses = 0
    for case in range(part, 1200, 4):
        vocab = int(choose.choice(SIZES, p=share / share.sum()))
        arguments = random_arguments(np.random.default_rng([case, vocab]), vocab, DTYPES[case % 3], most_groups=8)
        expected = sample(**arguments, backend="reference")
        emulated.seed(case)
        assert_same_bits(emulated.sample(**arguments), expected)
        drawn += int((expected.status == 0).sum())
        statuses |= sum(1 << s for s in set(expected.status.tolist()))
    assert drawn > 800
    assert statuses == 0b111


def test_one_launch_for_small_sets(emulated: Emulated):
    emulated.launches()
    sets = TokenSets([[(10, 16394)]])
    logits = torch.randn(2, 65536)
    got = emulated.sample(logits, largest=16384, allowed=sets, top_p=0.9)
    assert emulated.launches() == 1
    assert_same_bits(got, sample(logits, allowed=sets, top_p=0.9, backend="reference"))


def test_sets_of_many_ranges(emulated: Emulated):
    """More than are listed at a time, and empty ones among them."""
    sets = TokenSets.from_ids([range(0, 5000, 2), range(1, 5000, 7), [], [4999]], 5000)
    index = torch.tensor([0, 1, 2, 3, 0], dtype=torch.int32)
    given = {"allowed": sets, "set_index": index, "seed": torch.arange(5), "top_p": 0.95}
    logits = torch.randn(5, 5000)
    assert_same_bits(emulated.sample(logits, **given), sample(logits, **given, backend="reference"))


def test_all_values_alike_or_far_apart(emulated: Emulated):
    """Of 9,000 equal values a histogram's bin holds the sum of all masses; the others span every exponent."""
    logits = torch.zeros(3, 9000)
    logits[1] = torch.logspace(-38, 38, 9000) * torch.tensor([1.0, -1.0]).repeat(4500)
    logits[2, ::2] = torch.finfo(torch.float32).min
    for given in ({"top_k": 4567}, {"top_p": 0.37}, {"top_p": 0.99, "top_k": 8999}, {"min_p": 0.5}):
        assert_same_bits(emulated.sample(logits, **given), sample(logits, **given, backend="reference"))


def test_wrong_values_in_device_memory_fail_their_group_alone(emulated: Emulated):
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
        args, out = emulated.arguments(logits, streams=good["streams"], seed=torch.arange(groups))
        changed = {name: tensor.clone() for name, tensor in good.items()}
        for g, (name, value) in enumerate(cases):
            changed[name].view(groups)[g] = value
        parameters = {name: (changed[name], 0) for name in ("temperature", "top_p", "min_p", "penalty")}
        args = args._replace(
            **parameters,
            streams=changed["streams"],
            weights=changed["weights"],
            set_index=changed["set_index"],
            allowed=TokenSets.from_tensors(ranges, offsets),
        )
        emulated.sample_raw(filled(SampleArgs, cpu._sample_fields(args, out)))
        bad = len(cases)
        assert out.status.tolist() == [1] * bad + [0] * (groups - bad), cases
        assert out.token.tolist() == [-1] * bad + expected.token[bad:].tolist()


def test_errors_are_sentences(emulated: Emulated):
    args, out = emulated.arguments(torch.randn(2, 50), temperature=0.5)
    fields = cpu._sample_fields(args, out)
    for changes, said in (
        ({"temperature_value": -1.0}, "temperature = -1: must be finite and >= 0"),
        ({"top_p_value": 2.0}, "top_p = 2: must be in [0, 1]"),
        ({"min_p_value": float("nan")}, "min_p = nan: must be in [0, 1]"),
        ({"penalty_value": 0.0}, "penalty = 0: must be finite and > 0"),
        ({"vocab": 2**22 + 1}, "vocab = 4194305: must be in [0, 4194304]"),
        ({"dtype": 3}, "dtype = 3: must be a fastdecode_dtype"),
        ({"token": None}, "token, logprob, kept and status must not be NULL"),
        ({"groups": 3}, "streams = NULL: needs streams_per_group = 1 and groups <= rows"),
        ({"sets": 1}, "set_offsets = NULL: must be given with sets > 0"),
        ({"size": 8}, "args->size = 8: this library expects"),
    ):
        struct = filled(SampleArgs, fields)
        for name, value in changes.items():
            setattr(struct, name, value)
        with pytest.raises(ValueError, match=re.escape(said)):
            emulated.sample_raw(struct)


def test_advances_as_by_hand(emulated: Emulated):
    for case in range(400):
        rng = np.random.default_rng(case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(0, 6)) + 200 * (case % 20 == 0)
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        token = torch.tensor(rng.integers(-1, vocab, groups))
        advance_by_hand(token, tables, expected, streams)
        emulated.seed(case)
        emulated.advance(token, tables, state, streams, rows)
        assert_same_state(state, expected)


def test_advance_fails_what_does_not_fit_together(emulated: Emulated):
    """Mode, step, token and row out of range: such a group fails, and nothing else of it changes."""
    rng = np.random.default_rng(1)
    tables, groups = random_tables(rng, 50), 6
    state = random_state(rng, tables, groups, groups)
    state = replace(state, finished=torch.zeros(groups, dtype=torch.uint8), limit=None)
    state = replace(state, mode=torch.tensor([-1, tables.modes, 0, 0, 0, 0], dtype=torch.int32))
    state.step[2:] = torch.tensor([-1, 2**62, 0, 0])
    before = copy(state)
    streams = torch.tensor([[0], [1], [2], [3], [4], [groups]], dtype=torch.int32)
    token = torch.tensor([1, 1, 1, 1, 50, 1])
    if state.inputs is None:
        state.inputs, before.inputs = torch.zeros(groups).long(), torch.zeros(groups).long()
    emulated.advance(token, tables, state, streams, groups)
    ended = tables.set_index(0, 1 << 30) < 0 and int(tables.forced[0]) < 0
    assert not ended
    assert state.finished.tolist() == [2] * groups
    assert_same_state(replace(state, finished=before.finished), before)


def check_sample_advance(emulated: Emulated, cases: range, vocabularies: tuple[int, int], largest: int = 0) -> None:
    statuses: set[int] = set()
    for case in cases:
        rng = np.random.default_rng(1000 + case)
        vocab, groups = int(rng.integers(*vocabularies)), int(rng.integers(1, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected_state = copy(state)
        logits = random_logits(rng, rows, vocab, DTYPES[case % 3])
        given = {
            "streams": streams,
            "temperature": torch.tensor(rng.choice([0.0, 0.7], groups), dtype=torch.float32),
            "top_p": float(rng.choice([0.5, 1.0])),
            "top_k": int(rng.choice([0, 3])),
            "penalty": 1.3 if state.seen is not None else 1.0,
            "seed": torch.tensor(rng.integers(0, 2**40, groups)),
        }
        expected = sample_advance(logits, tables, expected_state, **given, backend="reference")
        emulated.seed(case)
        got = emulated.sample_advance(logits, tables, state, largest, **given)
        assert_same_bits(got, expected)
        assert_same_state(state, expected_state)
        statuses |= set(expected.status.tolist())
    assert statuses == {0, 1, 2, 3}


def test_sample_advance(emulated: Emulated):
    check_sample_advance(emulated, range(200), (1, 200))


def test_ptx_keeps_products_and_sums_apart(tmp_path: Path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    target = tmp_path / "library.ptx"
    source = ROOT / "csrc/cuda/library.cu"
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    command = [nvcc, "-std=c++17", "-arch=compute_80", "-fmad=false", "-ptx", *include, str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=300)
    text = target.read_text()
    assert "div.rn.f32" in text
    assert not re.findall(r"fma\.|mad\.[^lhw]*f32|\.ftz|\.approx", text)
