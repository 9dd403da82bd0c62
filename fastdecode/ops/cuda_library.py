"""libfastdecode_cuda.so: loaded when it is first asked for, and called on torch's current stream of a device.

A call takes the fields of its structs as tuples, in the order of `fastdecode.h`, with addresses in place of tensors. It
copies nothing and waits for nothing: a CUDA graph can capture it, and then owns its workspace, which is a tensor.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).resolve().parents[1] / "lib" / "libfastdecode_cuda.so.2"
"""Beside it `libfastdecode_cuda.so` is a text file by which linkers find it."""

ON_HOST = False
"""Whether the library at PATH is an emulation, for tests, that works on memory of the host."""

_ALIGNMENT = 256
"""Of a workspace's address, in bytes."""

_INVALID_ARGUMENT = 1


def _struct(name: str, fields: str, kinds: dict[Any, str]) -> type[ctypes.Structure]:
    """Fields that no kind names are pointers."""
    kind_of = {field: kind for kind, names in kinds.items() for field in names.split()}
    layout = [(field, kind_of.get(field, ctypes.c_void_p)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [("size", ctypes.c_size_t), *layout]})


SampleArgs = _struct(
    "SampleArgs",
    """logits dtype threads rows vocab row_stride groups streams_per_group streams weights ranges set_offsets sets
    set_index temperature top_k top_p min_p penalty seed step temperature_value top_k_value top_p_value min_p_value
    penalty_value seed_value step_value contrast_alpha contrast_k seen noise noise_stride token logprob kept status""",
    {
        ctypes.c_int32: "dtype threads top_k_value contrast_k",
        ctypes.c_int64: "rows vocab row_stride groups streams_per_group sets seed_value step_value noise_stride",
        ctypes.c_float: "temperature_value top_p_value min_p_value penalty_value contrast_alpha",
    },
)
"""fastdecode_sample_args."""

AdvanceArgs = _struct(
    "AdvanceArgs",
    """modes classes set_of tight_set_of room forced following class_ranges class_range_count groups streams_per_group
    streams rows vocab token mode step limit finished inputs lengths seen sequences capacity""",
    {ctypes.c_int64: "modes classes class_range_count groups streams_per_group rows vocab capacity"},
)
"""fastdecode_advance_args, with the fields of its grammar."""


def filled(struct: type[ctypes.Structure], fields: tuple[Any, ...]) -> ctypes.Structure:
    """The fields in the order of the struct; a pointer that is 0 is NULL."""
    return struct(ctypes.sizeof(struct), *fields)


class CudaLibrary:
    """The library at a path; `on_host` as ON_HOST.

    Its calls raise ValueError for an argument that it refuses, and RuntimeError where CUDA refuses a launch.
    """

    def __init__(self, path: Path, *, on_host: bool) -> None:
        self.on_host = on_host
        self._library = ctypes.CDLL(str(path))
        self._library.fastdecode_cuda_last_error.restype = ctypes.c_char_p

    def sample(self, fields: tuple[Any, ...], largest: int, device: torch.device) -> None:
        """`largest`: no set has more tokens."""
        self._sample("sample", filled(SampleArgs, fields), (), largest, device)

    def advance(self, fields: tuple[Any, ...], device: torch.device) -> None:
        struct = filled(AdvanceArgs, fields)
        with self._current(device):
            self._check(self._library.fastdecode_cuda_advance(ctypes.byref(struct), self._stream(device)))

    def sample_advance(
        self, sampled: tuple[Any, ...], advanced: tuple[Any, ...], largest: int, device: torch.device
    ) -> None:
        """`largest`: no set has more tokens."""
        struct = filled(AdvanceArgs, advanced)
        self._sample("sample_advance", filled(SampleArgs, sampled), (ctypes.byref(struct),), largest, device)

    def _sample(
        self, name: str, struct: ctypes.Structure, more: tuple[Any, ...], largest: int, device: torch.device
    ) -> None:
        call = getattr(self._library, f"fastdecode_cuda_{name}")
        largest_set, size = ctypes.c_int64(largest), ctypes.c_size_t(0)
        args = ctypes.byref(struct)
        with self._current(device):
            self._check(self._library.fastdecode_cuda_workspace(args, largest_set, ctypes.byref(size)))
            address = None
            if size.value > 0:
                workspace = torch.empty(size.value + _ALIGNMENT - 1, dtype=torch.uint8, device=device)
                address = ctypes.c_void_p(-(-workspace.data_ptr() // _ALIGNMENT) * _ALIGNMENT)
            self._check(call(args, *more, largest_set, address, size, self._stream(device)))

    def _current(self, device: torch.device) -> Any:
        """The library launches on the current device."""
        return nullcontext() if self.on_host else torch.cuda.device(device)

    def _stream(self, device: torch.device) -> ctypes.c_void_p | None:
        return None if self.on_host else ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)

    def _check(self, result: int) -> None:
        if result == 0:
            return
        said = self._library.fastdecode_cuda_last_error().decode()
        raise ValueError(said) if result == _INVALID_ARGUMENT else RuntimeError(said)


@cache
def cuda_library() -> CudaLibrary:
    """The installed library. Raises OSError with the reason if it cannot be loaded."""
    return CudaLibrary(PATH, on_host=ON_HOST)


@cache
def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    return None if torch.version.hip is None else "the GPU is not one of NVIDIA's"


def cuda_unavailable() -> str | None:
    """Why the library cannot be used, or None if it can."""
    reasons = [] if ON_HOST else [_no_gpu()]
    try:
        cuda_library()
    except OSError as error:
        missing = "is not installed: FASTDECODE_CUDA=1 pip install . builds it, with nvcc"
        reasons.insert(0, f"{PATH.name} {f'cannot be loaded: {error}' if PATH.exists() else missing}")
    return "; ".join(reason for reason in reasons if reason is not None) or None
