"""`sample`, `advance` and `sample_advance` through the C++ library: passes pointers.

The library checks the values; the fields are in the order in which csrc/python/module.cpp reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import core
from fastdecode.ops.checks import LOGITS_DTYPES, MAX_VOCAB
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _outputs(groups: int) -> Sample:
    return Sample(
        torch.empty(groups, dtype=torch.int64, device="cpu"),
        torch.empty(groups, dtype=torch.float32, device="cpu"),
        torch.empty(groups, dtype=torch.int32, device="cpu"),
        torch.empty(groups, dtype=torch.int32, device="cpu"),
    )


def _sample_fields(args: SampleArguments, out: Sample) -> tuple[Any, ...]:
    logits, allowed, contrast, noise = args.logits, args.allowed, args.contrast, args.noise
    rows, vocab = logits.shape
    return (
        logits.data_ptr(),
        LOGITS_DTYPES[logits.dtype],
        torch.get_num_threads(),
        rows,
        vocab,
        logits.stride(0),
        args.groups,
        args.width,
        _address(args.streams),
        _address(args.weights),
        0 if allowed is None else allowed.ranges.data_ptr(),
        0 if allowed is None else allowed.offsets.data_ptr(),
        0 if allowed is None else len(allowed),
        _address(args.set_index),
        _address(args.temperature[0]),
        _address(args.top_k[0]),
        _address(args.top_p[0]),
        _address(args.min_p[0]),
        _address(args.penalty[0]),
        _address(args.seed[0]),
        _address(args.step[0]),
        args.temperature[1],
        args.top_k[1],
        args.top_p[1],
        args.min_p[1],
        args.penalty[1],
        args.seed[1],
        args.step[1],
        0.0 if contrast is None else contrast[0],
        0 if contrast is None else min(contrast[1], MAX_VOCAB),
        _address(args.seen),
        _address(noise),
        0 if noise is None else noise.stride(0),
        out.token.data_ptr(),
        out.logprob.data_ptr(),
        out.kept.data_ptr(),
        out.status.data_ptr(),
    )


def sample_cpu(args: SampleArguments) -> Sample:
    """Runs on up to torch.get_num_threads() threads. Raises ValueError for bad values."""
    out = _outputs(args.groups)
    core().sample(_sample_fields(args, out))
    return out


def _advance_fields(
    token: Tensor | None, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int
) -> tuple[Any, ...]:
    groups = len(state.mode)
    return (
        tables.modes,
        tables.classes,
        tables.set_of.data_ptr(),
        tables.tight_set_of.data_ptr(),
        tables.room.data_ptr(),
        tables.forced.data_ptr(),
        tables.following.data_ptr(),
        tables.class_ranges.data_ptr(),
        len(tables.class_ranges),
        groups,
        1 if streams is None else streams.shape[1],
        _address(streams),
        rows,
        tables.vocab,
        _address(token),
        state.mode.data_ptr(),
        state.step.data_ptr(),
        _address(state.limit),
        state.finished.data_ptr(),
        _address(state.inputs),
        _address(state.lengths),
        _address(state.seen),
        _address(state.sequences),
        state.capacity,
    )


def advance_cpu(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> None:
    """Raises ValueError for bad values, with nothing written."""
    core().advance(_advance_fields(token, tables, state, streams, rows))


def sample_advance_cpu(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    """`sample_cpu` from the sets of the grammar, then `advance_cpu`; both or, with ValueError, neither."""
    out = _outputs(args.groups)
    fields = _advance_fields(None, tables, state, args.streams, len(args.logits))
    core().sample_advance(_sample_fields(args, out), fields)
    return out
