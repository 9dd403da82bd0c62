"""Building and linking libfastdecode_cuda.so, and its errors for wrong arguments. It needs no GPU."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from kernels import FOLDER, INCLUDE, Kernels
from linking import ROOT, build_example, moved_build, run

from fastdecode.ops import DecodeState, GrammarTables, TokenSets
from fastdecode.ops.advance import cpu as advance_cpu
from fastdecode.ops.cuda_library import AdvanceArgs, SampleArgs, filled
from fastdecode.ops.sample.cpu import sample_fields

HEADER = ROOT / "csrc/include/fastdecode/fastdecode_cuda.h"
STRICT = ("-pedantic", "-Wall", "-Wextra", "-Werror")
SAID = "0 1\n1 vocab = -1: must be in [1, 4194304]\n"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    return moved_build(tmp_path_factory)


@pytest.fixture(scope="module", params=["emulated", pytest.param("library", marks=pytest.mark.long)])
def checking(request: pytest.FixtureRequest) -> Kernels:
    """What checks arguments: the emulation, and the library itself, which could launch nothing here."""
    kernels = request.getfixturevalue(request.param)
    return kernels if isinstance(kernels, Kernels) else Kernels(kernels, "fastdecode_cuda_")


def test_header_is_c_and_cpp(tmp_path: Path):
    for compiler, standard, suffix in (("gcc", "c99", "c"), ("g++", "c++11", "cpp")):
        source = tmp_path / f"header.{suffix}"
        source.write_text("#include <fastdecode/fastdecode_cuda.h>\nint nothing;\n")
        run(compiler, f"-std={standard}", *STRICT, "-fsyntax-only", *INCLUDE, source)


@pytest.mark.long
def test_exports_what_the_header_declares(library: Path):
    listed = run("nm", "-D", "--defined-only", library).splitlines()
    declared = re.findall(r"^FASTDECODE_CUDA_API [^(]*?(\w+)\(", HEADER.read_text(), re.MULTILINE)
    names = [line.split()[-1].split("@")[0] for line in listed]
    assert sorted(set(names) - {"FASTDECODE_CUDA_2"}) == sorted(declared)
    assert len(declared) == 5


@pytest.mark.long
def test_needs_nothing_but_libc(library: Path):
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    allowed = ("libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux")
    assert all(name.startswith(allowed) for name in needed)


@pytest.mark.long
def test_a_c_program_links_it(prefix: Path, tmp_path: Path):
    folder = prefix / "lib"
    flags = [f"-I{prefix / 'include'}", f"-L{folder}", "-lfastdecode_cuda", "-lfastdecode", f"-Wl,-rpath,{folder}"]
    run("gcc", "-std=c99", *STRICT, FOLDER / "link.c", *flags, "-o", tmp_path / "link")
    assert run(tmp_path / "link") == SAID


@pytest.mark.long
def test_pkg_config(prefix: Path, tmp_path: Path):
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    folder = prefix / "lib"
    flags = run("pkg-config", "--with-path", folder / "pkgconfig", "--cflags", "--libs", "fastdecode_cuda").split()
    run("gcc", "-std=c99", FOLDER / "link.c", *flags, f"-Wl,-rpath,{folder}", "-o", tmp_path / "link")
    assert run(tmp_path / "link") == SAID


@pytest.mark.long
def test_cmake(prefix: Path, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(link LANGUAGES C)\n"
        "find_package(fastdecode REQUIRED COMPONENTS cuda)\n"
        f"add_executable(link {FOLDER / 'link.c'})\ntarget_link_libraries(link fastdecode::cuda)\n"
    )
    build_example(source, tmp_path / "build", prefix)
    assert run(tmp_path / "build" / "link") == SAID


@pytest.mark.long
def test_builds_without_a_cuda_compiler(tmp_path: Path):
    """Without a CUDA compiler ON is refused, AUTO goes on and says so."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake here")
    said = {}
    for choice in ("ON", "AUTO"):
        options = ("-DFASTDECODE_PYTHON=OFF", f"-DFASTDECODE_CUDA={choice}", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
        command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / choice), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        said[choice] = (done.returncode == 0, " ".join((done.stdout + done.stderr).split()))
    assert not said["ON"][0]
    assert "FASTDECODE_CUDA = ON: needs a CUDA compiler; put nvcc into PATH or name it in CUDACXX" in said["ON"][1]
    assert said["AUTO"][0]
    assert "libfastdecode_cuda.so is not built: there is no CUDA compiler (nvcc) in PATH" in said["AUTO"][1]


