"""``examples/cpp_server`` returns the tokens that the same requests get in Python, however it batches them."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from linking import ROOT, build_example, config, moved_build, run

from fastdecode.grammar import compile_grammar
from fastdecode.models.chameleon import Vocabulary
from fastdecode.ops import DecodeState, sample_advance, seen_bits

EXAMPLE = ROOT / "examples" / "cpp_server"
STRICT = ("-Wall", "-Wextra", "-Werror")
REQUESTS = 300
BEGIN_SEQUENCE, END_SEQUENCE, BEGIN_IMAGE, END_IMAGE = range(4)
FIRST_IMAGE, FIRST_TEXT, VOCAB, BLOCK = 4, 1028, 4096, 64
MAX_STREAMS, MAX_LIMIT = 3, 220

GRAMMAR = compile_grammar(
    "interleaved-text-image",
    Vocabulary(
        size=VOCAB,
        code_ids=tuple(range(FIRST_IMAGE, FIRST_TEXT)),
        image_length=BLOCK,
        context=MAX_LIMIT,
        bos=BEGIN_SEQUENCE,
        pad=None,
        begin_image=BEGIN_IMAGE,
        end_image=END_IMAGE,
        placeholder=BEGIN_SEQUENCE,  # there is none; this one is banned as well
    ),
    [END_SEQUENCE],
)


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    h = a + b * np.uint32(2654435761)
    h = (h ^ h >> np.uint32(15)) * np.uint32(2246822519)
    return h ^ h >> np.uint32(13)


def unsigned(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def prefill(prompt: list[int]) -> int:
    cache = unsigned(0)
    for token in prompt:
        cache = mix(cache, unsigned(token))
    return int(cache[0])


def step_model(cache: np.ndarray, lengths: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Logits of rows, (rows, VOCAB)."""
    context = mix(mix(cache, lengths.astype(np.uint32)), inputs.astype(np.uint32))
    h = mix(context[:, None], np.arange(VOCAB, dtype=np.uint32)[None])
    logits = (h >> np.uint32(20)).astype(np.float32) / np.float32(512)
    logits[:, BEGIN_IMAGE] += 4
    logits[:, END_SEQUENCE] += 3
    return logits


@dataclass
class Request:
    prompts: list[list[int]]
    weights: list[float]
    text: tuple[float, ...]  # temperature, top_k, top_p, min_p, penalty
    picture: tuple[float, ...]
    limit: int

    @classmethod
    def make(cls, n: int) -> "Request":
        noise = mix(unsigned(n), np.arange(2 + n % 7, dtype=np.uint32)) % (VOCAB - FIRST_TEXT)
        prompt = [BEGIN_SEQUENCE, *(FIRST_TEXT + noise).tolist()]
        prompts, weights = [
            ([prompt], [1.0]),
            ([prompt, prompt[:1]], [3.0, -2.0]),
            ([prompt, prompt[:1]], [1.5, -0.5]),
            ([prompt, prompt[:2], prompt[:1]], [3.0, -1.75, -0.25]),
        ][n % 4]
        return cls(
            prompts,
            weights,
            (0.0, 0, 1.0, 0.0, 1.0) if n % 5 == 4 else (0.75, 0, 0.9375, 0.0, 1.25 if n % 3 == 0 else 1.0),
            [(1.0, 0, 1.0, 0.0625, 1.0), (0.875, 100, 0.9375, 0.0, 1.0), (0.875, 0, 0.9375, 0.0, 1.0)][n % 3],
            20 + int(mix(unsigned(n), unsigned(99))[0]) % (MAX_LIMIT - 19),
        )


