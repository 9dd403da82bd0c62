"""The draw of one step: mix the streams of every group, mask, filter, and take one token each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from fastdecode.decoder import Decoder
from fastdecode.decoder.cuda_graph import Draws
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.sequence import Group
from fastdecode.grammar import Grammar
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.models.chameleon import Vocabulary

SPAN_GAP = 64
"""Rows of the head that are computed for nothing rather than begin another multiplication."""

MOST_SPANS = 8


@dataclass
class Recorder:
    """What ``return_dict_in_generate`` asks to be kept, one tensor (groups, vocab) float32 per step."""

    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None

    @property
    def wanted(self) -> bool:
        return self.scores is not None or self.logits is not None


@dataclass
class _Layout:
    """Tensors that stay the same while the same groups draw from the same rows and sets."""

    streams: Tensor
    weights: Tensor
    set_index: Tensor
    parameters: dict[str, Any]
    seeds: Tensor
    spans: list[tuple[int, int]] | None
    tables: ops.GrammarTables


class Sampler:
    """Draws for the groups of one loop.

    Without ``unfused`` processors and ``recorder`` a draw is one call of `fastdecode.ops.sample`. ``normalise``: where
    processors follow the mixing, each stream's log-probabilities are mixed in place of its logits, as transformers'
    guidance does.
    """

    def __init__(
        self,
        decoder: Decoder,
        grammar: Grammar,
        vocabulary: Vocabulary,
        groups: Sequence[Group],
        text: Sampling,
        image: Sampling,
        unfused: LogitsProcessorList | None = None,
        recorder: Recorder | None = None,
        normalise: bool = False,
    ) -> None:
        self.decoder, self.grammar, self.device = decoder, grammar, decoder.device
        self.text, self.image = text, image
        self.unfused: Any = unfused or LogitsProcessorList()
        self.recorder, self.normalise = recorder or Recorder(), normalise
        self.tables = grammar.tables.to(self.device)
        self.sets = self.tables.sets
        self._known_spans: dict[frozenset[int], list[tuple[int, int]] | None] = {}
        self.seen: Tensor | None = None
        if text.repetition_penalty != 1.0 or image.repetition_penalty != 1.0:
            self.seen = ops.seen_bits([[*g.ids, *g.shown] for g in groups], vocabulary.size).to(self.device)
        self._noted: list[Tensor] | None = None  # while a step is under way that a copy to the device would wait for
        self._layout_key: tuple[object, ...] = ()
        self._layout: _Layout | None = None

    def note(self, newest: Tensor) -> None:
        """Count the batch's newest ids, (groups,) int64 with -1 where there is none, as seen."""
        if self.seen is None:
            return
        if self._noted is None:
            ops.set_seen_(self.seen, newest.to(self.device))
        else:
            self._noted.append(newest.clone())

    def _sampling(self, group: Group) -> Sampling:
        return self.image if self.grammar.in_picture(group.state) else self.text

    def _spans(self, sets: frozenset[int]) -> list[tuple[int, int]] | None:
        """The ids that some of ``sets`` allow, as few ranges; None if those are too many, or nearly all ids."""
        if sets not in self._known_spans:
            spans: list[tuple[int, int]] = []
            for lo, hi in sorted(r for s in sets for r in self.grammar.sets[s]):
                if spans and lo <= spans[-1][1] + SPAN_GAP:
                    spans[-1] = (spans[-1][0], max(hi, spans[-1][1]))
                else:
                    spans.append((lo, hi))
            size = self.grammar.tables.vocab
            few = len(spans) <= MOST_SPANS and sum(hi - lo for lo, hi in spans) < 0.97 * size
            self._known_spans[sets] = spans if few else None
        return self._known_spans[sets]

    def _key(self, drawing: list[Group]) -> tuple[object, ...]:
        """What `_lay_out` depends on."""
        return tuple(
            (
                *(id(g), *g.rows, *g.weights),
                self.grammar.set_index(g.state, len(g.ids), g.limit),
                self.grammar.in_picture(g.state),
            )
            for g in drawing
        )

    def _lay_out(self, drawing: list[Group]) -> _Layout:
        key = self._key(drawing)
        if self._layout is None or key != self._layout_key:
            sets = [self.grammar.set_index(g.state, len(g.ids), g.limit) for g in drawing]
            width = max(len(g.rows) for g in drawing)
            streams = [[*g.rows, *[-1] * (width - len(g.rows))] for g in drawing]
            weights = [[*g.weights, *[0.0] * (width - len(g.rows))] for g in drawing]
            self._layout_key = key
            self._layout = _Layout(
                streams=torch.tensor(streams, dtype=torch.int32, device=self.device),
                weights=torch.tensor(weights, dtype=torch.float32, device=self.device),
                set_index=torch.tensor(sets, dtype=torch.int32, device=self.device),
                parameters=_parameters([self._sampling(g) for g in drawing], self.device),
                seeds=torch.tensor([g.seed for g in drawing], device=self.device),
                spans=self._spans(frozenset(sets)),
                tables=self.tables.bounded(max(self.sets.count(s) for s in sets)),
            )
        return self._layout

    @property
    def plain(self) -> bool:
        """Whether a draw is one call of a kernel, with nothing of the caller's in between."""
        return not (self.unfused or self.recorder.wanted or (self.normalise and self.seen is not None))

    def draw_unseen(self, cache: StreamCache, drawing: list[Group], inputs: list[int], steps: int) -> list[list[int]]:
        """Steps of the decoder, and their draws, that need nothing of the host: it looks at the ids when all are there.

        For a `plain` drawer, and ``drawing`` all the groups that ``cache`` has rows of, which draw in each of these
        steps. ``inputs``: the next id of every row. Returns the ids of each step. ``RuntimeError`` as from `draw`.
        """
        draws, state = self._block(drawing, inputs)
        captured = self.decoder.captured.get(cache, draws, state, steps) if self.decoder.captured else None
        if captured is not None:
            drawn = captured.run(cache, draws, state, steps)
        else:
            drawn = self._steps_of_draws(cache, draws, state, steps)
        if self.seen is not None and state.seen is not None:
            self.seen[[g.number for g in drawing]] = state.seen
        tokens: list[list[int]] = drawn[0].tolist()
        statuses: list[list[int]] = drawn[1].tolist()
        for ahead, (row, status) in enumerate(zip(tokens, statuses, strict=True)):
            _check_drawn(row, status, drawing, ahead)
        return tokens

    def draw_seen_late(
        self,
        cache: StreamCache,
        drawing: list[Group],
        inputs: list[int],
        steps: int,
        look: Callable[[list[int]], bool],
    ) -> bool:
        """At most so many captured steps, each begun before the ids of the one before are looked at. ``look`` gets
        the ids of one step after another, when ``cache`` has grown by it, and says whether the next one, which is
        under way, counts: it does as long as the same groups draw from the same rows and sets.

        Arguments and errors as of `draw_unseen`. False, with nothing done, where steps cannot be captured.
        """
        draws, state = self._block(drawing, inputs)
        captured = self.decoder.captured.get(cache, draws, state, steps) if self.decoder.captured else None
        if captured is None:
            return False
        key = self._layout_key

        def look_at(tokens: list[int], statuses: list[int]) -> bool:
            _check_drawn(tokens, statuses, drawing)
            return look(tokens) and self._key(drawing) == key

        self._noted = []
        try:
            captured.run_seen_late(cache, draws, state, steps, look_at)
        finally:
            noted, self._noted = self._noted, None
            for newest in noted:
                self.note(newest)
        return True

    def _block(self, drawing: list[Group], inputs: list[int]) -> tuple[Draws, ops.DecodeState]:
        """What steps without a look at the ids begin with."""
        layout = self._lay_out(drawing)
        state = ops.DecodeState(
            mode=torch.tensor([g.state for g in drawing], dtype=torch.int32, device=self.device),
            step=torch.tensor([len(g.ids) for g in drawing], device=self.device),
            finished=torch.zeros(len(drawing), dtype=torch.uint8, device=self.device),
            limit=torch.tensor([g.limit for g in drawing], device=self.device),
            inputs=torch.tensor(inputs, device=self.device),
            seen=None if self.seen is None else self.seen[[g.number for g in drawing]],
        )
        draws = Draws(layout.tables, layout.streams, layout.weights, layout.seeds, layout.parameters, layout.spans)
        return draws, state

    def _steps_of_draws(
        self, cache: StreamCache, draws: Draws, state: ops.DecodeState, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and statuses (steps, groups)."""
        samples = []
        for _ in range(steps):
            assert state.inputs is not None
            logits = self.decoder.logits(self.decoder.step(cache, state.inputs), draws.spans)
            where: dict[str, Any] = {"streams": draws.streams, "weights": draws.weights, "seed": draws.seeds}
            samples.append(ops.sample_advance(logits, draws.tables, state, **where, **draws.parameters))
        return torch.stack([s.token for s in samples]), torch.stack([s.status for s in samples])

    def draw(self, hidden: Tensor, drawing: list[Group], so_far: Tensor) -> list[int]:
        """One token for each of ``drawing``, from the hidden states (rows, hidden) of all rows.

        ``so_far`` is (groups, length) int64, all ids as the caller sees them. ``RuntimeError`` if a group's logits are
        not numbers.
        """
        if not self.plain:
            return self._draw_unfused(hidden, drawing, so_far)
        layout = self._lay_out(drawing)
        seen = None
        if self.seen is not None:
            seen = self.seen[[g.number for g in drawing]]
        sample = ops.sample(
            self.decoder.logits(hidden, layout.spans),
            streams=layout.streams,
            weights=layout.weights,
            allowed=self.sets,
            set_index=layout.set_index,
            seen=seen,
            seed=layout.seeds,
            step=torch.tensor([len(g.ids) for g in drawing], device=self.device),
            **layout.parameters,
        )
        return _tokens(sample, drawing)

    def _draw_unfused(self, hidden: Tensor, drawing: list[Group], so_far: Tensor) -> list[int]:
        """The same draw with the caller's own logits processors in between: mix in torch, run them, then draw.

        They get what transformers gives them: all ids so far, and float32 scores (groups, vocab) of every sequence,
        with what the grammar bans at -inf, before and after them. Rows that draw nothing in this step are zeros.
        """
        logits = self.decoder.logits(hidden).float()
        raw = torch.zeros((len(so_far), logits.shape[1]), dtype=torch.float32, device=logits.device)
        mixed = raw.clone()
        sets = ~self.sets.mask(logits.shape[1])
        banned = torch.zeros_like(mixed, dtype=torch.bool)
        for g in drawing:
            i = g.number
            raw[i] = logits[g.rows[0]]
            banned[i] = sets[self.grammar.set_index(g.state, len(g.ids), g.limit)]
            for row, weight in zip(g.rows, g.weights, strict=True):
                if weight != 0.0:
                    z = logits[row].masked_fill(banned[i], -torch.inf)
                    banned[i] |= z == -torch.inf
                    mixed[i] += weight * (z.log_softmax(0) if self.normalise else z)
        mixed.masked_fill_(banned, -torch.inf)
        so_far = so_far.to(mixed.device)
        scores = mixed
        if self.unfused:
            scores = self.unfused(so_far, mixed).masked_fill(banned, -torch.inf)
        if self.recorder.logits is not None:
            self.recorder.logits.append(raw)
        if self.recorder.scores is not None:
            warped = scores.clone()
            for g in drawing:
                i = g.number
                warped[i : i + 1] = warp(scores[i : i + 1], [*g.ids, *g.shown], self._sampling(g))
            self.recorder.scores.append(warped)
        if not drawing:
            return []
        rows = torch.tensor([[g.number] for g in drawing], dtype=torch.int32, device=self.device)
        sample = ops.sample(
            scores,
            streams=rows,
            seen=None if self.seen is None else self.seen[rows[:, 0].long()],
            seed=torch.tensor([g.seed for g in drawing], device=self.device),
            step=torch.tensor([len(g.ids) for g in drawing], device=self.device),
            **_parameters([self._sampling(g) for g in drawing], self.device),
        )
        return _tokens(sample, drawing)


def _tokens(sample: ops.Sample, drawing: list[Group]) -> list[int]:
    tokens: list[int] = sample.token.tolist()
    _check_drawn(tokens, sample.status.tolist(), drawing)
    return tokens


def _check_drawn(tokens: list[int], statuses: list[int], drawing: list[Group], ahead: int = 0) -> None:
    """``RuntimeError`` if there is no token for a group, which has ``ahead`` more ids than it knows."""
    for g, token, status in zip(drawing, tokens, statuses, strict=True):
        if token < 0:
            what = "NaN, +inf or nothing but -inf" if status == 1 else "no allowed id"
            raise RuntimeError(
                f"sequence {g.number} has {what} among the logits of its token {len(g.ids) + ahead} "
                f"(prompt included): the model, or a logits processor, produced no distribution to draw from"
            )


def _parameters(by_group: Sequence[Sampling], device: torch.device) -> dict[str, Any]:
    """Arguments of `ops.sample`: scalars where all groups agree, else one value per group."""
    names = {
        "temperature": torch.float32,
        "top_k": torch.int32,
        "top_p": torch.float32,
        "min_p": torch.float32,
    }
    found: dict[str, Any] = {}
    for name, attribute, dtype in [
        *((n, n, d) for n, d in names.items()),
        ("penalty", "repetition_penalty", torch.float32),
    ]:
        values = [getattr(s, attribute) for s in by_group]
        found[name] = values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=dtype, device=device)
    return found


def warp(scores: Tensor, ids: Sequence[int], sampling: Sampling) -> Tensor:
    """``scores`` (1, vocab) after ``sampling``, by transformers' own processors: what ``output_scores`` returns.

    ``ids`` are those that the repetition penalty counts as seen.
    """
    penalty = sampling.repetition_penalty
    if penalty != 1.0:
        seen = torch.tensor(sorted(set(ids)), device=scores.device)
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