SAMPLE_ERRORS = [
    ({"temperature_value": -1.0}, "temperature = -1: must be finite and >= 0"),
    ({"top_p_value": 2.0}, "top_p = 2: must be in [0, 1]"),
    ({"min_p_value": float("nan")}, "min_p = nan: must be in [0, 1]"),
    ({"penalty_value": 0.0}, "penalty = 0: must be finite and > 0"),
    ({"contrast_k": -1}, "contrast_k = -1: must be at least 0"),
    ({"contrast_k": 1, "contrast_alpha": 1.5}, "contrast_alpha = 1.5: must be in [0, 1]"),
    ({"vocab": 2**22 + 1}, "vocab = 4194305: must be in [1, 4194304]"),
    ({"vocab": -1}, "vocab = -1: must be in [1, 4194304]"),
    ({"contrast_alpha": 0.5}, "contrast_k = 0: must be at least 1 with contrast_alpha = 0.5"),
    ({"penalty_value": 1.5}, "seen = NULL: must be given with a penalty, which applies to the tokens seen"),
    ({"vocab": 0}, "vocab = 0: must be in [1, 4194304]"),
    ({"rows": -1}, "rows = -1: must be at least 0"),
    ({"groups": -1}, "groups = -1: must be at least 0"),
    ({"streams_per_group": 0}, "streams_per_group = 0: must be at least 1"),
    ({"sets": -1}, "sets = -1: must be at least 0"),
    ({"row_stride": 0}, "row_stride = 0: must be at least vocab = 50, or FASTDECODE_REPEAT"),
    (
        {"rows": 2**31 - 1, "row_stride": 2**62},
        "rows = 2147483647, row_stride = 4611686018427387904: logits would have",
    ),
    ({"groups": 2**31}, "groups = 2147483648: must be at most 2147483647"),
    (
        {"groups": 2**26, "rows": 2**26, "vocab": 65536, "row_stride": 65536},
        "groups = 67108864: must be at most 33554431 for sets of this size",
    ),
    ({"dtype": 3}, "dtype = 3: must be 0 (float32), 1 (bfloat16) or 2 (float16)"),
    ({"dtype": -1}, "dtype = -1: must be 0 (float32), 1 (bfloat16) or 2 (float16)"),
    ({"logits": None}, "logits = NULL: must not be"),
    ({"token": None}, "token = NULL: must not be"),
    ({"status": None}, "status = NULL: must not be"),
    ({"groups": 3}, "streams = NULL: must be given unless streams_per_group = 1 and groups <= rows; here"),
    ({"streams_per_group": 2}, "streams = NULL: must be given unless streams_per_group = 1 and groups <= rows; here"),
    ({"sets": 1}, "set_offsets = NULL: must be given with sets = 1"),
    ({"ranges": 8}, "sets = 0: must be at least 1 where there are ranges or set_offsets"),
    ({"size": 8}, "args->size = 8: fastdecode_sample_args has at least"),
    ({"size": 4096}, "args->size = 4096: this library's fastdecode_sample_args has"),
]
OF_THE_WORKSPACE = ("groups", "vocab", "args->size")


@pytest.mark.parametrize(("changes", "said"), SAMPLE_ERRORS)
def test_wrong_arguments_of_sample(checking: Kernels, changes: dict, said: str):
    """Each call says the same; none writes. The workspace depends on few fields, and only those are read."""
    args, out = checking.arguments(torch.randn(2, 50), temperature=0.5)
    struct = filled(SampleArgs, sample_fields(args, out))
    for name, value in changes.items():
        setattr(struct, name, value)
    pointer, advance = ctypes.byref(struct), ctypes.byref(filled(AdvanceArgs, advance_fields()))
    size = ctypes.c_size_t(0)
    for name, arguments in (
        ("workspace", (pointer, ctypes.c_int64(0), ctypes.byref(size))),
        ("sample", (pointer, ctypes.c_int64(0), None, size, None)),
        ("sample_advance", (pointer, advance, ctypes.c_int64(0), None, size, None)),
    ):
        refuses = name != "workspace" or said.startswith(OF_THE_WORKSPACE)
        assert getattr(checking.library, f"fastdecode_cuda_{name}")(*arguments) == refuses
        if refuses:
            heard = checking.library.fastdecode_cuda_last_error().decode()
            assert heard.startswith(said.replace("args->", "sample->") if name == "sample_advance" else said)
    assert out.status.tolist() == [0x5A] * 2  # the poison


def advance_fields() -> tuple:
    """Of two groups; the tensors are kept."""
    tables = GrammarTables(TokenSets([[(0, 50)]]), [0], [-1], [[0]], vocab=50)
    state = DecodeState(torch.zeros(2).int(), torch.zeros(2).long(), torch.zeros(2).byte())
    token = torch.zeros(2).long()
    KEPT[:] = [tables, state, token]
    return advance_cpu.advance_fields(token, tables, state, None, 2)


KEPT: list = []

