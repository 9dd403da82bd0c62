"""`advance`: append one token to every group; `sample_advance`: draw it first, by the grammar."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops import checks
from fastdecode.ops.advance_reference import advance_reference, sample_advance_reference
from fastdecode.ops.advance_triton import advance_triton, sample_advance_triton
from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.backends import choose_backend, record_backend
from fastdecode.ops.cpu import advance_cpu, sample_advance_cpu
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.library import call_advance, call_sample_advance, is_traced


def _check_tables(tables: GrammarTables, device: torch.device) -> None:
    if not isinstance(tables, GrammarTables):
        raise ValueError(f"tables: must be GrammarTables, got {type(tables).__name__}")
    for name, of in (("tables", tables.device), ("tables.sets", tables.sets.device)):
        if of != device:
            raise ValueError(f"{name}.device = {of}: must be {device}")
    if device.type == "meta":
        raise ValueError("tables.device = meta: must be a device that holds values")


def _check_state(state: DecodeState) -> None:
    if not isinstance(state, DecodeState):
        raise ValueError(f"state: must be a DecodeState, got {type(state).__name__}")


def advance(
    token: Tensor,
    tables: GrammarTables,
    state: DecodeState,
    *,
    streams: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Appends one token to every running group, in place.

        token    (groups,) int64: what was drawn; −1: nothing, which fails the group
        tables   GrammarTables on the device of the tokens
        state    DecodeState there; its tensors are written
        streams  (groups, S) int32: row of each stream, −1 absent. None: row g is group g's only one
        backend  as for `sample`

    For each group with finished == 0: the token becomes the input of all its streams, whose lengths
    grow by one; its bit is set in seen; it is written into the sequence at place `step`; step grows
    by one; the mode becomes following[mode, class of the token]. finished becomes 1 if nothing can
    follow (set_of and forced are −1 there, or step has reached the limit), 2 if the token is −1. A
    group that was at its end already gets finished = 1 and no token. Two streams must not share a
    row, and the token is not held against the grammar; neither is checked.

    Raises ValueError naming the argument, value and index, with nothing written; on a GPU only what
    can be seen without waiting for it.
    """
    if is_traced(token):
        return call_advance(token, tables, state, streams=streams, backend=backend)
    if not isinstance(token, Tensor) or token.dim() != 1 or token.dtype != torch.int64:
        what = f"{tuple(token.shape)} {token.dtype}" if isinstance(token, Tensor) else type(token).__name__
        raise ValueError(f"token: must be (groups,) int64, got {what}")
    groups, device = len(token), token.device
    _check_tables(tables, device)
    _check_state(state)
    if streams is not None:
        streams = checks.check_streams(streams, device)
        checks.check_tensor("streams", streams, (groups, streams.shape[1]), torch.int32, device)
    per_row = state.inputs if state.inputs is not None else state.lengths
    if per_row is None:
        streams = None  # nothing is wanted of them
    rows = len(per_row) if isinstance(per_row, Tensor) and per_row.dim() == 1 else groups
    if streams is None and rows < groups:
        raise ValueError(f"streams = None: needs a row for each of the {groups} groups, got {rows}")
    state.check(groups, rows, tables.vocab, device)
    backend = choose_backend(backend, device.type)
    _ADVANCE[backend](token.contiguous(), tables, state, streams, rows)
    record_backend(backend)


def sample_advance(
    logits: Tensor,
    tables: GrammarTables,
    state: DecodeState,
    *,
    streams: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    penalty: float | Tensor = 1.0,
    contrast: tuple[float, int] | None = None,
    seed: int | Tensor = 0,
    noise: Tensor | None = None,
    backend: str | None = None,
) -> Sample:
    """`sample` from the set that each group's mode allows, then `advance` by what was drawn.

    Arguments as there; the sets are those of `tables`, the steps those of `state`, and the seen ids
    `state.seen`. A forced token is not sampled: logprob 0, kept 1. A group that had finished, or was
    at its end, gets token −1 and status 3. Where the draw has no answer (status 1 or 2) the group's
    finished becomes 2 and nothing else of it changes.

    Raises ValueError as they do, with nothing written.
    """
    if is_traced(logits):
        return call_sample_advance(
            logits,
            tables,
            state,
            streams=streams,
            weights=weights,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            penalty=penalty,
            contrast=contrast,
            seed=seed,
            noise=noise,
            backend=backend,
        )
    _check_state(state)
    args = checks.check_arguments(
        logits,
        streams,
        weights,
        None,
        None,
        temperature,
        top_k,
        top_p,
        min_p,
        penalty,
        state.seen,
        contrast,
        seed,
        0,
        noise,
    )
    vocab, device = logits.shape[1], logits.device
    _check_tables(tables, device)
    if tables.vocab != vocab:
        raise ValueError(f"tables.vocab = {tables.vocab}: must be {vocab}, as for logits")
    state.check(args.groups, len(logits), vocab, device)
    args = args._replace(allowed=tables.sets)
    backend = choose_backend(backend, device.type)
    drawn = _SAMPLE_ADVANCE[backend](args, tables, state)
    record_backend(backend)
    return drawn


def _advance_reference(
    token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int
) -> None:
    state.check_values(tables, token)
    checks.check_rows(streams, rows)
    advance_reference(token, tables, state, streams)


def _sample_advance_reference(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    checks.check_values(args)
    state.check_values(tables, None)
    return sample_advance_reference(args, tables, state)


_ADVANCE = {"reference": _advance_reference, "cpu": advance_cpu, "triton": advance_triton}
_SAMPLE_ADVANCE = {
    "reference": _sample_advance_reference,
    "cpu": sample_advance_cpu,
    "triton": sample_advance_triton,
}
