"""`torch.ops.fastdecode`: torch's checks of an operation, and `torch.compile` without a graph break."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from cases import assert_same_bits, random_arguments
from test_advance import assert_same_state, copy, random_state, random_tables
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastdecode.ops import DecodeState, Sample, TokenSets, advance, last_backend, sample, sample_advance
from fastdecode.ops.sample.traced import call_sample

OPS = torch.ops.fastdecode
GROUPS, ROWS, VOCAB = 4, 8, 90


def streams() -> torch.Tensor:
    return torch.arange(ROWS, dtype=torch.int32).view(GROUPS, 2)


def flat(tables, state: DecodeState) -> tuple:
    """Positional arguments of the two operations that walk a grammar."""
    sets = (tables.sets.ranges, tables.sets.offsets, tables.sets.largest)
    grammar = (tables.set_of, tables.tight_set_of, tables.room, tables.forced, tables.following, tables.class_ranges)
    return (*sets, *grammar, tables.vocab, state.mode, state.step, state.finished)


def rest(state: DecodeState) -> dict[str, torch.Tensor | None]:
    names = [f.name for f in fields(DecodeState)][3:]
    return {name: getattr(state, name) for name in names}


def all_clean(result: dict[str, str]) -> bool:
    return len(result) == 4 and set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_sample_is_clean(backend: str):
    sets = TokenSets([[(3, 40)], [(0, 90)]])
    per_group = {
        "temperature": torch.full((GROUPS,), 0.7),
        "top_k": torch.full((GROUPS,), 20, dtype=torch.int32),
        "seed": torch.arange(GROUPS),
        "step": torch.arange(GROUPS),
    }
    arguments = {"streams": streams(), "ranges": sets.ranges, "set_offsets": sets.offsets, "backend": backend}
    for options in ({}, {"temperature_value": 0.5, "top_p_value": 0.9, "seed_value": 2**63 - 1}, per_group):
        assert all_clean(torch.library.opcheck(OPS.sample, (torch.randn(ROWS, VOCAB),), {**arguments, **options}))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_advance_and_sample_advance_are_clean(backend: str):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        tables = random_tables(rng, VOCAB)
        state = random_state(rng, tables, GROUPS, ROWS)
        options = {**rest(state), "streams": streams(), "backend": backend}
        token = torch.tensor(rng.integers(0, VOCAB, GROUPS))
        assert all_clean(torch.library.opcheck(OPS.advance, (token, *flat(tables, state)), options))
        logits = (torch.randn(ROWS, VOCAB), *flat(tables, state))
        assert all_clean(torch.library.opcheck(OPS.sample_advance, logits, {**options, "top_p_value": 0.9}))


@pytest.mark.parametrize("case", range(8))
def test_every_argument_of_sample_arrives(case: int):
    """Random arguments through the flat operation give what the function gives."""
    arguments = random_arguments(np.random.default_rng(case), 300, torch.float32)
    expected = sample(**arguments)
    arguments.setdefault("allowed", None)
    assert_same_bits(call_sample(arguments.pop("logits"), **arguments), expected)


def compiled(function):
    """Traced whole and run without a code generator: what breaks a graph breaks it here too."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_sample_in_a_whole_graph():
    sets = TokenSets([[(3, 40)], [(0, 90)]])
    weights = torch.tensor([[3.0, -2.0]]).repeat(GROUPS, 1)

    def draw(logits: torch.Tensor, temperature: torch.Tensor, step: int) -> Sample:
        drawn = sample(
            logits * 2.0,
            streams=streams(),
            weights=weights,
            allowed=sets,
            temperature=temperature,
            top_p=0.9,
            contrast=(0.1, 2),
            seed=5,
            step=step,
        )
        return drawn._replace(logprob=drawn.logprob * 1.0)

    graph = compiled(draw)
    temperature = torch.linspace(0, 1, GROUPS)
    for step in range(5):
        logits = torch.randn(ROWS, VOCAB)
        assert_same_bits(graph(logits, temperature, step), draw(logits, temperature, step))
    assert last_backend() == "cpu"


def test_a_step_in_a_whole_graph():
    """Logits, draw and advance of a made-up model, ten steps, against the same without the compiler."""
    rng = np.random.default_rng(3)
    tables = random_tables(rng, VOCAB)
    start = random_state(rng, tables, GROUPS, ROWS)
    start.limit, start.inputs = None, torch.zeros(ROWS, dtype=torch.int64)
    start.sequences = start.lengths = None
    embedding = torch.randn(VOCAB, VOCAB)

    def step(state: DecodeState) -> Sample:
        logits = embedding[state.inputs].sin() * 4
        drawn = sample_advance(logits, tables, state, streams=streams(), top_p=0.9, seed=1)
        advance(drawn.token, tables, state, streams=streams())
        return drawn

    graph = compiled(step)
    state, expected = copy(start), copy(start)
    for _ in range(10):
        assert_same_bits(graph(state), step(expected))
        assert_same_state(state, expected)
    assert not torch.equal(state.step, start.step)


