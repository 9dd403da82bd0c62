"""`advance` and `sample_advance` as PyTorch code, all groups at once, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arguments import STATUS_FINISHED, STATUS_OK, Sample, SampleArguments
from fastdecode.ops.decode_state import ENDED, FAILED, RUNNING, DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample.reference import sample_reference
from fastdecode.ops.seen import set_seen_


def _coming(tables: GrammarTables, state: DecodeState) -> tuple[Tensor, Tensor, Tensor]:
    """(samples, forced, value), each (groups,): how the next token is found. No token follows where both are False.

    value: the set to sample from where `samples`, the token where `forced`.
    """
    mode = torch.where(state.finished == RUNNING, state.mode, 0).long()
    set_index = tables.set_of[mode]
    goes_on = state.finished == RUNNING
    if state.limit is not None:
        left = torch.where(state.limit > state.step, state.limit - state.step, 0)
        set_index = torch.where(left < tables.room[mode], tables.tight_set_of[mode], set_index)
        goes_on = goes_on & (left > 0)
    samples = goes_on & (set_index >= 0)
    forced = goes_on & ~samples & (tables.forced[mode] >= 0)
    return samples, forced, torch.where(samples, set_index, tables.forced[mode])


def _class_of(tables: GrammarTables, token: Tensor) -> Tensor:
    lo, hi, number = tables.class_ranges.unbind(1)
    if len(lo) == 0:
        return torch.zeros_like(token)
    found = torch.searchsorted(lo.contiguous().long(), token, right=True) - 1
    inside = (found >= 0) & (token < hi[found.clamp_min(0)])
    return torch.where(inside, number[found.clamp_min(0)], 0).long()


def advance_reference(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None) -> None:
    """`advance` for checked arguments."""
    running = state.finished == RUNNING
    samples, forced, _ = _coming(tables, state)
    at_end = running & ~(samples | forced)
    moves = running & ~at_end & (token >= 0)
    if streams is None:
        streams = torch.arange(len(token), device=token.device).unsqueeze(1)
    fed = moves.unsqueeze(1) & (streams >= 0)
    rows = streams[fed].long()
    if state.inputs is not None:
        state.inputs[rows] = token.unsqueeze(1).expand(streams.shape)[fed]
    if state.lengths is not None:
        state.lengths.index_add_(0, rows, torch.ones_like(rows))
    if state.seen is not None:
        set_seen_(state.seen, torch.where(moves, token, -1))
    if state.sequences is not None:
        state.sequences[moves, state.step[moves]] = token[moves]
    mode = torch.where(moves, state.mode, 0).long()
    following = tables.following[mode, _class_of(tables, token)]
    state.mode.copy_(torch.where(moves, following, state.mode))
    state.step += moves
    state.finished[running & ~moves & ~at_end] = FAILED
    samples, forced, _ = _coming(tables, state)
    state.finished[(state.finished == RUNNING) & ~(samples | forced)] = ENDED


def sample_advance_reference(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    """`sample_advance` for checked arguments; their sets and steps are not read."""
    samples, forced, value = _coming(tables, state)
    args = args._replace(
        allowed=tables.sets, set_index=torch.where(samples, value, 0).to(torch.int32), step=(state.step, 0)
    )
    sampled = sample_reference(args)
    sampled = Sample(
        torch.where(samples, sampled.token, torch.where(forced, value, -1).long()),
        torch.where(samples, sampled.logprob, torch.where(forced, 0.0, -torch.inf)),
        torch.where(samples, sampled.kept, forced.to(torch.int32)),
        torch.where(samples, sampled.status, torch.where(forced, STATUS_OK, STATUS_FINISHED)).to(torch.int32),
    )
    advance_reference(sampled.token, tables, state, args.streams)
    return sampled
