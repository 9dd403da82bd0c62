"""`advance` and `sample_advance` through the Triton kernels, which are imported, and compiled, when first used."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.checks import check_rows
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample.checks import check_host_values


def advance_triton(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> None:
    """Raises ValueError for bad values on the CPU; on a GPU their groups get finished = 2."""
    from fastdecode.triton_kernels.advance import launch_advance

    if token.device.type == "cpu":
        state.check_values(tables, token)
        check_rows(streams, rows)
    launch_advance(token, tables, state, streams, rows)


def sample_advance_triton(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    """Raises ValueError for bad values on the CPU; on a GPU their groups get finished = 2."""
    from fastdecode.triton_kernels.advance import launch_choose, launch_complete
    from fastdecode.triton_kernels.sample import launch_sample

    check_host_values(args)
    if args.logits.device.type == "cpu":
        state.check_values(tables, None)
    args = args._replace(set_index=launch_choose(tables, state), step=(state.step, 0))
    sampled = launch_sample(args)
    launch_complete(sampled, tables, state, args.streams, len(args.logits))
    return Sample(*sampled)
