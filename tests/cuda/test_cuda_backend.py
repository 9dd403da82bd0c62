"""`backend="cuda"` of `fastdecode.ops`: the functions themselves, over the emulated library, and on a GPU."""

import ctypes
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_same_bits, random_arguments, random_logits
from test_advance import assert_same_state, copy, random_state, random_streams, random_tables

from fastdecode.ops import (
    DecodeState,
    TokenSets,
    advance,
    available_backends,
    cuda_library,
    last_backend,
    linear,
    sample,
    sample_advance,
    unavailable,
)
from fastdecode.ops import backends as chosen_backends
from fastdecode.ops.advance.traced import call_sample_advance
from fastdecode.ops.cuda_library import CudaLibrary
from fastdecode.ops.sample.checks import check_arguments
from fastdecode.ops.sample.cpu import sample_fields
from fastdecode.ops.sample.traced import call_sample

MISSING = "libfastdecode_cuda.so.2 is not installed: FASTDECODE_CUDA=1 pip install . builds it, with nvcc"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library is looked for again, and after the test once more."""
    cuda_library.cuda_library.cache_clear()
    yield
    monkeypatch.undo()
    cuda_library.cuda_library.cache_clear()


@pytest.fixture
def on_host(emulation: Path, loads: None, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(cuda_library, "PATH", emulation)
    monkeypatch.setattr(cuda_library, "ON_HOST", True)
    return ctypes.CDLL(str(emulation))


@pytest.mark.parametrize("vocab", [1, 97, 1025, 16400])
def test_sample(on_host: ctypes.CDLL, vocab: int):
    statuses: set[int] = set()
    for case in range(30 if vocab < 2000 else 4):
        arguments = random_arguments(np.random.default_rng([case, vocab]), vocab, DTYPES[case % 3], most_groups=4)
        expected = sample(**arguments, backend="reference")
        got = sample(**arguments, backend="cuda")
        assert last_backend() == "cuda"
        assert_same_bits(got, expected)
        statuses |= set(expected.status.tolist())
    assert 0 in statuses


def test_advance(on_host: ctypes.CDLL):
    """The same state as the reference, with and without streams."""
    for case in range(60):
        rng = np.random.default_rng(case)
        vocab, groups = int(rng.integers(1, 200)), int(rng.integers(0, 6))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected = copy(state)
        token = torch.tensor(rng.integers(-1, vocab, groups))
        advance(token, tables, expected, streams=streams, backend="reference")
        advance(token, tables, state, streams=streams, backend="cuda")
        assert last_backend() == "cuda"
        assert_same_state(state, expected)


@pytest.mark.parametrize("traced", [False, True])
def test_sample_advance(on_host: ctypes.CDLL, traced: bool):
    """Called as a function, and as an operation of torch."""
    run = call_sample_advance if traced else sample_advance
    for case in range(40):
        rng = np.random.default_rng(case)
        vocab, groups = 16500 if case % 10 == 0 else int(rng.integers(1, 200)), int(rng.integers(1, 5))
        tables = random_tables(rng, vocab)
        streams, rows = random_streams(rng, groups)
        state = random_state(rng, tables, groups, rows)
        expected_state = copy(state)
        logits = random_logits(rng, rows, vocab, DTYPES[case % 3])
        given = {"streams": streams, "top_p": 0.9, "seed": torch.arange(groups), "temperature": 0.8}
        expected = sample_advance(logits, tables, expected_state, **given, backend="reference")
        assert_same_bits(run(logits, tables, state, **given, backend="cuda"), expected)
        assert last_backend() == "cuda"
        assert_same_state(state, expected_state)


def test_the_operation_of_torch_takes_the_name(on_host: ctypes.CDLL):
    logits = torch.randn(3, 50)
    sets = TokenSets([[(3, 40)]])
    expected = sample(logits, allowed=sets, seed=5, backend="reference")
    given = {"streams": None, "weights": None, "set_index": None, "seen": None, "noise": None, "contrast": None}
    numbers = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0, "seed": 5, "step": 0}
    assert_same_bits(call_sample(logits, allowed=sets, **given, **numbers, backend="cuda"), expected)
    assert last_backend() == "cuda"


def test_sets_that_are_empty_and_groups_that_are_none(on_host: ctypes.CDLL):
    assert sample(torch.randn(2, 9), allowed=[[]], backend="cuda").status.tolist() == [2, 2]
    assert sample(torch.randn(0, 9), backend="cuda").token.tolist() == []


def test_bad_values_raise_as_elsewhere(on_host: ctypes.CDLL):
    logits = torch.randn(2, 9)
    for given, said in (
        ({"temperature": -1.0}, "temperature = -1"),
        ({"top_p": torch.tensor([0.5, 1.5])}, r"top_p\[1\] = 1.5"),
        ({"set_index": torch.tensor([0, 3], dtype=torch.int32)}, r"set_index\[1\] = 3"),
    ):
        for backend in ("reference", "cuda"):
            with pytest.raises(ValueError, match=f"^{said}"):
                sample(logits, **given, backend=backend)


def test_a_refused_launch_raises(on_host: ctypes.CDLL):
    on_host.fake_cuda_refuse_launches(True)
    try:
        with pytest.raises(RuntimeError, match=r"^CUDA: cudaErrorInvalidValue: invalid argument$"):
            sample(torch.randn(2, 9), backend="cuda")
    finally:
        on_host.fake_cuda_refuse_launches(False)


def test_it_runs_on_the_current_stream_of_the_tensors_device(emulation: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: the call is captured from that stream, and writes when the graph is launched."""
    runtime, stream, graph = ctypes.CDLL(str(emulation)), ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    asked: list[tuple[str, torch.device]] = []

    def current_stream(device: torch.device) -> SimpleNamespace:
        asked.append(("stream", device))
        return SimpleNamespace(cuda_stream=stream.value)

    def current_device(device: torch.device) -> nullcontext:
        asked.append(("device", device))
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "device", current_device)
    logits = torch.randn(2, 50)
    args = check_arguments(logits, None, None, None, None, 1.0, 0, 1.0, 0.0, 1.0, None, None, 7, 0, None)
    out = sample(logits, seed=8)
    before, expected = [part.clone() for part in out], sample(logits, seed=7)
    assert runtime.cudaStreamBeginCapture(stream, 0) == 0
    CudaLibrary(emulation, on_host=False).sample(sample_fields(args, out), 50, logits.device)
    assert runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    assert asked == [("device", logits.device), ("stream", logits.device)]
    assert all(torch.equal(part, was) for part, was in zip(out, before, strict=True))
    assert runtime.cudaGraphLaunch(graph, stream) == 0
    assert_same_bits(out, expected)
    runtime.cudaGraphDestroy(graph)
    runtime.cudaStreamDestroy(stream)


