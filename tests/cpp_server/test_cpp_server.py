"""``examples/cpp_server`` decodes a checkpoint without Python, and answers with the tokens that Python generates."""

import ctypes
import subprocess
import threading

import pytest
import torch
from isas import DECODE_ISAS, need
from linking import build_example, config, moved_build
from models_for_tests import drawing_model, text_ids
from server_requests import (
    BLOCKS,
    END,
    EXAMPLE,
    LINES,
    REQUESTS,
    STRICT,
    Request,
    answer,
    ask,
)

from fastdecode.decoder import Decoder


def test_the_requests_try_everything(expected: list[str]):
    pictures: dict[str, list[int]] = {}
    for request, line in zip(REQUESTS, expected, strict=True):
        pictures.setdefault(request.mode, []).append(line.split().count(str(END)))
    assert set(pictures) == {"text-only", "image-only", "interleaved-text-image"}
    assert all(count == 1 for count in pictures["image-only"])
    assert max(pictures["interleaved-text-image"]) > 1  # text comes between them
    ends = [line.endswith(" 2") for line in expected]
    assert any(ends)
    assert not all(ends)


@pytest.mark.parametrize(
    ("workers", "slots", "threads"),
    [(1, 1, 1), (1, 8, 1), (1, 64, 3), pytest.param(3, 2, 2, marks=pytest.mark.long), (4, 3, 0)],
)
def test_the_answers_are_those_of_python_however_they_are_batched(server, expected, workers, slots, threads):
    assert ask(server, LINES, "--workers", workers, "--slots", slots, "--threads", threads) == expected


def test_requests_wait_for_pages(server, expected):
    # The longest request fills the context, 32 pages, and its pictures 5: it runs alone, others by twos and threes.
    assert ask(server, LINES, "--slots", 8, "--pages", 37) == expected


@pytest.mark.long
@pytest.mark.parametrize("isa", DECODE_ISAS)
def test_every_instruction_set(server, expected, isa, monkeypatch):
    need(isa)
    monkeypatch.setenv("FASTDECODE_CPU_ISA", isa)
    assert ask(server, LINES) == expected  # tokens, not logits: these differ by their rounding


def test_an_answer_comes_before_the_end_of_the_input(server, expected):
    with subprocess.Popen([server, BLOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(60, process.kill)  # rather than wait for ever for a line
        late.start()
        for number in (0, 6):
            process.stdin.write(f"{LINES[number]}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{1 if number == 0 else 2} {expected[number]}\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        late.cancel()


SETTINGS = {
    "plain": {},
    "norms behind, few heads of keys": {"swin_norm": True, "kv_heads": 2},
    "biases, image tokens anywhere": {"bias": True, "scattered": True},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_checkpoints(server, tmp_path, name):
    model = drawing_model(11, **SETTINGS[name])
    model.save_pretrained(tmp_path)
    requests = [
        Request(text_ids(model, seed, 3 + seed), mode, 60, 2.0, seed, {"temperature": 1.0}, {"temperature": 1.0})
        for seed in range(4)
        for mode in ("text-only", "image-only", "interleaved-text-image")
    ]
    expected = [answer(request.expected(model)) for request in requests]
    begin = model.config.vocabulary_map["<racm3:break>"]
    assert sum(f" {begin} " in line for line in expected[2::3]) > 1
    assert ask(server, [request.line for request in requests], model=tmp_path) == expected


@pytest.fixture
def rotation_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has Python rotate queries and keys by the cos and sin of the C library, as the server does.

    torch's own differ in the last bit. A float32 model hardly notices; where activations are rounded to bfloat16, a
    token differs once in a while.
    """
    libm = ctypes.CDLL("libm.so.6")
    for name, arguments in (("cosf", 1), ("sinf", 1), ("powf", 2)):
        function = getattr(libm, name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments

    def table(self: Decoder, positions: torch.Tensor) -> torch.Tensor:
        theta, n = self.model.config.rope_parameters["rope_theta"], self.head_dim
        turns = [torch.tensor(1.0) / libm.powf(theta, torch.tensor(2 * i / n)) for i in range(n // 2)]
        angles = [[float(p * turn) for turn in turns] for p in positions.float()]
        cos = torch.tensor([[libm.cosf(a) for a in row] * 2 for row in angles])
        sin = torch.tensor([[sign * libm.sinf(a) for sign in (-1, 1) for a in row] for row in angles])
        return torch.stack((cos, sin))

    monkeypatch.setattr(Decoder, "_rope_table", table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_two_bytes_are_read_where_they_lie(server, tmp_path, dtype, rotation_of_c):
    model = drawing_model(12).to(dtype)
    model.save_pretrained(tmp_path)
    requests = [Request(text_ids(model, seed, 5), "interleaved-text-image", 25) for seed in range(6)]
    expected = [answer(request.expected(model)) for request in requests]
    assert ask(server, [request.line for request in requests], model=tmp_path) == expected


# --- builds -----------------------------------------------------------------------------------------------------------


def test_with_cmake_and_the_installed_package(tmp_path, expected):
    [prefix] = config("--cmake-prefix")
    build_example(EXAMPLE, tmp_path, prefix, f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}")
    assert ask(tmp_path / "server", LINES) == expected


@pytest.mark.long
def test_with_a_plain_cmake_build_that_was_moved(tmp_path, tmp_path_factory, expected):
    build_example(EXAMPLE, tmp_path, moved_build(tmp_path_factory))
    assert ask(tmp_path / "server", LINES) == expected
