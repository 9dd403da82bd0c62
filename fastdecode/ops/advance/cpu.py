"""`advance` and `sample_advance` through the C++ library, which checks the values.

The fields are in the order in which csrc/python/module.cpp reads them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import core
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.pointers import address
from fastdecode.ops.sample.cpu import new_sample, sample_fields, with_separate_rows


def advance_fields(
    token: Tensor | None, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int
) -> tuple[Any, ...]:
    """The fields of fastdecode_advance_args, with addresses in place of tensors."""
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
        address(streams),
        rows,
        tables.vocab,
        address(token),
        state.mode.data_ptr(),
        state.step.data_ptr(),
        address(state.limit),
        state.finished.data_ptr(),
        address(state.inputs),
        address(state.lengths),
        address(state.seen),
        address(state.sequences),
        state.capacity,
    )


def advance_cpu(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> None:
    """Raises ValueError for bad values, with nothing written."""
    core().advance(advance_fields(token, tables, state, streams, rows))


class PreparedSample:
    """The call of the library with these arguments, which it may repeat: each call overwrites the result."""

    def __init__(self, args: SampleArguments, tables: GrammarTables, state: DecodeState) -> None:
        args = with_separate_rows(args)
        self.logits = args.logits
        self._owners = args, tables, replace(state)  # of the memory at the addresses
        self._out = new_sample(args.groups)
        self._fields = (
            sample_fields(args, self._out),
            advance_fields(None, tables, state, args.streams, len(args.logits)),
        )

    def __call__(self) -> Sample:
        core().sample_advance(*self._fields)
        return self._out


def sample_advance_cpu(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    """Samples from the sets of the grammar, then advances. Raises ValueError for bad values, with nothing written."""
    return PreparedSample(args, tables, state)()