def decode(numbers: list[int], backend: str) -> list[str]:
    """The lines of these requests, decoded in one batch."""
    requests = [Request.make(n) for n in numbers]
    groups = len(requests)
    shape = (groups, MAX_STREAMS)
    cache, prompt_lengths = np.zeros(shape, np.uint32), np.zeros(shape, np.int64)
    guides, rows = np.zeros(shape, np.float32), np.full(shape, -1)
    for g, request in enumerate(requests):
        for k, prompt in enumerate(request.prompts):
            cache[g, k], prompt_lengths[g, k] = prefill(prompt), len(prompt)
            guides[g, k], rows[g, k] = request.weights[k], g * MAX_STREAMS + k
    prompts = [r.prompts[0] + [-1] * (9 - len(r.prompts[0])) for r in requests]
    state = DecodeState(
        mode=torch.full((groups,), GRAMMAR.start([]), dtype=torch.int32),
        step=torch.zeros(groups, dtype=torch.int64),
        finished=torch.zeros(groups, dtype=torch.uint8),
        limit=torch.tensor([r.limit for r in requests]),
        inputs=torch.zeros(groups * MAX_STREAMS, dtype=torch.int64),
        lengths=torch.zeros(groups * MAX_STREAMS, dtype=torch.int64),
        seen=seen_bits(torch.tensor(prompts), VOCAB),
        sequences=torch.full((groups, MAX_LIMIT), -1),
    )
    inputs, lengths = state.inputs.numpy().reshape(shape), state.lengths.numpy().reshape(shape)
    inputs[:, 0], lengths[:, 0] = [r.prompts[0][-1] for r in requests], prompt_lengths[:, 0]
    text, picture = (np.array([getattr(r, name) for r in requests], np.float32) for name in ("text", "picture"))
    first = np.arange(MAX_STREAMS) == 0
    was_drawing = np.zeros(groups, bool)
    logits = torch.zeros(groups * MAX_STREAMS, VOCAB)
    totals = [0.0] * groups
    while not state.finished.all():
        drawing = np.array([GRAMMAR.in_picture(mode) for mode in state.mode.tolist()])
        begins = (drawing & ~was_drawing)[:, None] & ~first
        inputs[begins], lengths[begins] = BEGIN_IMAGE, prompt_lengths[begins] + 1
        was_drawing = drawing
        present = (rows >= 0) & (drawing[:, None] | first)
        live = present & (state.finished.numpy() == 0)[:, None]
        logits.numpy()[rows[live]] = step_model(cache[live], lengths[live], inputs[live])
        temperature, top_k, top_p, min_p, penalty = np.where(drawing[:, None], picture, text).T.copy()
        drawn = sample_advance(
            logits,
            GRAMMAR.tables,
            state,
            streams=torch.from_numpy(np.where(present, rows, -1).astype(np.int32)),
            weights=torch.from_numpy(np.where(drawing[:, None], guides, first.astype(np.float32))),
            temperature=torch.from_numpy(temperature),
            top_k=torch.from_numpy(top_k.astype(np.int32)),
            top_p=torch.from_numpy(top_p),
            min_p=torch.from_numpy(min_p),
            penalty=torch.from_numpy(penalty),
            seed=torch.tensor([1000 + n for n in numbers]),
            backend=backend,
        )
        for g, (status, logprob) in enumerate(zip(drawn.status.tolist(), drawn.logprob.tolist(), strict=True)):
            totals[g] += logprob if status == 0 else 0.0
    assert (state.finished == 1).all()
    return [
        f"{n} {total:.4f} {' '.join(map(str, ids[:length]))}"
        for n, total, ids, length in zip(numbers, totals, state.sequences.tolist(), state.step.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return decode(list(range(REQUESTS)), "cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built against the installed package by one command."""
    program = tmp_path_factory.mktemp("server") / "server"
    flags = config("--cflags", "--libs")
    run("g++", "-std=c++17", "-O2", "-pthread", *STRICT, EXAMPLE / "server.cpp", *flags, "-o", program)
    return program


@pytest.mark.parametrize(
    ("workers", "slots", "threads"),
    [(2, 8, 1), (1, 1, 1), (1, 64, 3), (3, 5, 2), (8, 3, 4), (2, 400, 0), (40, 16, 2)],
)
def test_the_lines_are_those_of_python_however_they_are_batched(server, expected, workers, slots, threads):
    options = f"--requests {REQUESTS} --workers {workers} --slots {slots} --threads {threads}"
    assert run(server, *options.split()).splitlines() == expected


def test_fewer_requests_than_slots(server, expected):
    assert run(server, "--requests", 5, "--slots", 9).splitlines() == expected[:5]


def test_a_few_through_the_reference(expected):
    numbers = [3, 24, 86, 113, 114, 295]
    assert decode(numbers, "reference") == [expected[n] for n in numbers]


def test_every_sequence_parses(expected):
    kinds = {END_SEQUENCE: ".", BEGIN_IMAGE: "[", END_IMAGE: "]"}
    endings, pictures = set(), 0
    for number, line in enumerate(expected):
        ids = [int(word) for word in line.split()[2:]]
        written = "".join(kinds.get(i, "i" if FIRST_IMAGE <= i < FIRST_TEXT else "t") for i in ids)
        assert re.fullmatch(rf"(t|\[i{{{BLOCK}}}\])*\.?", written)
        assert written.endswith(".") or len(ids) == Request.make(number).limit
        endings.add(written[-1])
        pictures += written.count("[")
    assert endings == {".", "t", "]"}
    assert pictures > REQUESTS / 2


def test_with_cmake_and_the_installed_package(tmp_path, expected):
    [prefix] = config("--cmake-prefix")
    build_example(EXAMPLE, tmp_path, prefix, f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}")
    assert run(tmp_path / "server").splitlines() == expected


@pytest.mark.long
def test_with_a_plain_cmake_build_that_was_moved(tmp_path, tmp_path_factory, expected):
    build_example(EXAMPLE, tmp_path, moved_build(tmp_path_factory))
    assert run(tmp_path / "server").splitlines() == expected


@pytest.mark.parametrize(
    ("options", "isa", "message"),
    [
        ("--workers 0", "", "--workers 0: must be a whole number from 1 to 256"),
        ("--slots 2x", "", "--slots 2x: must be a whole number from 1 to 4096"),
        ("--threads -1", "", "--threads -1: must be a whole number from 0 to 256"),
        ("--requests", "", "--requests: must be followed by a whole number from 1 to 1000000"),
        ("--batch 3", "", "--batch: must be --requests, --workers, --slots, --threads or --device"),
        ("--device gpu", "", "--device gpu: must be cpu, cuda or cuda-graph"),
        ("--device", "", "--device: must be cpu, cuda or cuda-graph"),
        (
            "--device cuda",
            "",
            "--device cuda: this server was built without the CUDA library; build fastdecode where nvcc is, with",
        ),
        (
            "--workers 3",
            "none",
            "FASTDECODE_CPU_ISA = none: must be portable, avx2, avx512 or avx512bf16",
        ),  # of the library
    ],
)
def test_errors_are_one_plain_line(server, options, isa, message):
    environment = {**os.environ, "FASTDECODE_CPU_ISA": isa} if isa else None
    done = subprocess.run([server, *options.split()], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"server: {message}")
    assert done.stderr.count("\n") == 1
