"""`advance` and `sample_advance`: check their arguments, choose a backend, call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.advance.cpu import PreparedSample, advance_cpu, sample_advance_cpu
from fastdecode.ops.advance.cuda import advance_cuda, sample_advance_cuda
from fastdecode.ops.advance.reference import advance_reference, sample_advance_reference
from fastdecode.ops.advance.traced import call_advance, call_sample_advance
from fastdecode.ops.advance.triton import advance_triton, sample_advance_triton
from fastdecode.ops.arguments import Sample, SampleArguments
from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_backend, record_backend
from fastdecode.ops.checks import check_rows, check_streams, check_tensor, check_token_vector
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample.checks import check_arguments, check_values
from fastdecode.ops.tracing import is_traced


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
    token: Array,
    tables: GrammarTables,
    state: DecodeState,
    *,
    streams: Array | None = None,
    backend: str | None = None,
) -> None:
    """Appends one token to every running group, in place.

        token    (groups,) int64: the sampled token; −1: there is none, and the group fails
        tables   GrammarTables on the device of the tokens
        state    DecodeState there; its tensors are written
        streams  (groups, S) int32: row of each stream, −1 absent. None: row g is the only row of group g
        backend  as for `sample`

    In each group with finished == 0 the token becomes the next input of all streams, and their
    lengths grow by one; its bit in `seen` is set; it is written to the sequence at index `step`; step
    grows by one; and the mode becomes following[mode, class of the token]. Then finished becomes 1 if
    no token can follow (set_of and forced are −1 in the new mode, or step has reached the limit).
    A group whose token is −1 gets finished = 2. A group in which no token could follow before the
    call gets finished = 1 and no token. Two streams must not share a row, and the token must be
    allowed by the grammar; neither is checked.

    Raises ValueError naming the argument, value and index, with nothing written. On a GPU the values in
    tensors are not checked, since the host would have to wait for them.
    """
    if is_traced(token):
        return call_advance(token, tables, state, streams=streams, backend=backend)
    token = check_token_vector("token", token, "groups")
    groups, device = len(token), token.device
    _check_tables(tables, device)
    _check_state(state)
    if streams is not None:
        streams = check_streams(streams, device)
        check_tensor("streams", streams, (groups, streams.shape[1]), torch.int32, device)
    per_row = state.inputs if state.inputs is not None else state.lengths
    if per_row is None:
        streams = None  # nothing is written per stream
    rows = len(per_row) if isinstance(per_row, Tensor) and per_row.dim() == 1 else groups
    if streams is None and rows < groups:
        raise ValueError(f"streams = None: needs a row for each of the {groups} groups, got {rows}")
    state.check(groups, rows, tables.vocab, device)
    backend = choose_backend(backend, device.type)
    _ADVANCE[backend](token, tables, state, streams, rows)
    record_backend(backend)


def sample_advance(
    logits: Array,
    tables: GrammarTables,
    state: DecodeState,
    *,
    streams: Array | None = None,
    weights: Array | None = None,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    penalty: float | Array = 1.0,
    contrast: tuple[float, int] | None = None,
    seed: int | Array = 0,
    noise: Array | None = None,
    backend: str | None = None,
) -> Sample:
    """`sample` from the set that the grammar allows in each group's mode, then `advance` by that token.

    The arguments are those of `sample` and `advance`. The token sets are those of `tables`, the steps
    `state.step`, and the penalised tokens `state.seen`. A forced token is not sampled: it has logprob 0
    and kept 1. A group that had finished, or in which no token can follow, gets token −1 and status 3.
    Where sampling fails (status 1 or 2) the group's finished becomes 2, and nothing else of it changes.

    Raises ValueError as `sample` and `advance` do, with nothing written.
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
    given = (streams, weights, temperature, top_k, top_p, min_p, penalty, contrast, seed, noise)
    args = _checked(logits, tables, state, *given)
    backend = choose_backend(backend, args.logits.device.type)
    sampled = _SAMPLE_ADVANCE[backend](args, tables, state)
    record_backend(backend)
    return sampled


def _checked(
    logits: Array,
    tables: GrammarTables,
    state: DecodeState,
    streams: Array | None,
    weights: Array | None,
    temperature: float | Array,
    top_k: int | Array,
    top_p: float | Array,
    min_p: float | Array,
    penalty: float | Array,
    contrast: tuple[float, int] | None,
    seed: int | Array,
    noise: Array | None,
) -> SampleArguments:
    _check_state(state)
    filters = (temperature, top_k, top_p, min_p, penalty)
    args = check_arguments(logits, streams, weights, None, None, *filters, state.seen, contrast, seed, 0, noise)
    rows, vocab = args.logits.shape
    _check_tables(tables, args.logits.device)
    if tables.vocab != vocab:
        raise ValueError(f"tables.vocab = {tables.vocab}: must be {vocab}, as for logits")
    state.check(args.groups, rows, vocab, args.logits.device)
    return args._replace(allowed=tables.sets)


class RepeatedSample:
    """`sample_advance` for steps that differ in their logits only, which must be on the CPU. What the steps have in
    common is checked once: no argument may get another shape or other memory. A call overwrites the result of the one
    before.

    The arguments are those of `sample_advance`.
    """

    def __init__(
        self,
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
    ) -> None:
        self._tables, self._state = tables, state
        self._given = (streams, weights, temperature, top_k, top_p, min_p, penalty, contrast, seed, None)
        self._key: tuple[Any, ...] = ()
        self._run: PreparedSample | None = None

    def __call__(self, logits: Tensor) -> Sample:
        key = (logits.data_ptr(), logits.shape, logits.stride(), logits.dtype, torch.get_num_threads())
        if self._run is None or key != self._key:
            args = _checked(logits, self._tables, self._state, *self._given)
            self._run = PreparedSample(args, self._tables, self._state)
            self._key = key if self._run.logits.data_ptr() == key[0] else ()  # else it reads a copy
        sampled = self._run()
        record_backend("cpu")
        return sampled


def _advance_reference(
    token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int
) -> None:
    state.check_values(tables, token)
    check_rows(streams, rows)
    advance_reference(token, tables, state, streams)


def _sample_advance_reference(args: SampleArguments, tables: GrammarTables, state: DecodeState) -> Sample:
    check_values(args)
    state.check_values(tables, None)
    return sample_advance_reference(args, tables, state)


_ADVANCE = {"reference": _advance_reference, "cpu": advance_cpu, "triton": advance_triton, "cuda": advance_cuda}
_SAMPLE_ADVANCE = {
    "reference": _sample_advance_reference,
    "cpu": sample_advance_cpu,
    "triton": sample_advance_triton,
    "cuda": sample_advance_cuda,
}
