"""`advance` and `sample_advance` through libfastdecode_cuda.so."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.advance.cpu import advance_fields
from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.checks import check_rows
from fastdecode.ops.cuda_library import cuda_library
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample.checks import check_host_values
from fastdecode.ops.sample.cpu import new_sample, sample_fields, with_separate_rows
from fastdecode.ops.sample.cuda import largest_set


def advance_cuda(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> None:
    """Raises ValueError for bad values on the CPU; on a GPU their groups get finished = 2."""
    if token.device.type == "cpu":
        state.check_values(tables, token)
        check_rows(streams, rows)
    cuda_library().advance(advance_fields(token, tables, state, streams, rows), token.device)


def sample_advance_cuda(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    """Raises ValueError for bad values on the CPU; on a GPU their groups get finished = 2."""
    check_host_values(args)
    device = args.logits.device
    if device.type == "cpu":
        state.check_values(tables, None)
    args = with_separate_rows(args)
    out = new_sample(args.groups, device)
    advanced = advance_fields(None, tables, state, args.streams, len(args.logits))
    cuda_library().sample_advance(sample_fields(args, out), advanced, largest_set(args), device)
    return out
