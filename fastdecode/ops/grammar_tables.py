"""A grammar as tables over modes: which token may come next, and where it leads."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.arrays import as_tensor, is_array
from fastdecode.ops.scalars import check_device, whole_number
from fastdecode.ops.token_sets import TokenSets

Row = Sequence[int]


def _int32(values: Sequence[int] | Sequence[Row], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cpu").to(device)


class HostTables(NamedTuple):
    """The tables of `GrammarTables` as tuples."""

    set_of: tuple[int, ...]
    tight_set_of: tuple[int, ...]
    room: tuple[int, ...]
    forced: tuple[int, ...]
    following: tuple[tuple[int, ...], ...]
    class_ranges: tuple[tuple[int, int, int], ...]


def _low(class_range: tuple[int, int, int]) -> int:
    return class_range[0]


def _integers(name: str, values: Row) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in values)
    except (TypeError, RuntimeError):  # the latter: of tensors on the meta device
        raise ValueError(f"{name} = {values!r}: must be a sequence of integers") from None


def _rows(name: str, table: Iterable[Row]) -> list[tuple[int, ...]]:
    try:
        rows = list(table)
    except TypeError:
        raise ValueError(f"{name} = {table!r}: must be a sequence of rows of integers") from None
    return [_integers(f"{name}[{number}]", row) for number, row in enumerate(rows)]


def _check_each(name: str, values: Row, modes: int, low: int, high: int) -> tuple[int, ...]:
    checked = _integers(name, values)
    if len(checked) != modes:
        raise ValueError(f"len({name}) = {len(checked)}: must be {modes}, one for each mode")
    for mode, value in enumerate(checked):
        if not low <= value < high:
            raise ValueError(f"{name}[{mode}] = {value}: must be in [{low}, {high})")
    return checked


def _checked_classes(class_ranges: Iterable[Row], classes: int, vocab: int) -> tuple[tuple[int, int, int], ...]:
    checked: list[tuple[int, int, int]] = []
    for row in sorted(_rows("class_ranges", class_ranges)):
        lo, hi, number = row if len(row) == 3 else (0, 0, -1)
        if not ((checked[-1][1] if checked else 0) <= lo < hi <= vocab and 0 <= number < classes):
            raise ValueError(
                f"class_ranges: {row} must be (lo, hi, class) with lo < hi <= {vocab} and a class below {classes}, "
                f"and must not overlap another"
            )
        checked.append((lo, hi, number))
    return tuple(checked)


def _check_host(
    sets: TokenSets,
    set_of: Row,
    forced: Row,
    following: Sequence[Row],
    class_ranges: Iterable[Row],
    tight_set_of: Row,
    room: Row,
    vocab: int,
) -> HostTables:
    if not isinstance(sets, TokenSets):
        raise ValueError(f"sets: must be TokenSets, got {type(sets).__name__}")
    vocab = whole_number("vocab", vocab)
    set_of, rows = _integers("set_of", set_of), _rows("following", following)
    modes, widths = len(set_of), {len(row) for row in rows}
    if modes == 0 or len(rows) != modes or len(widths) != 1 or not rows[0]:
        shape = f"({len(rows)}, {' or '.join(map(str, sorted(widths)))})"
        raise ValueError(f"set_of, following: must be (modes,) and (modes, classes), got ({modes},) and {shape}")
    sets.check_vocab(vocab)
    [classes] = widths
    return HostTables(
        _check_each("set_of", set_of, modes, -1, len(sets)),
        _check_each("tight_set_of", tight_set_of, modes, -1, len(sets)),
        _check_each("room", room, modes, 0, 1 << 31),
        _check_each("forced", forced, modes, -1, vocab),
        tuple(_check_each(f"following[{mode}]", row, classes, 0, modes) for mode, row in enumerate(rows)),
        _checked_classes(class_ranges, classes, vocab),
    )


class GrammarTables:
    """Which token may come next in each mode, for `advance` and `sample_advance`; immutable.

        sets          TokenSets to sample from
        set_of        (modes,) set that the next token is sampled from; −1: none
        forced        (modes,) token that comes next where set_of is −1, without sampling; −1: none.
                      Where both are −1 the sequence ends
        following     (modes, classes) mode after a token of the class
        class_ranges  (lo, hi, class) half-open token ranges; a token in none of them has class 0
        tight_set_of  (modes,) used in place of set_of where fewer than room[mode] more tokens fit
        room          (modes,)
        vocab         number of tokens in the vocabulary
        device        where the tables live

    Attributes of these names are int32 tensors on the device, class_ranges (n, 3) sorted; `sets` is
    on it too. Raises ValueError naming the table and entry that is wrong.
    """

    _host: HostTables | None

    def __init__(
        self,
        sets: TokenSets,
        set_of: Row,
        forced: Row,
        following: Sequence[Row],
        class_ranges: Iterable[Row] = (),
        *,
        vocab: int,
        tight_set_of: Row | None = None,
        room: Row | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        host = _check_host(
            sets,
            set_of,
            forced,
            following,
            class_ranges,
            set_of if tight_set_of is None else tight_set_of,
            [0] * len(_integers("set_of", set_of)) if room is None else room,
            vocab,
        )
        device = check_device(device)
        self._host = host
        self.vocab, self.sets = vocab, sets.to(device)
        self.set_of = _int32(host.set_of, device)
        self.tight_set_of = _int32(host.tight_set_of, device)
        self.room = _int32(host.room, device)
        self.forced = _int32(host.forced, device)
        self.following = _int32(host.following, device)
        self.class_ranges = _int32(host.class_ranges, device).reshape(-1, 3)

    @classmethod
    def from_tensors(
        cls,
        sets: TokenSets,
        set_of: Tensor,
        tight_set_of: Tensor,
        room: Tensor,
        forced: Tensor,
        following: Tensor,
        class_ranges: Tensor,
        vocab: int,
    ) -> GrammarTables:
        """Tables that are tensors already, on one device. Their values are checked when they are used; on a GPU
        they are not. Raises ValueError naming the tensor whose shape, dtype or device is wrong.
        """
        if not isinstance(sets, TokenSets):
            raise ValueError(f"sets: must be TokenSets, got {type(sets).__name__}")
        tables = object.__new__(cls)
        tables._host, tables.sets = None, sets
        [tables.vocab] = _integers("vocab", [vocab])
        given = [set_of, tight_set_of, room, forced, following, class_ranges]
        given = [as_tensor("tables", value) if is_array(value) else value for value in given]
        set_of, tight_set_of, room, forced, following, class_ranges = given
        for tensor in given:
            if not isinstance(tensor, Tensor) or tensor.dim() == 0:
                raise ValueError(f"tables: must be tensors of one dimension or more, got {tensor!r}")
        if following.dim() != 2 or following.shape[1] < 1:
            raise ValueError(f"following.shape = {tuple(following.shape)}: must be (modes, classes)")
        modes = len(following)
        for name, tensor, shape in (
            ("set_of", set_of, (modes,)),
            ("tight_set_of", tight_set_of, (modes,)),
            ("room", room, (modes,)),
            ("forced", forced, (modes,)),
            ("following", following, tuple(following.shape)),
            ("class_ranges", class_ranges, (len(class_ranges), 3)),
        ):
            if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != following.device:
                raise ValueError(
                    f"{name}: must be {shape} int32 on {following.device}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
                )
            setattr(tables, name, tensor.contiguous())
        return tables

    @property
    def host(self) -> HostTables:
        """The tables as tuples, checked. Tables that came as tensors are read from the device, once."""
        if self._host is None:
            self._host: HostTables | None = _check_host(
                self.sets,
                self.set_of.tolist(),
                self.forced.tolist(),
                self.following.tolist(),
                self.class_ranges.tolist(),
                self.tight_set_of.tolist(),
                self.room.tolist(),
                self.vocab,
            )
            if self._host.class_ranges != tuple(map(tuple, self.class_ranges.tolist())):
                raise ValueError(f"class_ranges = {self.class_ranges.tolist()}: must be sorted")
        return self._host

    @property
    def device(self) -> torch.device:
        return self.set_of.device

    @property
    def modes(self) -> int:
        return self.following.shape[0]

    @property
    def classes(self) -> int:
        return self.following.shape[1]

    def to(self, device: torch.device | str) -> GrammarTables:
        """The same tables on `device`; self if they are there already."""
        if torch.device(device) == self.device:
            return self
        return self._copy(self.sets.to(device), device)

    def bounded(self, largest: int) -> GrammarTables:
        """The same tables, for calls in which no group samples from a set of more than `largest` tokens."""
        return self._copy(self.sets.bounded(largest), self.device)

    def with_sets(self, sets: TokenSets) -> GrammarTables:
        """The same modes with other token sets, as many as now: a mode's number means the same in both. The tables are
        shared, not copied. Raises ValueError for another number of sets, another device or tokens beyond the
        vocabulary.
        """
        if len(sets) != len(self.sets):
            raise ValueError(f"len(sets) = {len(sets)}: must be {len(self.sets)}, as many as there are")
        if sets.device != self.device:
            raise ValueError(f"sets: must be on {self.device}, got {sets.device}")
        sets.check_vocab(self.vocab)
        return self._copy(sets, self.device)

    def _copy(self, sets: TokenSets, device: torch.device | str) -> GrammarTables:
        copy = object.__new__(GrammarTables)
        copy._host, copy.vocab, copy.sets = self._host, self.vocab, sets
        for name in ("set_of", "tight_set_of", "room", "forced", "following", "class_ranges"):
            setattr(copy, name, getattr(self, name).to(device))
        return copy

    def class_of(self, token: int) -> int:
        """The class of a token."""
        ranges = self.host.class_ranges
        found = bisect_right(ranges, token, key=_low) - 1
        if found >= 0 and token < ranges[found][1]:
            return ranges[found][2]
        return 0

    def follow(self, mode: int, token: int) -> int:
        """The mode after `token` in `mode`."""
        return self.host.following[mode][self.class_of(token)]

    def set_index(self, mode: int, room_left: int) -> int:
        """The set to sample from in `mode` where `room_left` more tokens fit; −1: none."""
        host = self.host
        return (host.tight_set_of if room_left < host.room[mode] else host.set_of)[mode]
