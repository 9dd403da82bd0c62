"""The tensors that one step gives the sampling kernel, for all sequences that it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.draws import Contrast, Draws, Part, joined
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.sequence import Sequence
from fastdecode.engine.tables import SharedTables
from fastdecode.grammar import TEXT
from fastdecode.ops.advance.operation import RepeatedSample
from fastdecode.ops.backends import choose_backend

SPAN_GAP = 64
"""Spans of the output head's rows that are at most this far apart are computed as one product."""

MOST_SPANS = 8

WEIGHTS_AHEAD = 64
"""For so many steps the weights of schedules are copied to the device at once."""

Spans = tuple[tuple[int, int], ...]


class Batch:
    """The sequences that the kernel samples in a step, and their tensors. Every step updates ``state``.

    It is used for several steps, while rows, modalities and grammars stay the same. ``sampled``: in an order in which
    sequences with the same contrast are neighbours. ``inputs`` (rows,) int64 holds the next token of every row of the
    cache, also of rows that the kernel does not sample.
    """

    def __init__(
        self,
        sampled: list[Sequence],
        inputs: list[int],
        shared: SharedTables,
        device: torch.device,
    ) -> None:
        self.sampled = sorted(sampled, key=lambda s: s.contrast or ())
        self.inputs = torch.tensor(inputs, dtype=torch.long, device=device)
        self.bias: Tensor | None = None
        self.draws: Draws | None = None
        self.state: ops.DecodeState | None = None
        self._calls: list[Callable[[Tensor], ops.Sample]] = []
        self._scheduled = [(g, s, s.position) for g, s in enumerate(self.sampled) if s.course is not None]
        self._steps = 0
        self._ahead: Tensor | None = None
        if self.sampled:
            self._lay_out(shared, device)

    def _lay_out(self, shared: SharedTables, device: torch.device) -> None:
        sampled = self.sampled
        tables = shared.include(s.grammar for s in sampled)
        vocab = tables.vocab
        biased = [s for s in sampled if s.rules.bias]
        width = max(len(s.rows) for s in sampled) + bool(biased)
        first = len(self.inputs)
        bias_row = {id(s): first + k for k, s in enumerate(biased)}
        streams, weights = [], []
        for s in sampled:
            rows, weighed = list(s.rows), list(s.weights)
            if id(s) in bias_row:
                rows, weighed = [*rows, bias_row[id(s)]], [*weighed, 1.0]
            streams.append(rows + [-1] * (width - len(rows)))
            weights.append(weighed + [0.0] * (width - len(weighed)))
        if biased:
            self.bias = torch.zeros(len(biased), vocab, dtype=torch.float32, device=device)
            for row, s in zip(self.bias, biased, strict=True):
                tokens, values = zip(*s.rules.bias, strict=True)
                row[torch.tensor(tokens, device=device)] = torch.tensor(values, device=device)
        reachable = {(id(s.grammar), number) for s in sampled for number in reachable_sets(s)}
        grammars = {id(s.grammar): s.grammar for s in sampled}
        largest = max((grammars[key].sets.count(number) for key, number in reachable), default=0)
        penalised = any(s.sampling.repetition_penalty != 1.0 for s in sampled)
        self.draws = Draws(
            tables=tables.bounded(largest),
            streams=torch.tensor(streams, dtype=torch.int32, device=device),
            weights=torch.tensor(weights, dtype=torch.float32, device=device),
            seeds=torch.tensor([s.seed for s in sampled], device=device),
            parameters=parameters_of([s.sampling for s in sampled], device),
            spans=spans_of((r for key, number in reachable for r in grammars[key].sets[number]), vocab),
            parts=parts_of([s.contrast for s in sampled]),
        )
        if not penalised:
            for s in sampled:
                s.seen = None  # it is not updated without a penalty
        self.state = ops.DecodeState(
            mode=torch.tensor(
                [shared.first_mode[id(s.grammar)] + s.state for s in sampled], dtype=torch.int32, device=device
            ),
            step=torch.tensor([len(s.tokens) for s in sampled], device=device),
            finished=torch.zeros(len(sampled), dtype=torch.uint8, device=device),
            limit=torch.tensor([s.limit for s in sampled], device=device),
            inputs=self.inputs if self.bias is None else None,  # rows of biases have no input
            seen=seen_of(sampled, vocab, device) if penalised else None,
        )

    def sample(self, logits: Tensor) -> ops.Sample:
        """Sample a token of every sequence from ``logits`` (rows, vocab), and advance their state. On a CPU the next
        call overwrites the result.
        """
        draws, state = self.draws, self.state
        assert draws is not None
        assert state is not None
        if self._scheduled:
            self._follow_schedules(draws)
        if not self._calls:
            repeats = choose_backend(None, logits.device.type) == "cpu"
            for own, given in draws.calls(state):
                self._calls.append(
                    RepeatedSample(draws.tables, own, **given)
                    if repeats
                    else partial(ops.sample_advance, tables=draws.tables, state=own, **given)
                )
        if self.bias is None:
            return joined([call(logits) for call in self._calls])
        logits = torch.cat([logits.float(), self.bias])
        drawn = joined([call(logits) for call in self._calls])
        for s, token in zip(self.sampled, drawn.token.tolist(), strict=True):
            if token >= 0:
                self.inputs[s.rows] = token
        return drawn

    def weights_ahead(self, steps: int) -> Tensor | None:
        """(steps, groups, streams) float32: the weights of the next steps. None if they do not change."""
        if not self._scheduled:
            return None
        assert self.draws is not None
        weights = self.draws.weights.cpu().expand(steps, -1, -1).clone()
        for g, s, position in self._scheduled:
            assert s.course is not None
            weights[:, g, : len(s.rows)] = s.course.weights_from(position + self._steps, steps, s.needed)
        return weights.to(self.draws.weights.device)

    def _follow_schedules(self, draws: Draws) -> None:
        """Put the weights of this step where the kernel reads them."""
        place = self._steps % WEIGHTS_AHEAD
        if place == 0:
            self._ahead = self.weights_ahead(WEIGHTS_AHEAD)
        assert self._ahead is not None
        draws.weights.copy_(self._ahead[place])
        self._steps += 1

    def advance_seen(self, tokens: list[int]) -> None:
        """Add these tokens, one per sequence, to the penalised ones."""
        if self.state is not None and self.state.seen is not None:
            ops.set_seen_(self.state.seen, torch.tensor(tokens, device=self.state.seen.device))


