"""`advance` and `sample_advance` of the CUDA kernels: the tables, and arguments that do not fit together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_same_bits, random_logits
from kernels import Kernels
from test_advance import advance_by_hand, assert_same_state, copy, random_state, random_streams, random_tables

from fastdecode.ops import sample_advance


def test_advances_as_by_hand(kernels: Kernels):
    for case in range(400):
        rng = np.random.default_rng(case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(0, 6)) + 200 * (case % 20 == 0)
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        token = torch.tensor(rng.integers(-1, vocab, groups))
        advance_by_hand(token, tables, expected, streams)
        kernels.seed(case)
        kernels.advance(token, tables, state, streams, rows)
        assert_same_state(state, expected)


def test_advance_fails_what_does_not_fit_together(kernels: Kernels):
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
    kernels.advance(token, tables, state, streams, groups)
    ended = tables.set_index(0, 1 << 30) < 0 and int(tables.forced[0]) < 0
    assert not ended
    assert state.finished.tolist() == [2] * groups
    assert_same_state(replace(state, finished=before.finished), before)


def check_sample_advance(kernels: Kernels, cases: range, vocabularies: tuple[int, int], largest: int = 0) -> None:
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
        kernels.seed(case)
        got = kernels.sample_advance(logits, tables, state, largest, **given)
        assert_same_bits(got, expected)
        assert_same_state(state, expected_state)
        statuses |= set(expected.status.tolist())
    assert statuses == {0, 1, 2, 3}


def test_sample_advance(kernels: Kernels):
    check_sample_advance(kernels, range(200), (1, 200))


def test_sample_advance_from_large_sets(kernels: Kernels):
    check_sample_advance(kernels, range(200, 290), (16385, 18000))


@pytest.mark.parametrize("name", ["emulated_on_device", "on_device"])
def test_a_captured_graph_goes_on_where_the_last_replay_ended(name: str, request: pytest.FixtureRequest):
    """Three replays are three calls: step, and with it the noise, is read from device memory."""
    kernels = request.getfixturevalue(name)
    for vocab in (3000, 17000):
        rng = np.random.default_rng(vocab)
        tables, groups = random_tables(rng, vocab), 5
        state = replace(random_state(rng, tables, groups, groups), finished=torch.zeros(groups, dtype=torch.uint8))
        state = replace(state, limit=None, sequences=None)
        expected_state, logits = copy(state), random_logits(rng, groups, vocab, torch.bfloat16)
        given = {"top_p": 0.9, "seed": torch.arange(groups)}
        for _ in range(3):
            expected = sample_advance(logits, tables, expected_state, **given, backend="cpu")
        kernels.replays(3)
        try:
            got = kernels.sample_advance(logits, tables, state, **given)
        finally:
            kernels.replays(0)
        assert_same_bits(got, expected)
        assert_same_state(state, expected_state)
