"""Token sets as sorted half-open id ranges: the compiled form of "which ids may be drawn"."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

_MAX_ID = 2**31 - 1


def _merged(set_number: int, ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Checks the ranges of one set and returns them sorted, disjoint and never touching."""
    merged: list[tuple[int, int]] = []
    checked = []
    try:
        pairs = list(ranges)
    except TypeError:
        raise ValueError(f"allowed[{set_number}] = {ranges!r}: must be pairs (lo, hi)") from None
    for number, pair in enumerate(pairs):
        try:
            lo, hi = map(operator.index, pair)
        except (TypeError, ValueError, RuntimeError):  # the last: of tensors on the meta device
            raise ValueError(f"allowed[{set_number}][{number}] = {pair!r}: must be a pair (lo, hi)") from None
        if not 0 <= lo <= hi <= _MAX_ID:
            raise ValueError(f"allowed[{set_number}][{number}] = ({lo}, {hi}): must be 0 <= lo <= hi < 2**31")
        if lo < hi:
            checked.append((lo, hi))
    for lo, hi in sorted(checked):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        else:
            merged.append((lo, hi))
    return merged


class TokenSets:
    """Sets of token ids, each a union of half-open ranges; immutable.

        sets     sequence over sets of sequences of (lo, hi), in any order; overlaps are merged,
                 empty ranges dropped; a set may be empty
        vocab    number of ids, or None to check the ranges only when they are used
        device   where the tables live

    Attributes: `ranges` (n, 2) int32, sorted and disjoint within a set; `offsets` (sets + 1,)
    int32, set s owning ranges offsets[s] to offsets[s + 1]; `stop`, one more than the largest id.
    Raises ValueError naming the set and range for lo > hi, lo < 0 or hi > vocab.
    """

    __slots__ = ("_sets", "offsets", "ranges", "stop")

    def __init__(
        self,
        sets: Sequence[Iterable[Sequence[int]]],
        vocab: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        try:
            listed = list(sets)
        except TypeError:
            raise ValueError(f"allowed = {sets!r}: must be a list of sets of pairs (lo, hi)") from None
        merged = [_merged(number, ranges) for number, ranges in enumerate(listed)]
        if not merged:
            raise ValueError("allowed = []: must hold at least one set")
        counts = torch.tensor([0] + [len(ranges) for ranges in merged])
        flat = [pair for ranges in merged for pair in ranges]
        self._sets = tuple(tuple(ranges) for ranges in merged)
        self.stop = max((hi for _, hi in flat), default=0)
        self.ranges = torch.tensor(flat, dtype=torch.int32).reshape(-1, 2).to(device)
        self.offsets = counts.cumsum(0).to(torch.int32).to(device)
        if vocab is not None:
            self.check_vocab(vocab)

    @classmethod
    def from_ids(
        cls,
        sets: Sequence[Iterable[int]],
        vocab: int | None = None,
        device: torch.device | str = "cpu",
    ) -> TokenSets:
        """Sets given as plain ids, in any order."""
        return cls([[(int(t), int(t) + 1) for t in ids] for ids in sets], vocab, device)

    def check_vocab(self, vocab: int) -> None:
        """Raises ValueError naming the first range that leaves a vocabulary of `vocab` ids."""
        if self.stop <= vocab:
            return
        for set_number, ranges in enumerate(self._sets):
            for number, (lo, hi) in enumerate(ranges):
                if hi > vocab:
                    raise ValueError(
                        f"allowed[{set_number}][{number}] = ({lo}, {hi}): leaves the vocabulary of {vocab} ids"
                    )

    @property
    def device(self) -> torch.device:
        return self.ranges.device

    def to(self, device: torch.device | str) -> TokenSets:
        """The same sets with their tables on `device`; self if they are there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(TokenSets)
        moved._sets, moved.stop = self._sets, self.stop
        moved.ranges, moved.offsets = self.ranges.to(device), self.offsets.to(device)
        return moved

    def count(self, set_number: int) -> int:
        """Number of ids in a set."""
        return sum(hi - lo for lo, hi in self._sets[set_number])

    def mask(self, vocab: int) -> Tensor:
        """(sets, vocab) bool on the sets' device: True where the id is in the set."""
        self.check_vocab(vocab)
        mask = torch.zeros(len(self._sets), vocab, dtype=torch.bool)
        for row, ranges in zip(mask, self._sets, strict=True):
            for lo, hi in ranges:
                row[lo:hi] = True
        return mask.to(self.device)

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[tuple[tuple[int, int], ...]]:
        return iter(self._sets)

    def __getitem__(self, set_number: int) -> tuple[tuple[int, int], ...]:
        return self._sets[set_number]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSets) and self._sets == other._sets

    def __hash__(self) -> int:
        return hash(self._sets)

    def __repr__(self) -> str:
        return f"TokenSets({[list(ranges) for ranges in self._sets]}, device='{self.device}')"
