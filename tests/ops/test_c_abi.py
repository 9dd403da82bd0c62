"""The header and the library, as a C99 program uses them."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from fastdecode import build_info
from fastdecode.ops import sample
from fastdecode.ops.backends import core

PROGRAM = Path(__file__).with_name("c_abi.c")
EXPORTS = [
    "fastdecode_abi_version",
    "fastdecode_advance",
    "fastdecode_advance_args_init",
    "fastdecode_advance_args_init_sized",
    "fastdecode_attend",
    "fastdecode_attend_args_init",
    "fastdecode_attend_args_init_sized",
    "fastdecode_cpu_isa",
    "fastdecode_decode_args_init",
    "fastdecode_decode_args_init_sized",
    "fastdecode_decode_step",
    "fastdecode_embed",
    "fastdecode_embed_of",
    "fastdecode_last_error",
    "fastdecode_linear",
    "fastdecode_linear_of",
    "fastdecode_rms_norm",
    "fastdecode_rope_append",
    "fastdecode_rope_append_args_init",
    "fastdecode_rope_append_args_init_sized",
    "fastdecode_sample",
    "fastdecode_sample_advance",
    "fastdecode_sample_args_init",
    "fastdecode_sample_args_init_sized",
    "fastdecode_swiglu",
    "fastdecode_glu",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> list[str]:
    program = tmp_path_factory.mktemp("c_abi") / "program"
    library = Path(build_info.get_library())
    compile_command = [
        *("gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"),
        *(f"-I{build_info.get_include()}", str(PROGRAM), "-o", str(program)),
        *(str(library), f"-Wl,-rpath,{library.parent}"),
    ]
    subprocess.run(compile_command, check=True)
    finished = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return finished.stdout.splitlines()


def test_draws_what_python_draws(output):
    logits = torch.tensor([[i * 37 % 101 / 16 for i in range(300)] for _ in range(2)])
    logits[1] = logits[1].flip(0)
    got = sample(
        logits,
        streams=torch.tensor([[0, 1], [1, -1]], dtype=torch.int32),
        weights=torch.tensor([[3.0, -2.0], [1.0, 1.0]]),
        allowed=[[(10, 200), (250, 300)]],
        temperature=0.7,
        top_k=torch.tensor([50, 0], dtype=torch.int32),
        top_p=0.9,
        seed=7,
        step=3,
    )
    for g in range(2):
        expected = f"{got.token[g]} {got.logprob[g]:.9g} {got.kept[g]} {got.status[g]}"
        assert output[g] == expected


def test_errors_name_the_argument(output):
    assert output[2] == "1 temperature = -1: must be finite and >= 0"
    assert output[3].startswith("1 args->size = 8: fastdecode_sample_args has at least ")
    assert output[3].endswith("compile the program again if it was compiled against version 1 of fastdecode.h")
    assert output[4] == "1 ranges[1] = (150, 300): must be lo <= hi, sorted and disjoint"


def test_version_and_isa(output):
    assert output[5] == f"2 {core().cpu_isa()}"


def test_a_scale_that_is_no_number_is_refused(output):
    of_attend, of_decode = "must be finite", "must be finite and not 0; 1 / sqrt(head_dim) is usual"
    for lines, value in ((output[6:8], "nan"), (output[8:10], "-inf")):
        assert lines == [f"1 scale = {value}: {of_attend}", f"1 scale = {value}: {of_decode}"]
    # Nothing else was wrong: with another scale both return 0 (what follows is the last failure's message).
    assert [line[0] for line in output[10:]] == ["0", "0"]


def test_header_is_cpp_too(tmp_path):
    source = tmp_path / "header.cpp"
    source.write_text("#include <fastdecode/fastdecode.h>\n")
    flags = ["-std=c++11", "-pedantic", "-Wall", "-Werror", "-fsyntax-only"]
    include = f"-I{build_info.get_include()}"
    subprocess.run(["g++", *flags, include, str(source)], check=True)


def test_exports_only_the_interface():
    library = build_info.get_library()
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True)
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert names - {"FASTDECODE_2"} == {f"{name}@@FASTDECODE_2" for name in EXPORTS}
    assert ctypes.CDLL(library).fastdecode_abi_version() == 2


@pytest.mark.parametrize(
    ("function", "struct", "added", "first"),
    [
        ("fastdecode_sample", "fastdecode_sample_args", 0, "vocab = 0: must be in [1, 4194304]"),
        ("fastdecode_advance", "fastdecode_advance_args", 0, "vocab = 0: must be in [1, 4194304]"),
        ("fastdecode_decode_step", "fastdecode_decode_args", 8, "hidden = 0: must be at least 1"),
        ("fastdecode_rope_append", "fastdecode_rope_append_args", 0, "heads = 0: must be at least 1"),
        ("fastdecode_attend", "fastdecode_attend_args", 0, "heads = 0: must be at least 1"),
    ],
)
def test_an_operation_needs_its_own_arguments(function: str, struct: str, added: int, first: str):
    """``added``: bytes of fields that the struct did not have in version 2.0."""
    library = ctypes.CDLL(build_info.get_library())
    library.fastdecode_last_error.restype = ctypes.c_char_p
    call, init = getattr(library, function), getattr(library, f"{struct}_init_sized")

    def said() -> str:
        return library.fastdecode_last_error().decode()

    assert call(None) == 1
    assert said() == "args = NULL: must point to the arguments"
    assert init(None, ctypes.c_size_t(64), ctypes.c_size_t(176)) == 1
    assert said() == f"{struct}_init: args = NULL: must point to the arguments"
    other = ctypes.create_string_buffer(4096)
    size = ctypes.c_size_t.from_buffer(other)
    size.value = 8
    assert call(other) == 1
    [least] = re.findall(rf"^args->size = 8: {struct} has at least (\d+) bytes; call {struct}_init", said())
    # A size that is refused is kept, so that the call refuses it too, and nothing behind it is written.
    for wrong in (0, 7, 8, int(least) - 8, int(least) + added + 8, 2000):
        ctypes.memset(other, 0xA5, 4096)
        assert init(other, ctypes.c_size_t(wrong), ctypes.c_size_t(176)) == 1
        assert said().startswith(f"size = {wrong}: ")
        assert other.raw[max(wrong, 0) :] == b"\xa5" * (4096 - wrong)
        assert call(other) == 1
        assert said().startswith(f"args->size = {size.value}: ")
    for right in range(int(least), int(least) + added + 8, 8):
        ctypes.memset(other, 0xA5, 4096)
        assert init(other, ctypes.c_size_t(right), ctypes.c_size_t(176)) == 0
        assert other.raw[right:] == b"\xa5" * (4096 - right)
        assert call(other) == 1
        assert said() == first


@pytest.mark.parametrize("struct", ["sample", "advance", "decode", "rope_append", "attend"])
def test_what_version_1_calls_writes_only_the_size(struct: str):
    library = ctypes.CDLL(build_info.get_library())
    memory = ctypes.create_string_buffer(b"\xa5" * 512, 512)
    getattr(library, f"fastdecode_{struct}_args_init")(memory)
    assert memory.raw == bytes(8) + b"\xa5" * 504


def test_needs_nothing_but_libc():
    dynamic = subprocess.run(["readelf", "-d", build_info.get_library()], check=True, capture_output=True, text=True)
    needed = [line for line in dynamic.stdout.splitlines() if "NEEDED" in line]
    allowed = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "ld-linux")
    assert all(any(name in line for name in allowed) for line in needed)


def test_numbers_that_are_none_are_refused():
    """A NaN, an infinity or a negative number as epsilon, before any array is written."""
    library = ctypes.CDLL(build_info.get_library())
    library.fastdecode_last_error.restype = ctypes.c_char_p
    values = (ctypes.c_float * 4)(1, 2, 3, 4)
    out = (ctypes.c_float * 4)(*[9] * 4)
    for epsilon, printed in ((float("nan"), "nan"), (float("inf"), "inf"), (-1.0, "-1")):
        rows, threads = (ctypes.c_int64(1), ctypes.c_int64(4)), ctypes.c_int32(1)
        call = library.fastdecode_rms_norm
        assert call(values, None, values, ctypes.c_float(epsilon), *rows, None, out, threads) == 1
        assert library.fastdecode_last_error().decode() == f"epsilon = {printed}: must be finite and >= 0"
    assert list(out) == [9.0] * 4
