"""Sequences being generated: what a draw and the decode loop need to know of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastdecode.grammar import DONE, Grammar
from fastdecode.guidance import Guidance
from fastdecode.models.chameleon import Vocabulary


@dataclass(slots=True, eq=False)
class Group:
    """One sequence being generated; ``number`` is its place in the batch.

    ``ids``: prompt (without padding, placeholders filled) and what was generated. ``limit``: most ids it may have.
    ``tail``: where the picture being drawn begins, or -1. ``rows``: rows of its streams, the full one first. ``shown``:
    further ids that a repetition penalty counts as seen (placeholders that pictures have replaced).
    """

    number: int
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
