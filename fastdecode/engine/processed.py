"""Sampling with the caller's logits processors: PyTorch mixes logits, the processors run, and the kernel samples.

Processors get the arguments of transformers: all tokens of the batch so far, and float32 scores (batch, vocab). Tokens
that the grammar bans are set to -inf before and after them. Rows of sequences that sample nothing in this step are
zero. Scores have the columns that `fastdecode.engine.callbacks.Callbacks` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastdecode import ops
from fastdecode.engine.batch import parameters_of
from fastdecode.engine.callbacks import Callbacks, check_unwritten, name_of
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.request import Request
from fastdecode.engine.sequence import Sequence
from fastdecode.ops.sample.reference import likely_tokens


def sample_processed(request: Request, logits: Tensor) -> tuple[list[int], list[int], list[float]]:
    """Tokens, statuses and log probabilities of all sequences of ``request``, in order. A sequence that has ended gets
    token -1 and status `fastdecode.ops.STATUS_FINISHED`; a sequence with a forced token gets that token.

    ``logits`` (rows, vocab): of all rows of the cache.
    """
    callbacks = request.callbacks
    assert callbacks is not None
    batch = request.sequences
    tokens = [-1] * len(batch)
    statuses = [ops.STATUS_FINISHED] * len(batch)
    logprobs = [0.0] * len(batch)
    sampling = []
    for i, s in enumerate(batch):
        if not s.done:
            tokens[i], statuses[i] = s.forced, ops.STATUS_OK
            if s.forced < 0:
                sampling.append(i)
    if not sampling and not callbacks.recorder.wanted:
        return tokens, statuses, logprobs
    raw, mixed, banned = _mix(batch, sampling, logits[:, : callbacks.columns], callbacks.normalise)
    so_far = callbacks.tokens.to(mixed.device)
    scores = mixed
    if callbacks.processors:
        for processor in callbacks.processors:
            call: Any = LogitsProcessorList([processor])
            before = so_far.clone()
            scores = call(so_far, scores)
            _check_scores(processor, scores, mixed)
            check_unwritten(so_far, before, "logits processor", processor)
            scores = scores.float() if scores.dtype == torch.float64 else scores
        scores = scores.masked_fill(banned, -torch.inf)
    _record(callbacks, batch, sampling, raw, scores)
    if not sampling:
        return tokens, statuses, logprobs
    rows = torch.tensor([[i] for i in sampling], dtype=torch.int32, device=scores.device)
    chosen = [batch[i] for i in sampling]
    drawn = ops.sample(
        scores,
        streams=rows,
        seen=_seen(chosen, scores.shape[1], scores.device),
        seed=torch.tensor([s.seed for s in chosen], device=scores.device),
        step=torch.tensor([len(s.tokens) for s in chosen], device=scores.device),
        **parameters_of([s.sampling for s in chosen], scores.device),
    )
    columns = (column.tolist() for column in (drawn.token, drawn.status, drawn.logprob))
    for i, token, status, logprob in zip(sampling, *columns, strict=True):
        tokens[i], statuses[i], logprobs[i] = token, status, logprob
    return tokens, statuses, logprobs


def _mix(batch: list[Sequence], sampling: list[int], logits: Tensor, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The full sequences' logits, the mixed logits and the banned tokens, each (batch, vocab).

    A token that a contrast excludes is banned, unless a NaN or +inf was read for it, which is an error in any case.
    """
    vocab = logits.shape[1]
    raw = torch.zeros((len(batch), vocab), dtype=torch.float32, device=logits.device)
    mixed = torch.zeros_like(raw)
    banned = torch.zeros_like(raw, dtype=torch.bool)
    for i in sampling:
        s = batch[i]
        raw[i] = logits[s.rows[0]]
        banned[i] = True
        for low, high in s.grammar.sets[s.grammar.set_index(s.state, len(s.tokens), s.limit)]:
            banned[i, low:high] = False
        contrast, unlikely, readable = s.contrast, None, torch.ones_like(banned[i])
        for row, weight in zip(s.rows, s.weights, strict=True):
            if weight != 0.0:
                z = logits[row].float().masked_fill(banned[i], -torch.inf)
                if contrast is not None and unlikely is None:
                    unlikely = ~likely_tokens(z[None], *contrast)[0]
                readable &= z < torch.inf
                banned[i] |= z == -torch.inf
                mixed[i] += weight * (z.log_softmax(0) if normalise else z)
        mixed[i].masked_fill_(~readable, torch.nan)  # a +inf that is subtracted would be a token that never comes
        if unlikely is not None:
            banned[i] |= unlikely & readable
        for token, value in s.rules.bias:
            if token < vocab:
                mixed[i, token] += value
    return raw, mixed.masked_fill_(banned, -torch.inf), banned


def _check_scores(processor: Any, scores: Any, mixed: Tensor) -> None:
    dense = isinstance(scores, Tensor) and scores.layout is torch.strided
    if not dense or scores.shape != mixed.shape or not scores.is_floating_point():
        got = f"a {'sparse ' * isinstance(scores, Tensor)}{type(scores).__name__}"
        if dense:
            got = f"{tuple(scores.shape)} {scores.dtype}"
        raise ValueError(
            f"the logits processor {name_of(processor)} returned {got}; it must return scores {tuple(mixed.shape)} of "
            "floats"
        )


def _record(callbacks: Callbacks, batch: list[Sequence], sampling: list[int], raw: Tensor, scores: Tensor) -> None:
    recorder = callbacks.recorder
    if recorder.logits is not None:
        recorder.logits.append(raw)
    if recorder.scores is not None:
        warped = scores.clone()
        for i in sampling:
            s = batch[i]
            warped[i : i + 1] = warp(scores[i : i + 1], s.penalised, s.sampling)
        recorder.scores.append(warped)


def _seen(chosen: list[Sequence], vocab: int, device: torch.device) -> Tensor | None:
    if all(s.sampling.repetition_penalty == 1.0 for s in chosen):
        return None
    return ops.seen_bits([s.penalised for s in chosen], vocab).to(device)


def warp(scores: Tensor, tokens: Iterable[int], sampling: Sampling) -> Tensor:
    """``scores`` (1, vocab) after ``sampling`` by transformers' own processors: what ``output_scores`` returns.

    ``tokens``: those that the repetition penalty applies to.
    """
    penalty = sampling.repetition_penalty
    if penalty != 1.0:
        seen = torch.tensor(sorted(set(tokens)), device=scores.device)
        z = scores[:, seen]
        scores = scores.index_copy(1, seen, torch.where(z < 0, z * penalty, z / penalty))
    chain: Any = LogitsProcessorList()
    if sampling.temperature != 0.0:
        if sampling.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            chain.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            chain.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0.0:
            chain.append(MinPLogitsWarper(sampling.min_p))
    warped: Tensor = chain(None, scores)
    return warped
