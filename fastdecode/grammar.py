"""Which tokens may come next: text, begin of image, a block of image ids, end of image, end of sequence.

A `Grammar` is compiled once per call into small tables over *states*. A group's state says what its next token is:
sampled from one of the grammar's sets, or forced. ``advance`` moves it by the token that came.

    TEXT      any text id; ``begin_image`` opens a block where one fits; an end-of-sequence id leads to DONE
    OPEN      ``begin_image`` is forced (a picture was asked for)
    BLOCK+i   the i-th image id of a block
    CLOSE     ``end_image`` is forced
    DONE      nothing more
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fastdecode.models.chameleon import Vocabulary
from fastdecode.ops import GrammarTables, TokenSets

MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")

TEXT, DONE, OPEN, BLOCK = 0, 1, 2, 3
TEXT_SET, TEXT_WITHOUT_BEGIN_SET, IMAGE_SET, EVERYTHING_SET = 0, 1, 2, 3


@dataclass(frozen=True)
class Grammar:
    """Tables for one mode and vocabulary; build with `compile_grammar`.

    ``tables`` are its states as modes of `fastdecode.ops.GrammarTables`: what `advance` does here on the host,
    `fastdecode.ops.advance` does on the device.
    """

    mode: str
    image_length: int
    begin_image: int
    end_image: int
    image_ids: frozenset[int]
    tables: GrammarTables

    @property
    def sets(self) -> TokenSets:
        """The token sets by index."""
        return self.tables.sets

    @property
    def set_of(self) -> tuple[int, ...]:
        """By state: the set that it draws from where there is room, or -1: its token is forced, or nothing comes."""
        return self.tables.host.set_of

    @property
    def forced(self) -> tuple[int, ...]:
        """By state: the token that comes without a draw, or -1."""
        return self.tables.host.forced

    @property
    def close(self) -> int:
        """The state in which ``end_image`` is due."""
        return BLOCK + self.image_length

    @property
    def draws(self) -> bool:
        """Whether pictures can come out of this mode."""
        return self.mode != "text-only"

    @property
    def block_length(self) -> int:
        """Ids of one picture with both markers."""
        return self.image_length + 2

    @property
    def side(self) -> int:
        """Tokens of one row of a picture."""
        return math.isqrt(self.image_length)

    def in_picture(self, state: int) -> bool:
        """Whether the next token lies between ``begin_image`` and the end of ``end_image``."""
        return state >= BLOCK

    def start(self, prompt: Sequence[int]) -> int:
        """The state after ``prompt``: inside a block if the prompt ends in an unfinished one."""
        if not self.draws:
            return TEXT
        for back in range(1, min(self.image_length + 1, len(prompt)) + 1):
            token = prompt[-back]
            if token == self.begin_image:
                return BLOCK + back - 1
            if token not in self.image_ids:
                break
        return OPEN if self.mode == "image-only" else TEXT

    def remaining(self, state: int) -> int:
        """Tokens until the picture that ``state`` is in, or is about to open, is closed; 0 in text."""
        if state == OPEN:
            return self.block_length
        return self.close + 1 - state if self.in_picture(state) else 0

    def set_index(self, state: int, length: int, limit: int) -> int:
        """The set that a group in ``state`` draws from; ``begin_image`` only if the whole block fits in ``limit``.

        ``length`` counts the ids of the sequence so far, prompt included. -1 in a forced state.
        """
        return self.tables.set_index(state, limit - length)

    def advance(self, state: int, token: int) -> int:
        """The state after ``token``. Inside a block the place counts, not the token."""
        return self.tables.follow(state, token)

    def image_start(self, length: int, state: int) -> int:
        """Where the picture that ``state`` is in begins (its begin marker), after ``length`` ids; -1 outside one."""
        return length - 1 - (state - BLOCK) if self.in_picture(state) else -1


def _runs(ids: Iterable[int]) -> list[tuple[int, int]]:
    """``ids`` as half-open ranges."""
    runs: list[tuple[int, int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


def _all_but(ids: Iterable[int], size: int) -> list[tuple[int, int]]:
    """The ids below ``size`` that are not in ``ids``, as half-open ranges: a vocabulary is long, its ranges are few."""
    runs = _runs(ids)
    starts, stops = [0, *(stop for _, stop in runs)], [*(start for start, _ in runs), size]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def compile_grammar(mode: str, vocabulary: Vocabulary, eos: Iterable[int], phase: object = None) -> Grammar:
    """Tables for ``mode``, one of `MODES`.

    ``text-only`` bans image ids and nothing else, as transformers' own Chameleon does. ``interleaved-text-image``
    also bans what would not parse: end of image outside a block, the placeholder, padding and begin of sequence.
    ``image-only`` draws one picture and ends. ``unrestricted`` bans nothing and only keeps track.
    ``ValueError`` for another mode, and for one that draws with a vocabulary of text only.
    """
    if mode not in MODES:
        raise ValueError(f"multimodal_generation_mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode != "text-only" and not vocabulary.has_pictures:
        raise ValueError(
            f"multimodal_generation_mode={mode!r}: this model writes text only; leave it out, or choose 'text-only'"
        )
    return _compiled(mode, vocabulary, frozenset(eos))


@lru_cache(maxsize=16)  # it takes longer than drawing ten tokens, and nothing changes it
def _compiled(mode: str, vocabulary: Vocabulary, ends: frozenset[int]) -> Grammar:
    v, n = vocabulary, vocabulary.image_length
    banned = set(v.image_ids)
    if mode != "text-only":
        banned |= {v.end_image, v.placeholder} | ({i for i in (v.pad, v.bos) if i is not None} - ends)
    without_begin = banned if mode == "text-only" else banned | {v.begin_image}
    sets = TokenSets(
        [_all_but(banned, v.size), _all_but(without_begin, v.size), _runs(v.image_ids), [(0, v.size)]], v.size
    )
    free = mode == "unrestricted"
    close = BLOCK + n
    states = close + 1
    set_of, forced, room = [-1] * states, [-1] * states, [0] * states
    set_of[TEXT] = EVERYTHING_SET if free else TEXT_SET
    tight_set_of = [TEXT_WITHOUT_BEGIN_SET if s == TEXT_SET else s for s in set_of]
    room[TEXT] = n + 2
    forced[OPEN] = v.begin_image
    for state in range(BLOCK, close):
        set_of[state] = tight_set_of[state] = EVERYTHING_SET if free else IMAGE_SET
    if free:
        set_of[close] = tight_set_of[close] = EVERYTHING_SET
    else:
        forced[close] = v.end_image

    def following(state: int, begins: bool, ends_sequence: bool, is_image: bool) -> int:
        if state == DONE:
            return DONE
        if BLOCK <= state < close and (is_image or not free):
            return state + 1
        if ends_sequence:
            return DONE
        if state == OPEN and not free:
            return BLOCK
        if state == close and not free:
            return DONE if mode == "image-only" else TEXT
        return BLOCK if begins and mode != "text-only" else TEXT

    special = {i for i in {v.begin_image, *ends, *v.image_ids} if i >= 0}
    kinds = {i: (i == v.begin_image, i in ends, i in v.image_ids) for i in special}
    classes = [(False, False, False), *sorted(set(kinds.values()))]
    return Grammar(
        mode=mode,
        image_length=n,
        begin_image=v.begin_image,
        end_image=v.end_image,
        image_ids=v.image_ids,
        tables=GrammarTables(
            sets,
            set_of,
            forced,
            [[following(state, *kind) for kind in classes] for state in range(states)],
            [
                (low, high, number)
                for number, kind in enumerate(classes[1:], 1)
                for low, high in _runs(i for i, k in kinds.items() if k == kind and i < v.size)
            ],
            vocab=v.size,
            tight_set_of=tight_set_of,
            room=room,
        ),
    )
