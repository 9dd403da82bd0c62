"""`advance` and `sample_advance`: each backend against a plain loop over groups, and bad input."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from cases import assert_same_bits, random_logits, random_sets

from fastdecode.grammar import BLOCK, DONE, MODES, TEXT, compile_grammar
from fastdecode.ops import (
    STATUS_FINISHED,
    DecodeState,
    GrammarTables,
    TokenSets,
    advance,
    last_backend,
    sample,
    sample_advance,
    seen_bits,
)
from fastdecode.ops.advance.operation import RepeatedSample
from fastdecode.vocabulary import Vocabulary

BACKENDS = ["reference", "cpu"]


def copy(state: DecodeState) -> DecodeState:
    tensors = {f.name: getattr(state, f.name) for f in fields(state)}
    return replace(state, **{name: None if tensor is None else tensor.clone() for name, tensor in tensors.items()})


def assert_same_state(got: DecodeState, expected: DecodeState) -> None:
    for field in fields(DecodeState):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), f"{field.name}: {a.tolist()} != {b.tolist()}"


def random_tables(rng: np.random.Generator, vocab: int) -> GrammarTables:
    modes, classes = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    sets = random_sets(rng, vocab)
    set_of = rng.integers(-1, len(sets), modes)
    cuts = np.unique(rng.integers(0, vocab + 1, 6)).tolist()
    return GrammarTables(
        sets,
        set_of.tolist(),
        rng.integers(-1, vocab, modes).tolist(),
        rng.integers(0, modes, (modes, classes)).tolist(),
        [(lo, hi, int(rng.integers(classes))) for lo, hi in zip(cuts[::2], cuts[1::2], strict=False)],
        vocab=vocab,
        tight_set_of=np.where(set_of < 0, -1, rng.integers(-1, len(sets), modes)).tolist(),
        room=rng.integers(0, 6, modes).tolist(),
    )


def random_state(rng: np.random.Generator, tables: GrammarTables, groups: int, rows: int) -> DecodeState:
    capacity = 12
    step = rng.integers(0, capacity, groups)
    state = DecodeState(
        mode=torch.tensor(rng.integers(0, tables.modes, groups), dtype=torch.int32),
        step=torch.tensor(step),
        finished=torch.tensor(rng.choice([0, 0, 0, 1, 2], groups), dtype=torch.uint8),
        limit=torch.tensor(step + rng.integers(-1, 9, groups)).clamp_max(capacity),
        inputs=torch.full((rows,), -7),
        lengths=torch.tensor(rng.integers(0, 99, rows)),
        seen=seen_bits(torch.tensor(rng.integers(-1, tables.vocab, (groups, 9))), tables.vocab),
        sequences=torch.full((groups, capacity), -7),
    )
    for name in ("limit", "inputs", "lengths", "seen", "sequences"):
        if rng.random() < 0.2:
            setattr(state, name, None)
    return state


def random_streams(rng: np.random.Generator, groups: int) -> tuple[torch.Tensor | None, int]:
    """Rows that no two streams share."""
    width, rows = int(rng.integers(1, 4)), int(rng.integers(3, 5)) * groups
    if rng.random() < 0.2:
        return None, groups
    streams = rng.permutation(rows)[: groups * width].reshape(groups, width)
    return torch.tensor(np.where(rng.random(streams.shape) < 0.2, -1, streams), dtype=torch.int32), rows


def at_end(tables: GrammarTables, state: DecodeState, g: int) -> bool:
    left = 10**9 if state.limit is None else int(state.limit[g] - state.step[g])
    mode = int(state.mode[g])
    return left <= 0 or (tables.set_index(mode, left) < 0 and tables.host.forced[mode] < 0)


def advance_by_hand(token, tables: GrammarTables, state: DecodeState, streams) -> None:
    for g, t in enumerate(token.tolist()):
        if state.finished[g] != 0:
            continue
        if at_end(tables, state, g) or t < 0:
            state.finished[g] = 1 if at_end(tables, state, g) else 2
            continue
        for row in [g] if streams is None else [r for r in streams[g].tolist() if r >= 0]:
            if state.inputs is not None:
                state.inputs[row] = t
            if state.lengths is not None:
                state.lengths[row] += 1
        if state.seen is not None:
            bits = state.seen[g].numpy().view(np.uint32)
            bits[t // 32] |= np.uint32(1 << t % 32)
        if state.sequences is not None:
            state.sequences[g, state.step[g]] = t
        state.mode[g] = tables.follow(int(state.mode[g]), t)
        state.step[g] += 1
        if at_end(tables, state, g):
            state.finished[g] = 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_advances_as_by_hand(backend: str):
    ended = failed = 0
    for case in range(400):
        rng = np.random.default_rng(case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(0, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        token = torch.tensor(rng.integers(-1, vocab, groups))
        advance_by_hand(token, tables, expected, streams)
        advance(token, tables, state, streams=streams, backend=backend)
        assert last_backend() == backend
        assert_same_state(state, expected)
        ended += int((expected.finished == 1).sum())
        failed += int((expected.finished == 2).sum())
    assert ended > 50
    assert failed > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_sample_advance_is_sample_and_then_advance(backend: str):
    statuses: set[int] = set()
    for case in range(200):
        rng = np.random.default_rng(1000 + case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(1, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        arguments = {"streams": streams, "temperature": 0.9, "top_p": 0.8, "top_k": 40, "seed": case}
        if state.seen is not None:
            arguments["penalty"] = 1.3
        logits = random_logits(rng, rows, vocab, torch.float32)

        before = copy(state)
        got = sample_advance(logits, tables, state, backend=backend, **arguments)
        assert last_backend() == backend

        room = 10**9 - before.step if before.limit is None else before.limit - before.step
        modes = before.mode.tolist()
        sets = [tables.set_index(m, int(left)) for m, left in zip(modes, room, strict=True)]
        if before.seen is not None:
            arguments["seen"] = before.seen
        drawn = sample(
            logits,
            allowed=tables.sets,
            set_index=torch.tensor(sets, dtype=torch.int32).clamp_min(0),
            step=before.step,
            backend="reference",
            **arguments,
        )
        for g in range(groups):
            if before.finished[g] != 0 or at_end(tables, before, g):
                values = (-1, -torch.inf, 0, STATUS_FINISHED)
            elif sets[g] < 0:
                values = (tables.host.forced[modes[g]], 0.0, 1, 0)
            else:
                continue
            for tensor, value in zip(drawn, values, strict=True):
                tensor[g] = value
        assert_same_bits(got, drawn)
        advance_by_hand(drawn.token, tables, before, streams)
        assert_same_state(state, before)
        statuses.update(got.status.tolist())
    assert statuses == {0, 1, 2, 3}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_whole_sequences_without_the_host(mode: str, backend: str):
    """Forty steps of a Chameleon's grammar on the device are those that the host's grammar allows, token by token."""
    vocabulary = Vocabulary(
        size=60, code_ids=tuple(range(20, 50)), image_length=5, context=99, bos=0, pad=1, begin_image=3, end_image=4,
        placeholder=5,
    )  # fmt: skip
    grammar = compile_grammar(mode, vocabulary, [2, 7])
    groups, limits = 8, torch.tensor([40, 40, 40, 33, 9, 8, 7, 1])
    state = DecodeState(
        mode=torch.full((groups,), grammar.start([0]), dtype=torch.int32),
        step=torch.ones(groups, dtype=torch.int64),
        finished=torch.zeros(groups, dtype=torch.uint8),
        limit=limits,
        sequences=torch.full((groups, 41), -1),
    )
    logits = torch.zeros(groups, 60)
    logits[:, 3] = 3.0
    for step in range(1, 41):
        logits[:, [2, 7]] = -9.0 if step < 30 else 2.0
        sample_advance(logits, grammar.tables, state, seed=torch.arange(groups), backend=backend)
    assert (state.finished == 1).all()
    pictures = 0
    for g, ids in enumerate(state.sequences.tolist()):
        at, length = grammar.start([0]), 1
        for token in ids[1 : int(state.step[g])]:
            index = grammar.set_index(at, length, int(limits[g]))
            ranges = [(grammar.forced[at], grammar.forced[at] + 1)] if index < 0 else grammar.sets[index]
            assert any(lo <= token < hi for lo, hi in ranges)
            at, length = grammar.advance(at, token), length + 1
            pictures += 20 <= token < 50
        assert at == DONE or length == limits[g]
        assert set(ids[length:]) == {-1}
    assert (pictures > 0) == (mode != "text-only")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draw_without_an_answer_fails_its_group_alone(backend: str):
    tables = GrammarTables(TokenSets([[(0, 4)]]), [0], [-1], [[0]], vocab=4)
    logits = torch.zeros(3, 4)
    logits[1, 2] = torch.nan
    state = DecodeState(
        torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.uint8)
    )
    for step in (1, 2):
        got = sample_advance(logits, tables, state, backend=backend)
        assert got.status.tolist() == [0, 1 if step == 1 else STATUS_FINISHED, 0]
        assert state.finished.tolist() == [0, 2, 0]
        assert state.step.tolist() == [step, 0, step]


def good() -> dict:
    tables = GrammarTables(TokenSets([[(0, 9)]]), [0, -1], [-1, 3], [[1], [0]], vocab=9)
    state = DecodeState(
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.uint8),
        inputs=torch.zeros(3, dtype=torch.int64),
        sequences=torch.zeros(2, 5, dtype=torch.int64),
    )
    return {
        "token": torch.tensor([1, 2]),
        "tables": tables,
        "state": state,
        "streams": torch.tensor([[0], [2]], dtype=torch.int32),
    }


BAD = {
    "token: must be (groups,) int64, got (2,) torch.float32": {"token": torch.zeros(2)},
    "token: must be (groups,) int64, got list": {"token": [1, 2]},
    "token[1] = 9: must be a token below 9, or -1": {"token": torch.tensor([1, 9])},
    "token[0] = -2: must be a token below 9, or -1": {"token": torch.tensor([-2, 9])},
    "tables: must be GrammarTables, got NoneType": {"tables": None},
    "mode[1] = 2: must be in [0, 2)": {"mode": torch.tensor([0, 2], dtype=torch.int32)},
    "step[0] = -1: must be in [0, 2^62)": {"step": torch.tensor([-1, 0])},
    "step[1] = 4611686018427387904: must be in [0, 2^62)": {"step": torch.tensor([0, 2**62])},
    "step[1] = 5: sequences have room for 5 tokens": {"step": torch.tensor([4, 5])},
    "finished[1] = 3: must be 0, 1 or 2": {"finished": torch.tensor([0, 3], dtype=torch.uint8)},
    "streams[1, 0] = 3: must be a row in [0, 3), or -1": {"streams": torch.tensor([[0], [3]], dtype=torch.int32)},
    "state.mode: must be (2,) torch.int32 on cpu, got (2,) torch.int64 on cpu": {"mode": torch.zeros(2).long()},
    "state.seen: must be (2, 1) torch.int32 on cpu, got (2, 2) torch.int32 on cpu": {
        "seen": torch.zeros(2, 2, dtype=torch.int32)
    },
    "streams = None: needs a row for each of the 2 groups, got 1": {
        "streams": None,
        "inputs": torch.zeros(1, dtype=torch.int64),
    },
    "state: must be a DecodeState, got NoneType": {"whole state": None},
    "state.sequences: must have room for a token": {"sequences": torch.zeros(2, 0, dtype=torch.int64)},
    "state.sequences.shape = (5,): must be (2, capacity)": {"sequences": torch.zeros(5, dtype=torch.int64)},
    "state.inputs: must be (2,) torch.int64 on cpu, got () torch.int64 on cpu": {
        "inputs": torch.zeros((), dtype=torch.int64),
        "streams": torch.tensor([[0], [1]], dtype=torch.int32),
    },
    "state.sequences: must be contiguous, since it is written in place": {
        "sequences": torch.zeros(5, 2, dtype=torch.int64).T
    },
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("message", BAD)
def test_bad_input_raises_and_nothing_is_written(message: str, backend: str):
    arguments = good()
    for name, value in BAD[message].items():
        if name == "whole state":
            with pytest.raises(ValueError, match=message):
                advance(arguments["token"], arguments["tables"], value, backend=backend)
            with pytest.raises(ValueError, match=message):
                sample_advance(torch.zeros(2, 9), arguments["tables"], value, backend=backend)
            return
        if name in arguments:
            arguments[name] = value
        else:
            setattr(arguments["state"], name, value)
    before = copy(arguments["state"])
    token = arguments.pop("token")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        advance(token, backend=backend, **arguments)
    assert_same_state(arguments["state"], before)
    del arguments["streams"]
    if message.startswith(("token", "streams", "state.seen", "state.inputs")):  # no such argument, or another message
        return
    arguments["state"].inputs = None
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sample_advance(torch.zeros(2, 9), arguments["tables"], arguments["state"], backend=backend)


def test_sample_advance_wants_one_vocabulary():
    arguments = good()
    with pytest.raises(ValueError, match=r"tables.vocab = 9: must be 10, as for logits"):
        sample_advance(torch.zeros(3, 10), arguments["tables"], arguments["state"], streams=arguments["streams"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set_of": [0, 2]}, r"set_of\[1\] = 2: must be in \[-1, 1\)"),
        ({"forced": [-1, 9]}, r"forced\[1\] = 9: must be in \[-1, 9\)"),
        ({"forced": [-1]}, r"len\(forced\) = 1: must be 2, one for each mode"),
        ({"following": [[1], [2]]}, r"following\[1\]\[0\] = 2: must be in \[0, 2\)"),
        ({"following": [[1], [2, 3]]}, r"must be \(modes,\) and \(modes, classes\), got \(2,\) and \(2, 1 or 2\)"),
        ({"following": []}, r"must be \(modes,\) and \(modes, classes\)"),
        (
            {"class_ranges": [(0, 5, 0), (4, 6, 0)]},
            r"\(4, 6, 0\) must be .* must not overlap",
        ),
        ({"class_ranges": [(0, 5, 1)]}, r"\(0, 5, 1\) must be \(lo, hi, class\) with lo < hi <= 9 and a class below 1"),
        ({"class_ranges": [(0, 5)]}, r"\(0, 5\) must be \(lo, hi, class\)"),
        ({"class_ranges": [5]}, r"class_ranges\[0\] = 5: must be a sequence of integers"),
        ({"set_of": [0.7, 1]}, r"set_of = \[0\.7, 1\]: must be a sequence of integers"),
        ({"forced": None}, r"forced = None: must be a sequence of integers"),
        ({"room": []}, r"len\(room\) = 0: must be 2"),
        ({"sets": [[(0, 9)]]}, r"sets: must be TokenSets, got list"),
        ({"room": [0, -1]}, r"room\[1\] = -1: must be in"),
        ({"sets": TokenSets([[(0, 10)]])}, r"leaves the vocabulary of 9 tokens"),
    ],
)
def test_tables_are_checked_when_they_are_made(change: dict, message: str):
    arguments = {
        "sets": TokenSets([[(0, 9)]]),
        "set_of": [0, -1],
        "forced": [-1, 3],
        "following": [[1], [0]],
        "class_ranges": [],
    }
    with pytest.raises(ValueError, match=message):
        GrammarTables(**(arguments | change), vocab=9)


def test_tables_on_a_device_are_the_same_tables():
    tables = good()["tables"]
    assert tables.to("cpu") is tables
    moved = tables.to("meta")
    assert moved.following.device.type == "meta"
    assert moved.host.following == tables.host.following


def test_the_blocks_modes_fit_the_tables():
    vocabulary = Vocabulary(
        size=60, code_ids=tuple(range(20, 50)), image_length=5, context=99, bos=0, pad=1, begin_image=3, end_image=4,
        placeholder=5,
    )  # fmt: skip
    tables = compile_grammar("interleaved-text-image", vocabulary, [2]).tables
    assert tables.follow(TEXT, 3) == BLOCK
    assert tables.follow(TEXT, 2) == DONE
    assert tables.classes == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [-(2**63), -1, 0, 1])
def test_a_sequence_beyond_its_limit_ends_without_a_token(limit: int, backend: str):
    arguments = good()
    state = arguments["state"]
    state.step += 1
    state.limit = torch.full((2,), limit)
    advance(arguments["token"], arguments["tables"], state, streams=arguments["streams"], backend=backend)
    assert state.finished.tolist() == [1, 1]
    assert state.step.tolist() == [1, 1]


@pytest.mark.parametrize("other", ["seen", "lengths", "sequences"])
def test_memory_that_is_shared_is_refused(other: str):
    tables = GrammarTables(TokenSets([[(0, 32)]]), [0], [-1], [[0]], vocab=32)
    mode = torch.zeros(1, dtype=torch.int32)
    step, finished = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.uint8)
    shared = {"seen": mode.view(1, 1), "lengths": step, "sequences": step.view(1, 1)}[other]
    state = DecodeState(mode, step, finished, **{other: shared})
    with pytest.raises(ValueError, match=f"^{other}: must not overlap {'mode' if other == 'seen' else 'step'}$"):
        advance(torch.tensor([30]), tables, state, backend="cpu")
    assert (mode.tolist(), step.tolist(), finished.tolist()) == ([0], [0], [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 32.0}, "vocab = 32.0: must be a whole number"),
        ({"vocab": True}, "vocab = True: must be a whole number"),
        ({"vocab": 32, "device": "gpu"}, "device = 'gpu': must be a device of torch, such as 'cpu' or 'cuda:0'"),
    ],
)
def test_numbers_and_devices_of_tables(change: dict, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GrammarTables(TokenSets([[(0, 32)]]), [0], [-1], [[0]], **change)


def test_tables_and_their_sets_lie_on_one_device():
    arguments = good()
    tables = arguments["tables"]
    tables.sets = tables.sets.to("meta")
    with pytest.raises(ValueError, match=r"tables\.sets\.device = meta: must be cpu"):
        sample_advance(torch.zeros(2, 9), tables, arguments["state"])


def test_a_repeated_sample_is_the_same_as_one_by_one():
    checks = 0
    for case in range(200):
        rng = np.random.default_rng(1000 + case)
        vocab, groups = int(rng.integers(2, 200)), int(rng.integers(1, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        given = {"streams": streams, "temperature": 0.8, "top_k": 5, "seed": torch.arange(groups)}
        repeated = RepeatedSample(tables, state, **given)
        buffer = torch.empty(rows + 1, vocab)
        for number in range(5):
            fresh = random_logits(rng, rows, vocab, torch.float32)
            logits = fresh.clone() if number == 3 else buffer[:rows].copy_(fresh)  # at 3 in other memory
            try:
                wanted = sample_advance(logits, tables, expected, **given, backend="cpu")
            except ValueError as error:
                with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
                    repeated(logits)
                continue
            got = repeated(logits)
            assert last_backend() == "cpu"
            assert_same_bits(got, wanted)
            assert_same_state(state, expected)
            checks += 1
    assert checks > 500


def test_a_repeated_sample_of_rows_that_overlap_reads_the_new_values():
    tables = GrammarTables(TokenSets([[(0, 8)]]), [0], [-1], [[0]], vocab=8)
    zeros = {"dtype": torch.int64}
    state = DecodeState(torch.zeros(2, dtype=torch.int32), torch.zeros(2, **zeros), torch.zeros(2, dtype=torch.uint8))
    memory = torch.zeros(12)
    logits, repeated = memory.as_strided((2, 8), (4, 1)), RepeatedSample(tables, state, temperature=0.0)
    for token in (3, 2, 1):
        memory.zero_()
        memory[token] = memory[4 + token] = 9.0
        assert repeated(logits).token.tolist() == [token, token]
