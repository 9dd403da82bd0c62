"""`advance` and `sample_advance` in Triton: the cases of tests/ops/test_advance.py, and cases for devices only."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from cases import assert_same_bits, random_logits
from devices import DEVICE, INTERPRETED
from test_advance import (
    advance_by_hand,
    assert_same_state,
    copy,
    good,
    random_state,
    random_streams,
    random_tables,
)

pytest.importorskip("triton")

from fastdecode.ops import DecodeState, GrammarTables, Sample, TokenSets, advance, last_backend, sample_advance
from fastdecode.triton_kernels import advance as kernels
from fastdecode.triton_kernels.advance import launch_advance

MORE = 1 if INTERPRETED else 20


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were launched."""
    names: list[str] = []
    launch = kernels._launch

    def noting(kernel, *arguments):
        names.append(kernel.__name__)
        launch(kernel, *arguments)

    monkeypatch.setattr(kernels, "_launch", noting)
    return names


@pytest.fixture(autouse=True)
def quiet():
    """numpy, which the interpreter computes with, warns where inf and NaN are meant."""
    with np.errstate(all="ignore"):
        yield


def moved(value):
    """A tensor, tables or state on the device."""
    if isinstance(value, DecodeState):
        tensors = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: None if t is None else t.to(DEVICE) for name, t in tensors.items()})
    return value.to(DEVICE) if hasattr(value, "to") else value


def back(value):
    if isinstance(value, DecodeState):
        tensors = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: None if t is None else t.cpu() for name, t in tensors.items()})
    return Sample(*(tensor.cpu() for tensor in value))


def test_advances_as_by_hand(launches: list[str]):
    for case in range(60 * MORE):
        rng = np.random.default_rng(case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(0, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        token = torch.tensor(rng.integers(-1, vocab, groups))
        advance_by_hand(token, tables, expected, streams)
        state = moved(state)
        advance(moved(token), moved(tables), state, streams=moved(streams), backend="triton")
        assert last_backend() == "triton"
        assert_same_state(back(state), expected)
        assert launches == ["advance"] * (groups > 0)
        launches.clear()


def test_sample_advance_is_the_references(launches: list[str]):
    statuses: set[int] = set()
    for case in range(60 * MORE):
        rng = np.random.default_rng(2000 + case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(1, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        arguments = {"streams": streams, "temperature": 0.9, "top_p": 0.8, "top_k": 40, "seed": case}
        if state.seen is not None:
            arguments["penalty"] = 1.3
        logits = random_logits(rng, rows, vocab, torch.float32)
        expected = copy(state)
        drawn = sample_advance(logits, tables, expected, backend="reference", **arguments)
        state = moved(state)
        arguments["streams"] = moved(streams)
        got = sample_advance(moved(logits), moved(tables), state, backend="triton", **arguments)
        assert last_backend() == "triton"
        assert_same_bits(back(got), drawn)
        assert_same_state(back(state), expected)
        statuses.update(drawn.status.tolist())
        assert launches == ["advance_choose", "advance"]
        launches.clear()
    assert statuses == {0, 1, 2, 3}


BAD = {
    "mode": lambda state: state.mode.fill_(2),
    "negative mode": lambda state: state.mode.fill_(-1),
    "step": lambda state: state.step.fill_(-1),
    "no room": lambda state: state.step.fill_(5),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_values_in_device_memory_fail_their_group_alone(what: str):
    """The launcher, behind the checks that only the host's memory gets: nothing is written but `finished`."""
    arguments = good()
    state, other = arguments["state"], good()["state"]
    BAD[what](state)
    for name in ("mode", "step"):  # group 1 is good
        getattr(state, name)[1] = getattr(other, name)[1]
    before = copy(state)
    state = moved(state)
    streams = moved(arguments["streams"])
    launch_advance(moved(arguments["token"]), moved(arguments["tables"]), state, streams, 3)
    after = back(state)
    assert after.finished.tolist() == [2, 0]
    assert after.mode.tolist() == [before.mode[0], 1]
    assert after.step.tolist() == [before.step[0], 1]
    assert after.inputs.tolist() == [0, 0, 2]
    assert after.sequences[1].tolist() == [2, 0, 0, 0, 0]
    assert not after.sequences[0].any()


@pytest.mark.parametrize(("token", "row"), [(9, 0), (1, 3), (1, -2), (2**40, 0)])
def test_bad_tokens_and_rows_fail_their_group_alone(token: int, row: int):
    arguments = good()
    state = moved(arguments["state"])
    streams = torch.tensor([[row], [2]], dtype=torch.int32)
    launch_advance(torch.tensor([token, 2], device=DEVICE), moved(arguments["tables"]), state, moved(streams), 3)
    after = back(state)
    assert after.finished.tolist() == [2, 0]
    assert after.inputs.tolist() == [0, 0, 2]
    assert after.mode.tolist() == [0, 1]


def test_a_table_that_leads_nowhere_fails_its_group():
    tables = GrammarTables(TokenSets([[(0, 9)]]), [0], [-1], [[0]], vocab=9)
    tables.following.fill_(1)
    state = moved(good()["state"])
    launch_advance(torch.tensor([1, 2], device=DEVICE), moved(tables), state, None, 3)
    assert back(state).finished.tolist() == [2, 2]
    assert not back(state).inputs.any()