def reachable_sets(s: Sequence) -> set[int]:
    """The sets of the grammar that a sequence may sample from before it enters or leaves a picture."""
    if s.forced >= 0 and not s.in_block:
        return set()
    host = s.grammar.tables.host
    state = s.grammar.first_sampled if s.in_picture else TEXT
    tight = s.limit - len(s.tokens) < host.room[state]
    found = {host.tight_set_of[state]} if tight else {host.set_of[state], host.tight_set_of[state]}
    return {number for number in found if number >= 0}


def parts_of(contrasts: list[Contrast | None]) -> tuple[Part, ...]:
    """The parts of groups with these contrasts, of which equal ones are neighbours."""
    starts = [g for g, contrast in enumerate(contrasts) if g == 0 or contrast != contrasts[g - 1]]
    return tuple((g, contrasts[g]) for g in starts)


def spans_of(ranges: Iterable[tuple[int, int]], vocab: int) -> Spans | None:
    """Merge ranges of tokens into few spans. None if these are too many, or cover nearly all tokens."""
    spans: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if spans and low <= spans[-1][1] + SPAN_GAP:
            spans[-1] = (spans[-1][0], max(high, spans[-1][1]))
        else:
            spans.append((low, high))
    few = len(spans) <= MOST_SPANS and sum(high - low for low, high in spans) < 0.97 * vocab
    return tuple(spans) if few and spans else None


def seen_of(sampled: list[Sequence], vocab: int, device: torch.device) -> Tensor:
    """(sequences, ceil(vocab / 32)) int32: the bit sets of tokens that a repetition penalty applies to."""
    fresh = [s for s in sampled if s.seen is None]
    if fresh:
        bits = ops.seen_bits([s.penalised for s in fresh], vocab).to(device)
        for s, row in zip(fresh, bits, strict=True):
            s.seen = row
    seen = torch.stack([s.seen for s in sampled if s.seen is not None])
    for s, row in zip(sampled, seen, strict=True):
        s.seen = row  # a view: the batch's state updates it
    return seen


def parameters_of(by_sequence: list[Sampling], device: torch.device) -> dict[str, Any]:
    """Arguments of `ops.sample`: a number if all sequences agree, else one value per sequence."""
    dtypes = {"top_k": torch.int32}
    found: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "penalty"):
        values = [getattr(s, "repetition_penalty" if name == "penalty" else name) for s in by_sequence]
        dtype = dtypes.get(name, torch.float32)
        found[name] = values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=dtype, device=device)
    return found
