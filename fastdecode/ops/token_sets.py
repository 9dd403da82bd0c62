"""Token sets as sorted half-open ranges: which tokens may be sampled, in the form that the kernels read."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastdecode.ops.arrays import as_tensor, is_array
from fastdecode.ops.scalars import check_device, whole_number

_MAX_ID = 2**31 - 1


def _merged(set_number: int, ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Checks the ranges of one set and returns them sorted, with those that overlap or touch made one."""
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
    """Sets of tokens, each a union of half-open ranges [lo, hi); immutable.

        sets     for each set a sequence of ranges (lo, hi), in any order; overlapping ranges are merged,
                 empty ones dropped; a set may be empty
        vocab    number of tokens in the vocabulary; None: the ranges are checked against it when used
        device   where the tables live

    Attributes: `ranges` (n, 2) int32, sorted and disjoint within a set; `offsets` (sets + 1,)
    int32: the ranges of set s are ranges[offsets[s] : offsets[s + 1]].
    Raises ValueError naming the set and range for lo > hi, lo < 0 or hi > vocab.
    """

    __slots__ = ("_largest", "_sets", "_stop", "offsets", "ranges")

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
        device = check_device(device)
        counts = torch.tensor([0] + [len(ranges) for ranges in merged], device="cpu")
        flat = [pair for ranges in merged for pair in ranges]
        self._sets: tuple[tuple[tuple[int, int], ...], ...] | None = tuple(tuple(ranges) for ranges in merged)
        self._largest: int | None = None
        self._stop: int | None = None
        self.ranges = torch.tensor(flat, dtype=torch.int32, device="cpu").reshape(-1, 2).to(device)
        self.offsets = counts.cumsum(0).to(torch.int32).to(device)
        if vocab is not None:
            self.check_vocab(whole_number("vocab", vocab))

    @classmethod
    def from_ids(
        cls,
        sets: Sequence[Iterable[int]],
        vocab: int | None = None,
        device: torch.device | str = "cpu",
    ) -> TokenSets:
        """Sets given as lists of tokens, in any order."""
        try:
            listed = [[operator.index(t) for t in ids] for ids in sets]
        except TypeError:
            raise ValueError(f"sets = {sets!r}: must be a list of lists of integers") from None
        return cls([[(t, t + 1) for t in ids] for ids in listed], vocab, device)

    @classmethod
    def from_tensors(cls, ranges: Tensor, offsets: Tensor, largest: int | None = None) -> TokenSets:
        """Sets whose tables are tensors already, on one device. Their values are checked when they are used; on a GPU
        they are not checked. `largest`: no set has more tokens; None: the tables are read to find out.

        Raises ValueError for tables that are not (n, 2) and (sets + 1,) int32.
        """
        ranges = as_tensor("ranges", ranges) if is_array(ranges) else ranges
        offsets = as_tensor("set_offsets", offsets) if is_array(offsets) else offsets
        for name, given in (("ranges", ranges), ("set_offsets", offsets)):
            if not isinstance(given, Tensor) or given.dim() == 0 or given.is_meta:
                raise ValueError(f"{name}: must be a tensor of one dimension or more that holds values, got {given!r}")
        for name, tensor, shape in (
            ("ranges", ranges, (len(ranges), 2)),
            ("set_offsets", offsets, (max(len(offsets), 2),)),
        ):
            if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != ranges.device:
                what = "(n, 2)" if name == "ranges" else "(sets + 1,)"
                raise ValueError(
                    f"{name}: must be {what} int32 on {ranges.device}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
                )
        if offsets.device.type == "cpu" and int(offsets[-1]) > len(ranges):
            raise ValueError(f"set_offsets[-1] = {int(offsets[-1])}: there are {len(ranges)} ranges")
        sets = object.__new__(cls)
        sets._sets, sets._stop, sets._largest = None, None, largest
        sets.ranges, sets.offsets = ranges.contiguous(), offsets.contiguous()
        return sets

    @property
    def host(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The ranges of each set as tuples. Tables that came as tensors are read from the device, once, and checked."""
        if self._sets is None:
            bounds, pairs = self.offsets.tolist(), self.ranges.tolist()
            if bounds[0] < 0 or bounds != sorted(bounds) or bounds[-1] > len(pairs):
                raise ValueError(f"set_offsets = {bounds}: must not decrease, and reach at most {len(pairs)}")
            spans = [pairs[begin:end] for begin, end in pairwise(bounds)]
            for number, ranges in enumerate(spans):
                ends = [0, *(hi for _, hi in ranges)]
                for (lo, hi), end in zip(ranges, ends, strict=False):
                    if not end <= lo <= hi:
                        raise ValueError(f"ranges of set {number}: ({lo}, {hi}) must be lo <= hi, sorted and disjoint")
            self._sets = tuple(tuple((lo, hi) for lo, hi in ranges) for ranges in spans)
        return self._sets

    @property
    def checked(self) -> bool:
        """Whether the ranges are known to be sorted, disjoint and not negative."""
        return self._sets is not None

    @property
    def stop(self) -> int:
        """One more than the largest token in any set; 0 if all are empty."""
        if self._stop is None:
            self._stop = max((hi for ranges in self.host for _, hi in ranges), default=0)
        return self._stop

    @property
    def largest(self) -> int:
        """No set has more tokens than this."""
        if self._largest is None:
            self._largest = max(sum(hi - lo for lo, hi in ranges) for ranges in self.host)
        return self._largest

    def check_vocab(self, vocab: int) -> None:
        """Raises ValueError naming the first range that goes beyond a vocabulary of `vocab` tokens."""
        if self.stop <= vocab:
            return
        for set_number, ranges in enumerate(self.host):
            for number, (lo, hi) in enumerate(ranges):
                if hi > vocab:
                    raise ValueError(
                        f"allowed[{set_number}][{number}] = ({lo}, {hi}): leaves the vocabulary of {vocab} tokens"
                    )

    @property
    def device(self) -> torch.device:
        return self.ranges.device

    def to(self, device: torch.device | str) -> TokenSets:
        """The same sets with their tables on `device`; self if they are there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(TokenSets)
        moved._sets, moved._stop, moved._largest = self._sets, self._stop, self._largest
        moved.ranges, moved.offsets = self.ranges.to(device), self.offsets.to(device)
        return moved

    def bounded(self, largest: int) -> TokenSets:
        """The same sets, for calls in which no group samples from a set of more than `largest` tokens. The kernels then
        need not handle larger sets.
        """
        copy = object.__new__(TokenSets)
        copy._sets, copy._stop, copy._largest = self._sets, self._stop, largest
        copy.ranges, copy.offsets = self.ranges, self.offsets
        return copy

    def count(self, set_number: int) -> int:
        """Number of tokens in a set."""
        return sum(hi - lo for lo, hi in self.host[set_number])

    def mask(self, vocab: int) -> Tensor:
        """(sets, vocab) bool on the sets' device: True where the token is in the set."""
        self.check_vocab(vocab)
        mask = torch.zeros(len(self), vocab, dtype=torch.bool)
        for row, ranges in zip(mask, self.host, strict=True):
            for lo, hi in ranges:
                row[lo:hi] = True
        return mask.to(self.device)

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def __iter__(self) -> Iterator[tuple[tuple[int, int], ...]]:
        return iter(self.host)

    def __getitem__(self, set_number: int) -> tuple[tuple[int, int], ...]:
        return self.host[set_number]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSets) and self.host == other.host

    def __hash__(self) -> int:
        return hash(self.host)

    def __repr__(self) -> str:
        return f"TokenSets({[list(ranges) for ranges in self.host]}, device='{self.device}')"
