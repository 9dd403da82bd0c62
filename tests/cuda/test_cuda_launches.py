"""What the CUDA library asks CUDA's runtime for besides launches, as the emulation's own runtime records it."""

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import assert_same_bits
from kernels import Kernels

from fastdecode.ops import Sample, TokenSets, sample
from fastdecode.ops.cuda_library import SampleArgs, filled
from fastdecode.ops.sample.cpu import sample_fields

KERNELS = 13  # two of small sets and one of large ones for each of three dtypes, and four
SMALL_SET_BYTES = 4 * 16384
INVALID_VALUE, INVALID_DEVICE = 1, 2


class Record(ctypes.Structure):
    """FakeRecord of cuda_runtime.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("loads", "captured", "attributes", "largest", "errors_taken")]


@pytest.fixture
def fresh(emulation: Path, tmp_path: Path) -> Kernels:
    """A library that nobody has called yet."""
    return Kernels(Path(shutil.copy(emulation, tmp_path / "libfresh.so")), "fastdecode_cuda_")


def record(kernels: Kernels) -> Record:
    return Record.in_dll(kernels.library, "fake_cuda_record")


def groups_of(size: int) -> dict:
    """Two groups whose sets have so many tokens."""
    allowed = TokenSets([[(0, size)]])
    return {"logits": torch.randn(2, size + 5), "allowed": allowed, "top_p": 0.9, "seed": torch.tensor([size, 1])}


def test_a_host_program_of_many_threads(fresh: Kernels):
    """Each kernel is allowed once to have the most shared memory: what one thread needs does not depend on others."""
    sizes = [16384, 40, 9000, 16384, 15000, 700, 6000, 16000]
    given = [groups_of(size) for size in sizes]
    expected = [sample(**arguments, backend="cpu") for arguments in given]

    def draw(thread: int) -> list[Sample]:
        return [fresh.sample(**given[thread], largest=sizes[thread]) for _ in range(5)]

    with ThreadPoolExecutor(len(sizes)) as threads:
        for drawn, wanted in zip(threads.map(draw, range(len(sizes))), expected, strict=True):
            for each in drawn:
                assert_same_bits(each, wanted)
    seen = record(fresh)
    assert (seen.attributes, seen.largest) == (3, SMALL_SET_BYTES)  # one for each dtype
    assert seen.loads == KERNELS


def test_each_device_is_prepared_once(fresh: Kernels):
    given = groups_of(16384)
    for device, loads in ((0, KERNELS), (1, 2 * KERNELS), (0, 2 * KERNELS), (1, 2 * KERNELS)):
        assert fresh.library.cudaSetDevice(device) == 0
        try:
            assert_same_bits(fresh.sample(**given, largest=16384), sample(**given, backend="cpu"))
        finally:
            fresh.library.cudaSetDevice(0)
        assert record(fresh).loads == loads


def test_the_host_programs_own_error_stays(fresh: Kernels):
    """An error from before is neither reported nor cleared."""
    assert fresh.library.cudaSetDevice(-1) == INVALID_DEVICE
    given = groups_of(16384)
    assert_same_bits(fresh.sample(**given, largest=16384), sample(**given, backend="cpu"))
    assert fresh.library.cudaPeekAtLastError() == INVALID_DEVICE
    assert record(fresh).errors_taken == 0


def test_a_refused_launch_is_an_error_with_its_reason(fresh: Kernels):
    fresh.library.fake_cuda_refuse_launches(True)
    with pytest.raises(ValueError, match=r"^CUDA: cudaErrorInvalidValue: invalid argument$"):
        fresh.sample(**groups_of(100))
    fresh.library.fake_cuda_refuse_launches(False)
    fresh.sample(**groups_of(100))


@pytest.mark.parametrize("size", [100, 16384, 20000])
def test_the_workspaces_call_loads_all_before_a_capture(fresh: Kernels, size: int):
    """A first call that is captured loads nothing then."""
    given = groups_of(size)
    args, out = fresh.arguments(**given)
    struct, library = filled(SampleArgs, sample_fields(args, out)), fresh.library
    memory, address, needed = fresh.workspace(struct, size)
    assert record(fresh).loads == KERNELS
    stream, graph = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    assert library.cudaStreamBeginCapture(stream, 0) == 0
    where = (ctypes.c_void_p(address), ctypes.c_size_t(needed))
    fresh.check(library.fastdecode_cuda_sample(ctypes.byref(struct), ctypes.c_int64(size), *where, stream))
    assert library.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    assert out.status.tolist() == [0x5A] * 2  # the poison: nothing has run
    assert library.cudaGraphLaunch(graph, stream) == 0
    assert_same_bits(out, sample(**given, backend="cpu"))
    assert (record(fresh).captured, record(fresh).loads) == (0, KERNELS)
    library.cudaGraphDestroy(graph)
    library.cudaStreamDestroy(stream)
    del memory
