"""Joins the grammars of all sequences of a step into one set of tables, so that one kernel call samples for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import torch

from fastdecode.grammar import Grammar
from fastdecode.ops import GrammarTables, TokenSets

MOST_GRAMMARS = 32
"""With more grammars than this, all except those of the present step are removed."""


class SharedTables:
    """The tables of all recently used grammars. A grammar keeps its position until all are removed.

    ``tables`` are on ``device``. A sequence whose state is ``s`` in its own grammar has mode ``first_mode[id(grammar)]
    + s`` here.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grammars: list[Grammar] = []
        self.first_mode: dict[int, int] = {}
        self.tables: GrammarTables | None = None

    def include(self, grammars: Iterable[Grammar]) -> GrammarTables:
        """The tables, extended by these grammars. All have one vocabulary."""
        wanted = {id(grammar): grammar for grammar in grammars}
        if self.tables is None or any(key not in self.first_mode for key in wanted):
            alone = len(wanted) == 1  # its own tables serve, and nothing needs to be joined
            keep = not alone and len(self.grammars) < MOST_GRAMMARS
            kept = [g for g in self.grammars if id(g) not in wanted] if keep else []
            self._compile([*kept, *wanted.values()])
        assert self.tables is not None
        return self.tables

    def _compile(self, grammars: list[Grammar]) -> None:
        self.grammars = grammars
        mode = 0
        self.first_mode = {}
        for grammar in grammars:
            self.first_mode[id(grammar)] = mode
            mode += grammar.tables.modes
        tables = grammars[0].tables if len(grammars) == 1 else joined(tuple(g.tables for g in grammars))
        self.tables = tables.to(self.device)


@lru_cache(maxsize=64)  # it takes as long as some steps, and engines come to the same sets of grammars again and again
def joined(parts: tuple[GrammarTables, ...]) -> GrammarTables:
    """One table after another: modes and sets are numbered through; classes are split so that they serve all."""
    bounds, classes = _classes([part.host.class_ranges for part in parts], parts[0].vocab)
    numbers: dict[tuple[int, ...], int] = {(0,) * len(parts): 0}
    ranges = []
    for (low, high), kinds in zip(pairwise(bounds), classes, strict=True):
        number = numbers.setdefault(kinds, len(numbers))
        if number:
            ranges.append((low, high, number))
    sets: list[list[tuple[int, int]]] = []
    columns: dict[str, list[int]] = {"set_of": [], "tight_set_of": [], "room": [], "forced": []}
    following: list[list[int]] = []
    for place, part in enumerate(parts):
        host, first = part.host, len(sets)
        first_mode = len(following)
        for name in ("set_of", "tight_set_of"):
            columns[name] += [first + number if number >= 0 else -1 for number in getattr(host, name)]
        columns["room"] += host.room
        columns["forced"] += host.forced
        following += [[first_mode + row[kinds[place]] for kinds in numbers] for row in host.following]
        sets += [list(ranges_of_set) for ranges_of_set in part.sets]
    return GrammarTables(
        TokenSets(sets, parts[0].vocab),
        columns["set_of"],
        columns["forced"],
        following,
        ranges,
        vocab=parts[0].vocab,
        tight_set_of=columns["tight_set_of"],
        room=columns["room"],
    )


def _classes(tables: Sequence[Sequence[tuple[int, int, int]]], vocab: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Bounds of ranges of tokens in which no table's class changes, and each table's class in each range."""
    bounds = sorted({0, vocab, *(bound for table in tables for low, high, _ in table for bound in (low, high))})
    classes = []
    places = [0] * len(tables)
    for low in bounds[:-1]:
        kinds = []
        for number, table in enumerate(tables):
            while places[number] < len(table) and table[places[number]][1] <= low:
                places[number] += 1
            here = places[number] < len(table) and table[places[number]][0] <= low
            kinds.append(table[places[number]][2] if here else 0)
        classes.append(tuple(kinds))
    return bounds, classes