ADVANCE_ERRORS = [
    *(
        ({name: -1}, f"{name} = -1: must be at least {least}")
        for name, least in (("groups", 0), ("rows", 0), ("streams_per_group", 1), ("capacity", 0))
    ),
    ({"vocab": 0}, "vocab = 0: must be in [1, 4194304]"),
    ({"class_range_count": -1}, "grammar.class_range_count = -1: must be at least 0"),
    ({"groups": 2**31}, "groups = 2147483648: must be at most 2147483647"),
    ({"modes": 0}, "grammar.modes = 0: must be at least 1"),
    ({"classes": 0}, "grammar.classes = 0: must be at least 1"),
    ({"modes": 2**30, "classes": 2**30}, "grammar.modes = 1073741824, grammar.classes = 1073741824: grammar.following"),
    ({"forced": None}, "grammar.forced = NULL: must not be"),
    ({"class_ranges": None, "class_range_count": 1}, "grammar.class_ranges = NULL: must not be"),
    ({"mode": None}, "mode = NULL: must not be"),
    ({"token": None}, "token = NULL: must not be"),
    ({"size": 8}, "args->size = 8: fastdecode_advance_args has at least"),
]


@pytest.mark.parametrize(("changes", "said"), ADVANCE_ERRORS)
def test_wrong_arguments_of_advance(checking: Kernels, changes: dict, said: str):
    struct = filled(AdvanceArgs, advance_fields())
    for name, value in changes.items():
        setattr(struct, name, value)
    assert checking.library.fastdecode_cuda_advance(ctypes.byref(struct), None) == 1
    assert checking.library.fastdecode_cuda_last_error().decode().startswith(said)


def test_wrong_calls(checking: Kernels):
    library = checking.library
    args, out = checking.arguments(torch.randn(1, 20000))
    struct = filled(SampleArgs, sample_fields(args, out))
    pointer, size, all_ids = ctypes.byref(struct), ctypes.c_size_t(0), ctypes.c_int64(0)

    def said(result: int) -> str:
        assert result == 1
        return library.fastdecode_cuda_last_error().decode()

    workspace = library.fastdecode_cuda_workspace
    assert said(workspace(pointer, ctypes.c_int64(-1), ctypes.byref(size))) == "largest_set = -1: must be at least 0"
    assert said(workspace(pointer, all_ids, None)) == "bytes = NULL: must not be"
    assert said(workspace(None, all_ids, ctypes.byref(size))) == "args = NULL: must point to the arguments"
    assert workspace(pointer, all_ids, ctypes.byref(size)) == 0
    needed = size.value
    assert 8 * 20000 < needed < 9 * 20480 + 20000
    less, sample = ctypes.c_size_t(needed - 1), library.fastdecode_cuda_sample
    few = f"{needed} are needed; ask fastdecode_cuda_workspace"
    assert said(sample(pointer, all_ids, ctypes.c_void_p(256), less, None)) == f"workspace_bytes = {needed - 1}: {few}"
    assert said(sample(pointer, all_ids, None, size, None)) == f"workspace_bytes = 0: {few}"
    odd = said(sample(pointer, all_ids, ctypes.c_void_p(264), size, None))
    assert odd == "workspace = 0x108: must be a multiple of 256"
    assert workspace(pointer, ctypes.c_int64(16384), ctypes.byref(size)) == 0
    assert size.value == 0


def test_sample_advance_wants_the_grammars_sets(checking: Kernels):
    args, out = checking.arguments(torch.randn(2, 50), step=torch.zeros(2).long())
    struct = filled(SampleArgs, sample_fields(args, out))
    call = checking.library.fastdecode_cuda_sample_advance
    advance = filled(AdvanceArgs, advance_fields())
    assert call(ctypes.byref(struct), ctypes.byref(advance), ctypes.c_int64(0), None, ctypes.c_size_t(0), None) == 1
    said = checking.library.fastdecode_cuda_last_error().decode()
    assert said.startswith("sample->step: must be NULL, since advance->step numbers the tokens")


@pytest.mark.long
def test_without_a_gpu_cuda_says_why(library: Path):
    """A launch that CUDA refuses is an error with its reason."""
    kernels = Kernels(library, "fastdecode_cuda_")
    args, out = kernels.arguments(torch.randn(1, 50))
    struct = filled(SampleArgs, sample_fields(args, out))
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    call = kernels.library.fastdecode_cuda_sample
    assert call(ctypes.byref(struct), ctypes.c_int64(0), None, ctypes.c_size_t(0), None) == 3
    assert kernels.library.fastdecode_cuda_last_error().decode().startswith("CUDA: cudaError")


@pytest.mark.long
def test_ptx_keeps_products_and_sums_apart(tmp_path: Path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    target = tmp_path / "library.ptx"
    source = ROOT / "csrc/cuda/library.cu"
    command = [nvcc, "-std=c++17", "-arch=compute_80", "-fmad=false", "-ptx", *INCLUDE, str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=300)
    text = target.read_text()
    assert "div.rn.f32" in text
    assert not re.findall(r"fma\.|mad\.[^lhw]*f32|\.ftz|\.approx", text)