def test_what_the_variable_names(on_host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch):
    """Tokens are drawn with it; a step's other operations, which it does not have, run as without it."""
    logits, weight = torch.randn(2, 16), torch.randn(8, 16)
    assert sample(logits).token.shape == (2,)
    assert last_backend() == "cpu"
    monkeypatch.setattr(chosen_backends, "_default", "cuda")
    sample(logits)
    assert last_backend() == "cuda"
    linear(logits, weight)
    assert last_backend() == "cpu"
    with pytest.raises(ValueError, match=r"^backend = 'cuda': has no such operation; must be cpu, triton or"):
        linear(logits, weight, backend="cuda")


def test_it_says_why_it_cannot_run(
    emulation: Path, loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    cuda_library._no_gpu.cache_clear()
    request.addfinalizer(cuda_library._no_gpu.cache_clear)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    library = tmp_path / cuda_library.PATH.name
    monkeypatch.setattr(cuda_library, "PATH", library)
    assert unavailable("cuda") == f"{MISSING}; no GPU that torch can use"
    assert "cuda" not in available_backends()
    library.write_text("no library")
    said = unavailable("cuda")
    assert said is not None
    assert said.startswith(f"{library.name} cannot be loaded: ")
    assert said.endswith("; no GPU that torch can use")
    monkeypatch.setattr(cuda_library, "PATH", emulation)
    assert unavailable("cuda") == "no GPU that torch can use"
    with pytest.raises(ValueError, match=r"^backend = 'cuda': not available: no GPU that torch can use$"):
        sample(torch.randn(2, 9), backend="cuda")
    cuda_library._no_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unavailable("cuda") is None
    with pytest.raises(ValueError, match=r"^backend = 'cuda': needs tensors on a GPU, logits are on cpu$"):
        sample(torch.randn(2, 9), backend="cuda")


def moved(state: DecodeState, device: str) -> DecodeState:
    parts = {field.name: getattr(state, field.name) for field in fields(state)}
    return DecodeState(**{name: None if part is None else part.to(device) for name, part in parts.items()})


@pytest.mark.parametrize("vocab", [3000, 17000])
def test_backend_on_device(gpu: None, vocab: int):
    """A call on another stream, and three replays of a captured one: the bits of the CPU."""
    reason = unavailable("cuda")
    if reason is not None:
        pytest.skip(reason)
    tables, groups = random_tables(np.random.default_rng(vocab), vocab), 4
    logits = torch.randn(groups, vocab)
    there, on_gpu = tables.to("cuda"), logits.to("cuda")
    given = {"top_p": 0.9, "seed": 3}
    expected = sample(logits, **given, backend="cpu")
    with torch.cuda.stream(torch.cuda.Stream()):
        got = sample(on_gpu, **given, backend="cuda")
        torch.cuda.current_stream().synchronize()
    assert_same_bits(type(got)(*(part.cpu() for part in got)), expected)

    state = random_state(np.random.default_rng(vocab), tables, groups, groups)
    state_there = moved(state, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = sample_advance(on_gpu, there, state_there, **given, backend="cuda")
    for _ in range(3):
        wanted = sample_advance(logits, tables, state, **given, backend="cpu")
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(type(drawn)(*(part.cpu() for part in drawn)), wanted)
    assert_same_state(moved(state_there, "cpu"), state)
