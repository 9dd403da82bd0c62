"""The decode loop: all streams of all sequences in one batch, one draw per sequence and step.

A `Group` is one sequence being generated and the rows its streams occupy. A step feeds every row its next id (at first
the last of its stream, later the token that its group drew), mixes the logits of each group's rows, and draws once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastdecode import ops
from fastdecode.decoder import ChameleonDecoder
from fastdecode.grammar import DONE, IMAGE_SET, Grammar
from fastdecode.guidance import Guidance
from fastdecode.models.chameleon import Vocabulary
from fastdecode.sampling import Sampling


@dataclass(slots=True, eq=False)
class Group:
    """One sequence being generated.

    ``ids``: prompt (without padding, placeholders filled) and what was generated. ``limit``: most ids it may have.
    ``tail``: where the picture being drawn begins, or -1. ``rows``: rows of its streams, the full one first. ``shown``:
    further ids that a repetition penalty counts as seen (placeholders that pictures have replaced).
    """

    ids: list[int]
    limit: int
    seed: int
    guidance: Guidance
    state: int
    prompt_length: int = 0
    tail: int = -1
    shown: tuple[int, ...] = ()
    rows: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        self.prompt_length = len(self.ids)

    @property
    def done(self) -> bool:
        return self.state == DONE

    def plan(self, vocabulary: Vocabulary) -> tuple[list[tuple[int, ...]], list[float]]:
        """`Guidance.plan` for the sequence as it is now."""
        tail = self.tail if self.tail >= 0 else len(self.ids)
        return self.guidance.plan(self.ids, self.prompt_length, tail, vocabulary)

    def first_plan(self, grammar: Grammar, vocabulary: Vocabulary) -> tuple[list[tuple[int, ...]], list[float]]:
        """Streams and weights where guidance first acts: now, or in a picture that begins next; one if nowhere."""
        ids = tuple(self.ids)
        if self.guidance.everywhere or self.tail >= 0:
            others, weights = self.plan(vocabulary)
        elif grammar.draws:
            ids = (*ids, vocabulary.begin_image)
            others, weights = self.guidance.plan(ids, self.prompt_length, len(self.ids), vocabulary)
        else:
            others, weights = [], [1.0]
        return [ids, *others], weights


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
    span: tuple[int, int] | None


class DecodeLoop:
    """Decodes ``groups`` to their ends. Build, then `run` once.

    ``prompts`` is (batch, length) int64 as the caller gave it; the result has it in front, and ``pad`` behind what
    ended early. ``normalise``: where processors follow the mixing, each stream's log-probabilities are mixed in place
    of its logits, as transformers' guidance does. ``after_step`` is called with the batch's newest column after every
    step.
    """

    def __init__(
        self,
        decoder: ChameleonDecoder,
        grammar: Grammar,
        vocabulary: Vocabulary,
        groups: Sequence[Group],
        prompts: Tensor,
        pad: int,
        text: Sampling,
        image: Sampling,
        unfused: LogitsProcessorList | None = None,
        stopping: StoppingCriteriaList | None = None,
        recorder: Recorder | None = None,
        normalise: bool = False,
        after_step: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.decoder, self.grammar, self.vocabulary = decoder, grammar, vocabulary
        self.groups, self.live = list(groups), list(groups)
        self.text, self.image = text, image
        self.unfused: Any = unfused or LogitsProcessorList()
        self.stopping: Any = stopping or StoppingCriteriaList()
        self.recorder, self.after_step = recorder or Recorder(), after_step
        self.normalise = normalise
        self.pad, self.width = pad, prompts.shape[1]
        longest = max((g.limit - g.prompt_length for g in groups), default=0)
        self.sequences = torch.full((len(groups), self.width + longest), pad, dtype=torch.long)
        self.sequences[:, : self.width] = prompts
        self.cache, self.device = decoder.new_cache(), decoder.device
        self.sets = grammar.sets.to(self.device)
        self.owners: list[Group] = []
        self.inputs: list[int] = []
        low, high = min(vocabulary.image_ids), max(vocabulary.image_ids) + 1
        self.image_span = (low, high) if high - low == len(vocabulary.image_ids) else None
        self.seen: Tensor | None = None
        if text.repetition_penalty != 1.0 or image.repetition_penalty != 1.0:
            self.seen = ops.seen_bits([[*g.ids, *g.shown] for g in groups], vocabulary.size).to(self.device)
        self._layout_key: tuple[object, ...] = ()
        self._layout: _Layout | None = None
        self.steps = 0

    # --- rows ---------------------------------------------------------------------------------------------------

    def _admit(self, wanted: list[tuple[Group, list[tuple[int, ...]]]]) -> None:
        """Prefill new rows for the given streams, all at once; each stream's last id is left to the next step."""
        streams = [(group, stream) for group, list_of in wanted for stream in list_of]
        if not streams:
            return
        rows = self.decoder.prefill(self.cache, [stream[:-1] for _, stream in streams])
        for row, (group, stream) in zip(range(rows.start, rows.stop), streams, strict=True):
            group.rows.append(row)
            self.owners.append(group)
            self.inputs.append(stream[-1])

    def _release(self, group: Group, keep: int) -> None:
        """Give up all but the first ``keep`` rows of ``group``."""
        while len(group.rows) > keep:
            row = group.rows.pop()
            moved = self.cache.remove(row)
            if moved != row:
                mover = self.owners[moved]
                mover.rows[mover.rows.index(moved)] = row
                self.owners[row], self.inputs[row] = mover, self.inputs[moved]
            self.owners.pop()
            self.inputs.pop()

    def _start(self) -> None:
        wanted = []
        for group in self.groups:
            others: list[tuple[int, ...]] = []
            if group.tail >= 0 or group.guidance.everywhere:
                others, group.weights = group.plan(self.vocabulary)
            wanted.append((group, [tuple(group.ids), *others]))
        self._admit(wanted)

    # --- one step -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Decode until every group is done; returns (groups, prompt + longest) int64, padded behind."""
        if self.live:
            self._start()
        while self.live:
            self._step()
        return self.sequences[:, : self.width + self.steps]

    def _step(self) -> None:
        hidden = self.decoder.step(self.cache, torch.tensor(self.inputs, device=self.device))
        forced = {id(g): self.grammar.forced[g.state] for g in self.live}
        drawing = [g for g in self.live if forced[id(g)] < 0]
        drawn = (
            dict(zip(map(id, drawing), self._draw(hidden, drawing), strict=True))
            if drawing or self.recorder.wanted
            else {}
        )
        column = self.width + self.steps
        self.steps += 1
        begun = []
        for g in self.live:
            token = forced[id(g)] if forced[id(g)] >= 0 else drawn[id(g)]
            g.ids.append(token)
            for row in g.rows:
                self.inputs[row] = token
            before, g.state = g.state, self.grammar.advance(g.state, token)
            if len(g.ids) >= g.limit:
                g.state = DONE
            if g.state == DONE:
                continue
            inside = self.grammar.in_picture(g.state)
            if inside and (g.tail < 0 or token == self.vocabulary.begin_image):
                g.tail = len(g.ids) - 1
                if not g.guidance.everywhere:
                    self._release(g, 1)
                    others, g.weights = g.plan(self.vocabulary)
                    begun.append((g, others))
            elif not inside and self.grammar.in_picture(before):
                g.tail = -1
                if not g.guidance.everywhere:
                    self._release(g, 1)
                    g.weights = [1.0]
        newest = torch.full((len(self.groups),), self.pad)
        for i, g in enumerate(self.groups):
            if len(g.ids) - g.prompt_length == self.steps:
                newest[i] = g.ids[-1]
                if self.seen is not None:
                    ops.set_seen_(self.seen[i : i + 1], newest[i : i + 1].to(self.device))
        self.sequences[:, column] = newest
        if self.stopping:
            scores = tuple(self.recorder.scores) if self.recorder.scores is not None else None
            stop = self.stopping(self.sequences[:, : column + 1], scores)
            for i, g in enumerate(self.groups):
                if bool(stop[i]):
                    g.state = DONE
        for g in self.live:
            if g.done:
                self._release(g, 0)
        self._admit([(g, others) for g, others in begun if not g.done])
        self.live = [g for g in self.live if not g.done]
        if self.after_step is not None:
            self.after_step(newest)

    # --- the draw -----------------------------------------------------------------------------------------------

    def _sampling(self, group: Group) -> Sampling:
        return self.image if self.grammar.in_picture(group.state) else self.text

    def _lay_out(self, drawing: list[Group]) -> _Layout:
        sets = [self.grammar.set_index(g.state, len(g.ids), g.limit) for g in drawing]
        pictures = [self.grammar.in_picture(g.state) for g in drawing]
        key = tuple((id(g), *g.rows, *g.weights, s, p) for g, s, p in zip(drawing, sets, pictures, strict=True))
        if self._layout is None or key != self._layout_key:
            width = max(len(g.rows) for g in drawing)
            streams = [[*g.rows, *[-1] * (width - len(g.rows))] for g in drawing]
            weights = [[*g.weights, *[0.0] * (width - len(g.rows))] for g in drawing]
            self._layout_key = key
            self._layout = _Layout(
                streams=torch.tensor(streams, dtype=torch.int32, device=self.device),
                weights=torch.tensor(weights, device=self.device),
                set_index=torch.tensor(sets, dtype=torch.int32, device=self.device),
                parameters=_parameters([self._sampling(g) for g in drawing], self.device),
                seeds=torch.tensor([g.seed for g in drawing], device=self.device),
                span=self.image_span if set(sets) == {IMAGE_SET} else None,
            )
        return self._layout

    def _draw(self, hidden: Tensor, drawing: list[Group]) -> list[int]:
        """One token for each of ``drawing``. ``RuntimeError`` if a group's logits are not numbers."""
        if self.unfused or self.recorder.wanted or (self.normalise and self.seen is not None):
            return self._draw_unfused(hidden, drawing)
        layout = self._lay_out(drawing)
        seen = None
        if self.seen is not None:
            index = {id(g): i for i, g in enumerate(self.groups)}
            seen = self.seen[[index[id(g)] for g in drawing]]
        sample = ops.sample(
            self.decoder.logits(hidden, layout.span),
            streams=layout.streams,
            weights=layout.weights,
            allowed=self.sets,
            set_index=layout.set_index,
            seen=seen,
            seed=layout.seeds,
            step=torch.tensor([len(g.ids) for g in drawing], device=self.device),
            **layout.parameters,
        )
        return self._tokens(sample, drawing)

    def _draw_unfused(self, hidden: Tensor, drawing: list[Group]) -> list[int]:
        """The same draw with the caller's own logits processors in between: mix in torch, run them, then draw.

        They get what transformers gives them: all ids so far, and float32 scores (groups, vocab) of every sequence,
        with what the grammar bans at -inf, before and after them. Rows that draw nothing in this step are zeros.
        """
        logits = self.decoder.logits(hidden).float()
        raw = torch.zeros((len(self.groups), logits.shape[1]), device=logits.device)
        mixed = raw.clone()
        index = {id(g): i for i, g in enumerate(self.groups)}
        sets = ~self.sets.mask(logits.shape[1])
        banned = torch.zeros_like(mixed, dtype=torch.bool)
        for g in drawing:
            i = index[id(g)]
            raw[i] = logits[g.rows[0]]
            banned[i] = sets[self.grammar.set_index(g.state, len(g.ids), g.limit)]
            for row, weight in zip(g.rows, g.weights, strict=True):
                if weight != 0.0:
                    z = logits[row].masked_fill(banned[i], -torch.inf)
                    banned[i] |= z == -torch.inf
                    mixed[i] += weight * (z.log_softmax(0) if self.normalise else z)
        mixed.masked_fill_(banned, -torch.inf)
        so_far = self.sequences[:, : self.width + self.steps].to(mixed.device)
        scores = mixed
        if self.unfused:
            scores = self.unfused(so_far, mixed).masked_fill(banned, -torch.inf)
        if self.recorder.logits is not None:
            self.recorder.logits.append(raw)
        if self.recorder.scores is not None:
            warped = scores.clone()
            for g in drawing:
                i = index[id(g)]
                warped[i : i + 1] = warp(scores[i : i + 1], [*g.ids, *g.shown], self._sampling(g))
            self.recorder.scores.append(warped)
        if not drawing:
            return []
        rows = torch.tensor([[index[id(g)]] for g in drawing], dtype=torch.int32, device=self.device)
        sample = ops.sample(
            scores,
            streams=rows,
            seen=None if self.seen is None else self.seen[rows[:, 0].long()],
            seed=torch.tensor([g.seed for g in drawing], device=self.device),
            step=torch.tensor([len(g.ids) for g in drawing], device=self.device),
            **_parameters([self._sampling(g) for g in drawing], self.device),
        )
        return self._tokens(sample, drawing)

    def _tokens(self, sample: ops.Sample, drawing: list[Group]) -> list[int]:
        tokens: list[int] = sample.token.tolist()
        for g, token, status in zip(drawing, tokens, sample.status.tolist(), strict=True):
            if token < 0:
                what = "NaN, +inf or nothing but -inf" if status == 1 else "no allowed id"
                raise RuntimeError(
                    f"sequence {self.groups.index(g)} has {what} among the logits of its token {len(g.ids)} "
                    f"(prompt included): the model, or a logits processor, produced no distribution to draw from"
                )
        return tokens


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