def test_sets_must_be_made_outside_of_a_graph():
    with pytest.raises(Exception, match=r"allowed: must be TokenSets under torch\.compile, made outside"):
        compiled(lambda logits: sample(logits, allowed=[[(0, 9)]]).token)(torch.zeros(1, 9))


@pytest.mark.parametrize(
    ("ranges", "offsets", "message"),
    [
        ([[0, 9]], [0, 2], r"set_offsets\[-1\] = 2: there are 1 ranges"),
        ([[0, 9]], [1, 0], "set_offsets"),
        ([[0, 9], [5, 7]], [0, 2], "sorted and disjoint"),
        ([[0, 91]], [0, 1], "leaves the vocabulary of 90 tokens"),
        ([[0, 9, 1]], [0, 1], r"ranges: must be \(n, 2\) int32"),
        ([[0, 9]], [0], r"set_offsets: must be \(sets \+ 1,\) int32"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_tables_raise(ranges, offsets, message, backend):
    tables = {
        "ranges": torch.tensor(ranges, dtype=torch.int32),
        "set_offsets": torch.tensor(offsets, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        OPS.sample(torch.zeros(1, VOCAB), **tables, backend=backend)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("set_of", 7, "set_of"),
        ("forced", VOCAB, "forced"),
        ("following", 9, "following"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_grammars_raise(name, value, message, backend):
    rng = np.random.default_rng(0)
    tables = random_tables(rng, VOCAB)
    state = random_state(rng, tables, GROUPS, GROUPS)
    state.finished.zero_()
    getattr(tables, name).fill_(value)
    options = {**rest(state), "backend": backend}
    options["inputs"] = options["lengths"] = None
    with pytest.raises(ValueError, match=message):
        OPS.sample_advance(torch.zeros(GROUPS, VOCAB), *flat(tables, state), **options)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_ranges_of_classes_that_come_as_tensors_must_be_sorted(backend):
    tables = random_tables(np.random.default_rng(0), VOCAB)
    tables.class_ranges = torch.tensor([[12, 16, 0], [0, 4, 0]], dtype=torch.int32)
    state = random_state(np.random.default_rng(0), tables, GROUPS, GROUPS)
    state.finished.zero_()
    options = {**rest(state), "backend": backend} | {"inputs": None, "lengths": None}
    with pytest.raises(ValueError, match=r"class_ranges.*sorted"):
        OPS.advance(torch.zeros(GROUPS, dtype=torch.int64), *flat(tables, state), **options)


@pytest.mark.parametrize("contrast", [(7.0, 1), (0.1, 0), (0.1, 2, 3)])
def test_a_wrong_contrast_is_refused_in_a_graph_too(contrast):
    with pytest.raises(Exception, match="contrast"):
        compiled(lambda logits: sample(logits, contrast=contrast).token)(torch.zeros(1, 9))
    with pytest.raises(ValueError, match="contrast"):
        OPS.sample(torch.zeros(1, 9), contrast_alpha=0.5, contrast_k=-5)
    with pytest.raises(ValueError, match="contrast"):
        OPS.sample(torch.zeros(1, 9), contrast_alpha=0.5)


def test_tracers_record_the_operation():
    """Not the empty tensors that it writes to."""
    logits = torch.randn(3, 20)
    expected = sample(logits, temperature=0.0).token
    graph = make_fx(lambda x: sample(x, temperature=0.0).token)(logits)
    assert "fastdecode.sample" in graph.code
    assert torch.equal(graph(logits), expected)
    traced = torch.jit.trace(lambda x: sample(x, temperature=0.0).token, logits)
    assert torch.equal(traced(logits), expected)
    with FakeTensorMode() as mode:
        assert sample(mode.from_tensor(logits)).token.shape == (3,)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_is_negated_later_is_read_negated(backend: str):
    logits = torch.randn(2, 20)
    negated = torch._neg_view(logits)
    assert_same_bits(sample(negated, backend=backend), sample(-logits, backend=backend))
    weights = torch._neg_view(torch.tensor([[-1.0], [2.0]]))
    assert_same_bits(
        sample(logits, weights=weights, backend=backend), sample(logits, weights=weights.clone(), backend=backend)
    )


def test_a_subclass_without_a_mind_of_its_own_is_a_tensor():
    class Named(torch.Tensor):
        pass

    logits = torch.randn(2, 20)
    assert torch.equal(sample(logits.as_subclass(Named)).token.as_subclass(torch.Tensor), sample(logits).token)
