"""The cpu backend against the reference, bit by bit, and tests for C++ only."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from cases import DTYPES, SIZES, assert_same_bits, random_arguments
from isas import ISAS, assert_runs_with, each

from fastdecode.ops import TokenSets, last_backend, sample
from fastdecode.ops.backends import core


def both(logits, **arguments):
    expected = sample(logits, backend="reference", **arguments)
    assert last_backend() == "reference"
    got = sample(logits, backend="cpu", **arguments)
    assert last_backend() == "cpu"
    return got, expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", SIZES)
def test_same_bits_on_random_arguments(vocab, dtype):
    for case in range(25 if vocab < 5000 else 8):
        arguments = random_arguments(np.random.default_rng([case, vocab]), vocab, dtype)
        got, expected = both(**arguments)
        assert_same_bits(got, expected)


@pytest.mark.parametrize("isa", each(ISAS))
def test_every_instruction_set(isa: str):
    assert_runs_with(
        isa,
        "import test_sample_cpu as t\n"
        "for dtype in t.DTYPES:\n"
        "    for vocab in t.SIZES: t.test_same_bits_on_random_arguments(vocab, dtype)\n"
        "for k in (1, 50, 2000): t.test_same_bits_on_a_full_vocabulary_with_ties(k)\n"
        "for dtype in t.DTYPES[1:]: t.test_every_16_bit_value_is_read_right(dtype)\n",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_read_right(dtype):
    """Each value beside a zero, drawn by the given noise so that its size shows in the logprob."""
    value = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    size = value.float().abs()
    amplify = torch.where(size > 2.0**-14, 1.0, torch.where(size > 2.0**-70, 2.0**60, 2.0**127))
    below = (value < 0).float()
    got, expected = both(
        torch.stack([value, torch.zeros_like(value)], 1),
        weights=amplify.unsqueeze(1),
        noise=torch.stack([below, 1 - below], 1) * 3.4e38,
    )
    assert_same_bits(got, expected)
    finite = value.isfinite() & (size < 1e38)
    z = (size * amplify).double()[finite]
    exact = -z - torch.log1p(torch.exp(-z))
    assert torch.allclose(got.logprob[finite].double(), exact, rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 50, 2000])
def test_same_bits_on_a_full_vocabulary_with_ties(top_k):
    logits = (torch.randn(3, 65536) * 3).to(torch.bfloat16)
    got, expected = both(logits, top_k=top_k, top_p=0.9, seed=1)
    assert_same_bits(got, expected)
    assert (got.kept >= 1).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads):
    torch.manual_seed(0)
    logits = torch.randn(12, 24000) * 4  # enough to be shared out
    arguments = {"seed": 5, "top_p": torch.linspace(0.1, 1, 12), "step": torch.arange(12)}
    expected = sample(logits, backend="reference", **arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            assert_same_bits(sample(logits, backend="cpu", **arguments), expected)
    finally:
        torch.set_num_threads(before)


def test_concurrent_calls():
    torch.manual_seed(1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    jobs = [torch.randn(4, size) for size in (100, 3000, 70000, 33, 8192, 66666)]
    expected = [sample(logits, seed=7, top_k=40, top_p=0.8, backend="cpu") for logits in jobs]
    failures = []

    def work(logits, right):
        try:
            for _ in range(30):
                got = sample(logits, seed=7, top_k=40, top_p=0.8, backend="cpu")
                assert_same_bits(got, right)
        except AssertionError as failure:
            failures.append(failure)

    pairs = zip(jobs, expected, strict=True)
    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    assert not failures


def test_beside_torch_the_threads_are_torchs():
    """Threads of our own would have to share the processors with those of OpenMP, which spin there."""
    code = (
        "import os, torch; from fastdecode.ops import sample; torch.set_num_threads(3)\n"
        "torch.randn(4096, 4096).sum()\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "for _ in range(5): sample(torch.randn(8, 65536), seed=1)\n"
        "assert before >= 3 and len(os.listdir('/proc/self/task')) == before, before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_forked_child_draws_without_the_worker_threads():
    code = (
        "import os, torch; from fastdecode.ops import sample; torch.set_num_threads(2);"
        "logits = torch.randn(8, 65536); expected = sample(logits, seed=1).token.tolist();"
        "child = os.fork();\n"
        "if child == 0: os._exit(sample(logits, seed=1).token.tolist() != expected)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_child_that_imports_it_after_the_fork_draws():
    """The threads that torch had in the parent are not there, though OpenMP believes that they are."""
    code = (
        "import os, torch; torch.set_num_threads(2); logits = torch.randn(8, 65536); (logits.exp() + 1).sum()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from fastdecode.ops import sample\n"
        "    os._exit(sample(logits, seed=1).status.tolist() != [0] * 8)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_rows_beyond_two_billion_elements():
    """Row 1 begins 2^31 + 10 elements in; the memory between is never touched."""
    stride, vocab = 2**31 + 10, 64
    memory = torch.from_numpy(np.zeros(stride + vocab, dtype=np.uint16)).view(torch.bfloat16)
    logits = memory.as_strided((2, vocab), (stride, 1))
    logits[1, 17] = 5.0
    got = sample(logits, temperature=0.0, backend="cpu")
    assert got.token.tolist() == [0, 17]


def test_given_noise_may_have_any_row_stride():
    noise = torch.randn(4, 130)[:, :100]
    got, expected = both(torch.randn(4, 100), noise=noise)
    assert_same_bits(got, expected)


def test_many_ranges():
    sets = TokenSets.from_ids([range(0, 5000, 2), range(1, 5000, 7), []], 5000)
    index = torch.tensor([0, 1, 2, 1], dtype=torch.int32)
    arguments = {"allowed": sets, "set_index": index, "seed": torch.arange(4)}
    got, expected = both(torch.randn(4, 5000), **arguments)
    assert_same_bits(got, expected)
    token = got.token.tolist()
    assert token[0] % 2 == 0
    assert token[1] % 7 == 1
    assert token[2] == -1
    assert token[3] % 7 == 1


def test_the_cpu_backend_is_the_default():
    sample(torch.zeros(1, 4))
    assert last_backend() == "cpu"
    sample(torch.zeros(1, 4), contrast=(0.1, 1))
    assert last_backend() == "cpu"


def test_top_k_where_a_sample_misleads():
    """Every sixteenth id is large: a sample at even distances sees nothing else, and finds a threshold too high."""
    torch.manual_seed(0)
    logits = torch.randn(2, 8192)
    logits[:, ::16] += 100
    got, expected = both(logits, top_k=2000, seed=3)
    assert_same_bits(got, expected)
    assert got.kept.tolist() == [2000, 2000]


def test_top_p_counts_the_mass_of_the_many_unlikely():
    logits = torch.full((1, 65536), -22.0)
    logits[0, 7] = 0.0
    got, expected = both(logits, top_p=0.99999, seed=3)
    assert_same_bits(got, expected)
    assert got.kept.item() > 1


@pytest.mark.parametrize("k", [1, 3, 50, 1000, 2**40])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
def test_contrast(alpha, k):
    """Two streams whose difference overflows where the expert has next to nothing: such ids are not kept."""
    torch.manual_seed(k % 1000)
    logits = torch.randn(6, 3000) * 4
    logits[0, :1000] = -torch.inf
    logits[2, 5], logits[3, 5] = -1e38, -3e38
    arguments = {
        "streams": torch.arange(6, dtype=torch.int32).view(3, 2),
        "weights": torch.tensor([[1.0, -1.0], [3e38, -2e38], [0.0, 1.0]]),
        "allowed": [[(3, 90), (200, 2900)]],
        "contrast": (alpha, k),
    }
    got, expected = both(logits, seed=1, top_p=0.9, **arguments)
    assert_same_bits(got, expected)
    assert got.status.tolist()[0] == 0


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_the_environment_can_choose_the_backend(name):
    code = "import torch; from fastdecode import ops; ops.sample(torch.zeros(1, 4));print(ops.last_backend())"
    environment = {**os.environ, "FASTDECODE_BACKEND": name}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert finished.stdout.strip() == name


@pytest.mark.long
def test_the_long_comparison_runs():
    """A short run of ``compare_backends.py``, which compares millions by hand."""
    program = os.path.join(os.path.dirname(__file__), "compare_backends.py")
    done = subprocess.run([sys.executable, program, "--groups", "500"], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + ISAS.index(core().cpu_isa().removesuffix("bf16"))
    assert all(line.endswith("the same bits") for line in lines)
