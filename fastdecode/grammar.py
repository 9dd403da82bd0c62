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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastdecode.models.chameleon import Vocabulary
from fastdecode.ops import TokenSets

MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")

TEXT, DONE, OPEN, BLOCK = 0, 1, 2, 3
TEXT_SET, TEXT_WITHOUT_BEGIN_SET, IMAGE_SET, EVERYTHING_SET = 0, 1, 2, 3


@dataclass(frozen=True)
class Grammar:
    """Tables for one mode and vocabulary; build with `compile_grammar`.

    ``sets`` are the token sets by index. ``set_of[state]`` is the set a state draws from, or -1 where the token is
    forced or nothing comes; ``forced[state]`` that token, or -1; ``following[state]`` the state after it inside a
    picture.
    """

    mode: str
    image_length: int
    begin_image: int
    end_image: int
    eos: frozenset[int]
    image_ids: frozenset[int]
    sets: TokenSets
    set_of: tuple[int, ...]
    forced: tuple[int, ...]
    following: tuple[int, ...]

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
        index = self.set_of[state]
        if index == TEXT_SET and length + self.block_length > limit:
            return TEXT_WITHOUT_BEGIN_SET
        return index

    def advance(self, state: int, token: int) -> int:
        """The state after ``token``. Inside a block the place counts, not the token."""
        if state == DONE:
            return DONE
        free = self.mode == "unrestricted"
        if BLOCK <= state < self.close and (not free or token in self.image_ids):
            return state + 1
        if token in self.eos:
            return DONE
        if state >= OPEN and not free:
            return self.following[state]
        return BLOCK if token == self.begin_image and self.draws else TEXT

    def tail(self, length: int, state: int) -> int:
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


def compile_grammar(mode: str, vocabulary: Vocabulary, eos: Iterable[int]) -> Grammar:
    """Tables for ``mode``, one of `MODES`.

    ``text-only`` bans image ids and nothing else, as transformers' own Chameleon does. ``interleaved-text-image``
    also bans what would not parse: end of image outside a block, the placeholder, padding and begin of sequence.
    ``image-only`` draws one picture and ends. ``unrestricted`` bans nothing and only keeps track.
    ``ValueError`` for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"multimodal_generation_mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    v, n = vocabulary, vocabulary.image_length
    ends = frozenset(eos)
    banned = set(v.image_ids)
    if mode != "text-only":
        banned |= {v.end_image, v.placeholder} | ({i for i in (v.pad, v.bos) if i is not None} - ends)
    without_begin = banned if mode == "text-only" else banned | {v.begin_image}
    sets = TokenSets(
        [_all_but(banned, v.size), _all_but(without_begin, v.size), _runs(v.image_ids), [(0, v.size)]], v.size
    )
    free = mode == "unrestricted"
    states = BLOCK + n + 1
    set_of, forced, following = [-1] * states, [-1] * states, list(range(1, states + 1))
    set_of[TEXT] = EVERYTHING_SET if free else TEXT_SET
    forced[OPEN], following[OPEN] = v.begin_image, BLOCK
    for i in range(n):
        set_of[BLOCK + i] = EVERYTHING_SET if free else IMAGE_SET
    if free:
        set_of[BLOCK + n] = EVERYTHING_SET
    else:
        forced[BLOCK + n] = v.end_image
    following[TEXT], following[DONE] = TEXT, DONE
    following[BLOCK + n] = DONE if mode == "image-only" else TEXT
    return Grammar(
        mode=mode,
        image_length=n,
        begin_image=v.begin_image,
        end_image=v.end_image,
        eos=ends,
        image_ids=v.image_ids,
        sets=sets,
        set_of=tuple(set_of),
        forced=tuple(forced),
        following=tuple(following),
    )
