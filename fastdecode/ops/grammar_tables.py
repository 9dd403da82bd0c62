"""A grammar as tables over modes: which token may come next, and where it leads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastdecode.ops.token_sets import TokenSets

Row = Sequence[int]


def _int32(values: Sequence[int] | Sequence[Row], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)


def _check_each(name: str, values: Row, modes: int, low: int, high: int) -> tuple[int, ...]:
    if len(values) != modes:
        raise ValueError(f"len({name}) = {len(values)}: must be {modes}, one for each mode")
    for mode, value in enumerate(values):
        if not low <= value < high:
            raise ValueError(f"{name}[{mode}] = {value}: must be in [{low}, {high})")
    return tuple(int(value) for value in values)


def _checked_classes(class_ranges: Iterable[Row], classes: int, vocab: int) -> list[tuple[int, int, int]]:
    ranges = sorted((int(lo), int(hi), int(number)) for lo, hi, number in class_ranges)
    end = 0
    for lo, hi, number in ranges:
        if not (end <= lo < hi <= vocab and 0 <= number < classes):
            raise ValueError(
                f"class_ranges: ({lo}, {hi}, {number}) must be lo < hi <= {vocab} and a class below {classes}, "
                f"and must not overlap another"
            )
        end = hi
    return ranges


class GrammarTables:
    """Which token may come next in each mode, for `advance` and `sample_advance`; immutable.

        sets          TokenSets to draw from
        set_of        (modes,) set that a mode draws from; −1: its token is forced, or nothing comes
        forced        (modes,) token that comes without a draw; −1: none. Both −1: the end
        following     (modes, classes) mode after a token of the class
        class_ranges  (lo, hi, class) half-open id ranges; ids in none are of class 0
        tight_set_of  (modes,) in place of set_of where fewer than room[mode] more tokens fit
        room          (modes,)
        vocab         number of ids
        device        where the tables live

    Attributes of these names are int32 tensors on the device, class_ranges (n, 3) sorted; `sets` is
    on it too. Raises ValueError naming the table and entry that is wrong.
    """

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
        modes = len(set_of)
        widths = {len(row) for row in following}
        if modes == 0 or len(following) != modes or len(widths) != 1 or not following[0]:
            shape = f"({len(following)}, {' or '.join(map(str, sorted(widths)))})"
            raise ValueError(f"set_of, following: must be (modes,) and (modes, classes), got ({modes},) and {shape}")
        sets.check_vocab(vocab)
        self.vocab, self.modes, self.classes = vocab, modes, len(following[0])
        self.host_set_of = _check_each("set_of", set_of, modes, -1, len(sets))
        self.host_tight_set_of = self.host_set_of
        if tight_set_of is not None:
            self.host_tight_set_of = _check_each("tight_set_of", tight_set_of, modes, -1, len(sets))
        self.host_room = _check_each("room", room if room is not None else [0] * modes, modes, 0, 1 << 31)
        self.host_forced = _check_each("forced", forced, modes, -1, vocab)
        for mode, row in enumerate(following):
            _check_each(f"following[{mode}]", row, self.classes, 0, modes)
        self.host_following = tuple(tuple(int(next_mode) for next_mode in row) for row in following)
        self._ranges = _checked_classes(class_ranges, self.classes, vocab)
        self._starts = [lo for lo, _, _ in self._ranges]
        self.sets = sets.to(device)
        self.set_of = _int32(self.host_set_of, device)
        self.tight_set_of = _int32(self.host_tight_set_of, device)
        self.room = _int32(self.host_room, device)
        self.forced = _int32(self.host_forced, device)
        self.following = _int32(self.host_following, device)
        self.class_ranges = _int32(self._ranges, device).reshape(-1, 3)

    @property
    def device(self) -> torch.device:
        return self.set_of.device

    def to(self, device: torch.device | str) -> GrammarTables:
        """The same tables on `device`; self if they are there already."""
        if torch.device(device) == self.device:
            return self
        return GrammarTables(
            self.sets,
            self.host_set_of,
            self.host_forced,
            self.host_following,
            self._ranges,
            vocab=self.vocab,
            tight_set_of=self.host_tight_set_of,
            room=self.host_room,
            device=device,
        )

    def class_of(self, token: int) -> int:
        """The class of an id."""
        found = bisect_right(self._starts, token) - 1
        if found >= 0 and token < self._ranges[found][1]:
            return self._ranges[found][2]
        return 0

    def follow(self, mode: int, token: int) -> int:
        """The mode after `token` in `mode`."""
        return self.host_following[mode][self.class_of(token)]

    def set_index(self, mode: int, room_left: int) -> int:
        """The set that `mode` draws from where so many more tokens fit; −1: none."""
        return (self.host_tight_set_of if room_left < self.host_room[mode] else self.host_set_of)[mode]
