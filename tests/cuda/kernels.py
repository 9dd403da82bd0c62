"""The CUDA library's kernels behind the functions of `fastdecode.ops`: emulated on the CPU, or on a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from linking import ROOT
from torch import Tensor

from fastdecode.ops import DecodeState, GrammarTables, Sample
from fastdecode.ops.advance.cpu import advance_fields
from fastdecode.ops.cuda_library import AdvanceArgs, SampleArgs, filled
from fastdecode.ops.sample.checks import check_arguments
from fastdecode.ops.sample.cpu import new_sample, sample_fields

FOLDER = Path(__file__).parent
INCLUDE = (f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}")
EXACT = ("-ffp-contract=off", "-fno-fast-math", "-Wall", "-Wextra", "-Werror")
_P, _I64 = ctypes.c_void_p, ctypes.c_int64


class Kernels:
    """A library that runs the kernels on memory of the host: emulate.cpp, or on_device.cpp with one of a GPU.

    Its functions are those of fastdecode_cuda.h, with this prefix.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.library = ctypes.CDLL(str(path))
        self.prefix = prefix
        self._function("last_error").restype = ctypes.c_char_p

    def _function(self, name: str) -> Any:
        return getattr(self.library, self.prefix + name)

    def seed(self, seed: int) -> None:
        """Chooses the order in which blocks, and threads between barriers, run; a GPU chooses for itself."""
        if hasattr(self.library, "emulate_seed"):
            self.library.emulate_seed(ctypes.c_uint64(seed))

    def launches(self) -> int:
        """Since it was last asked for; of an emulation."""
        return int(self.library.emulate_launches())

    def replays(self, number: int) -> None:
        """From now on calls are captured in a graph that is replayed so often; 0: they are made. Of a GPU."""
        self.library.on_device_replays(number)

    def check(self, result: int) -> None:
        if result != 0:
            raise ValueError(self._function("last_error")().decode())

    def workspace(self, args: ctypes.Structure, largest: int) -> tuple[Tensor, int, int]:
        """(memory, address, bytes): just as much as is needed, full of garbage."""
        bytes_needed = ctypes.c_size_t(0)
        self.check(self._function("workspace")(ctypes.byref(args), _I64(largest), ctypes.byref(bytes_needed)))
        memory = torch.full((bytes_needed.value + 512,), 0xA5, dtype=torch.uint8)
        return memory, (memory.data_ptr() + 255) & ~255, bytes_needed.value

    def sample_raw(self, args: ctypes.Structure, largest: int = 0) -> None:
        memory, address, size = self.workspace(args, largest)
        begin = address - memory.data_ptr()
        call = self._function("sample")
        self.check(call(ctypes.byref(args), _I64(largest), _P(address), ctypes.c_size_t(size), None))
        assert bool((memory[begin + size :] == 0xA5).all()), "written behind the workspace"

    def sample(self, logits: Tensor, largest: int = 0, **given) -> Sample:
        """`fastdecode.ops.sample`, whose arguments these are."""
        args, out = self.arguments(logits, **given)
        self.sample_raw(filled(SampleArgs, sample_fields(args, out)), largest)
        return out

    def arguments(self, logits: Tensor, **given):
        order = "streams weights allowed set_index temperature top_k top_p min_p penalty seen contrast seed step noise"
        default = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0, "seed": 0, "step": 0}
        args = check_arguments(logits, *(given.get(name, default.get(name)) for name in order.split()))
        return args, new_sample(args.groups)

    def advance(
        self, token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int
    ) -> None:
        args = filled(AdvanceArgs, advance_fields(token, tables, state, streams, rows))
        self.check(self._function("advance")(ctypes.byref(args), None))

    def sample_advance(
        self, logits: Tensor, tables: GrammarTables, state: DecodeState, largest: int = 0, **given
    ) -> Sample:
        args, out = self.arguments(logits, seen=state.seen, **given)
        args = args._replace(allowed=tables.sets)
        sampled = filled(SampleArgs, sample_fields(args, out))
        advanced = filled(AdvanceArgs, advance_fields(None, tables, state, args.streams, len(logits)))
        memory, address, size = self.workspace(sampled, largest)
        call = self._function("sample_advance")
        both = (ctypes.byref(sampled), ctypes.byref(advanced))
        self.check(call(*both, _I64(largest), _P(address), ctypes.c_size_t(size), None))
        del memory
        return out
