"""Which tokens may come next: text, begin of image, the tokens of a picture, end of image, end of sequence.

A `Grammar` is a small table over *states*. The state of a sequence says where its next token comes from: it is sampled
from one of the grammar's token sets, or it is forced, because only one token may come. ``advance`` gives the state
after a token.

    TEXT      text is sampled; ``begin_image`` begins a picture, where a whole one still fits; an end-of-sequence token
              leads to DONE
    OPEN      a picture was asked for: ``begin_image`` is forced
    BLOCK+i   token i of a picture: an image token is sampled, or what separates its rows is forced
    CLOSE     the picture is complete: ``end_image`` is forced
    DONE      nothing more comes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastdecode.ops import GrammarTables, TokenSets
from fastdecode.token_rules import Phase
from fastdecode.vocabulary import Vocabulary

MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")

TEXT, DONE, OPEN, BLOCK = 0, 1, 2, 3
TEXT_SET, TEXT_WITHOUT_BEGIN_SET, IMAGE_SET, EVERYTHING_SET = 0, 1, 2, 3


@dataclass(frozen=True)
class Grammar:
    """The tables of one mode and vocabulary; `compile_grammar` makes them.

    ``tables`` holds the states in the form of `fastdecode.ops.GrammarTables`, where they are called modes: `advance`
    reads them on the host, and `fastdecode.ops.advance` on the device.
    """

    mode: str
    vocabulary: Vocabulary
    tables: GrammarTables

    @property
    def image_length(self) -> int:
        """Number of tokens of one picture, without begin and end of image."""
        return self.vocabulary.image_length

    @property
    def sets(self) -> TokenSets:
        """The token sets by index."""
        return self.tables.sets

    @property
    def set_of(self) -> tuple[int, ...]:
        """By state: the set to sample from while a picture fits; -1 if the token is forced, and for DONE."""
        return self.tables.host.set_of

    @property
    def forced(self) -> tuple[int, ...]:
        """By state: the token that is forced, or -1."""
        return self.tables.host.forced

    @property
    def close(self) -> int:
        """The state CLOSE."""
        return BLOCK + self.image_length

    @property
    def draws(self) -> bool:
        """Whether this mode can write pictures."""
        return self.mode != "text-only"

    @property
    def block_length(self) -> int:
        """Number of tokens of one picture, begin and end of image included."""
        return self.image_length + 2

    @property
    def row_length(self) -> int:
        """Number of tokens of one row of a picture."""
        return self.vocabulary.picture.row_length

    @property
    def first_sampled(self) -> int:
        """The first state within a picture that samples its token."""
        return BLOCK + len(self.vocabulary.picture.before)

    def in_block(self, state: int) -> bool:
        """Whether the next token is one of a picture, between its begin and its end."""
        return BLOCK <= state < self.close

    def in_picture(self, state: int) -> bool:
        """Whether a picture has begun and its ``end_image`` has not come yet."""
        return state >= BLOCK

    def start(self, prompt: Sequence[int]) -> int:
        """The state after ``prompt``: inside a picture if the prompt ends in an unfinished one."""
        if not self.draws:
            return TEXT
        begun = unfinished_picture(prompt, self.vocabulary)
        if begun is not None and self.vocabulary.fits(begun):
            return BLOCK + len(begun)
        return OPEN if self.mode == "image-only" else TEXT

    def remaining(self, state: int) -> int:
        """Tokens until the picture that ``state`` is in, or that comes next, is closed; 0 in text."""
        if state == OPEN:
            return self.block_length
        return self.close + 1 - state if self.in_picture(state) else 0

    def set_index(self, state: int, length: int, limit: int) -> int:
        """The set that a sequence in ``state`` samples from; it has ``begin_image`` only if a whole picture fits.

        ``length`` counts the tokens of the sequence so far, prompt included, of which there may be ``limit``. -1 if the
        token is forced.
        """
        return self.tables.set_index(state, limit - length)

    def advance(self, state: int, token: int) -> int:
        """The state after ``token``. Inside a picture any image token leads to the next place."""
        return self.tables.follow(state, token)

    def image_start(self, length: int, state: int) -> int:
        """The position of ``begin_image`` of the picture that ``state`` is in, after ``length`` tokens; -1 in text."""
        return length - 1 - (state - BLOCK) if self.in_picture(state) else -1


def unfinished_picture(prompt: Sequence[int], vocabulary: Vocabulary) -> Sequence[int] | None:
    """The tokens behind the begin of a picture that ``prompt`` does not finish; None if it ends in text."""
    for back in range(1, len(prompt) + 1):
        if prompt[-back] == vocabulary.begin_image:
            return prompt[len(prompt) - back + 1 :]
        if prompt[-back] not in vocabulary.block_ids:
            break
    return None


def compile_grammar(mode: str, vocabulary: Vocabulary, eos: Iterable[int], phase: Phase | None = None) -> Grammar:
    """The tables for ``mode``, one of `MODES`.

    ``text-only`` bans image tokens and nothing else, as transformers' own Chameleon does. ``interleaved-text-image``
    also bans what would not parse: end of image outside a picture, the placeholder, padding and begin of sequence.
    ``image-only`` writes one picture and ends. ``unrestricted`` bans nothing and only keeps track.

    ``phase`` is what the `fastdecode.token_rules.TokenRules` of a sequence say at its length. Banned tokens are taken
    out of every set. Forced tokens take the place of the text sets, less what the mode bans in text; a picture in
    progress is not disturbed by them, and goes on with the image tokens that are not banned. Forced states stay forced:
    the end of image that closes a picture comes even where it is banned as an end of sequence. All phases of one mode
    and vocabulary have the same states and sets with the same numbers, so that the state of a sequence stays valid when
    its phase changes.

    ``ValueError`` for an unknown mode; for a mode with pictures and a model that writes text only or draws otherwise
    (``Vocabulary.cannot_draw`` and ``draws_alone``); and if the phase leaves nothing to sample where the mode must
    sample, or bans begin or end of image where the mode needs them.
    """
    if mode not in MODES:
        raise ValueError(f"multimodal_generation_mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode != "text-only" and not vocabulary.has_pictures:
        raise ValueError(
            f"multimodal_generation_mode={mode!r}: this model writes text only; leave it out, or choose 'text-only'"
        )
    if mode != "text-only" and vocabulary.cannot_draw:
        raise ValueError(f"multimodal_generation_mode={mode!r}: {vocabulary.cannot_draw}; choose 'text-only'")
    if mode not in ("text-only", "image-only") and vocabulary.draws_alone:
        raise ValueError(f"multimodal_generation_mode={mode!r}: {vocabulary.draws_alone}; choose 'image-only'")
    return _compiled(mode, vocabulary, frozenset(eos), phase or None)


@lru_cache(maxsize=256)  # a request has a few phases; what is large in a grammar is shared between them
def _compiled(mode: str, vocabulary: Vocabulary, ends: frozenset[int], phase: Phase | None) -> Grammar:
    unruled = _unruled(mode, vocabulary, ends)
    tables = unruled.tables
    if phase is not None:
        masks = _ruled(unruled.masks, mode, vocabulary, phase)
        _check_phase(masks, mode, vocabulary, ends, phase)
        tables = tables.with_sets(_token_sets(masks))
    return Grammar(mode=mode, vocabulary=vocabulary, tables=tables)


class _Unruled(NamedTuple):
    """A grammar without a phase: its sets as ``masks`` (sets, vocab) bool on the CPU, and its tables."""

    masks: Tensor
    tables: GrammarTables


@lru_cache(maxsize=16)  # it takes milliseconds, as long as some tokens
def _unruled(mode: str, vocabulary: Vocabulary, ends: frozenset[int]) -> _Unruled:
    v, n = vocabulary, vocabulary.image_length
    free = mode == "unrestricted"
    masks = torch.ones((4, v.size), dtype=torch.bool, device="cpu")
    image = _indices(v.image_ids, v.size)
    masks[IMAGE_SET] = False
    masks[IMAGE_SET, image] = True
    if not free and (v.bans_images or mode != "text-only"):
        masks[TEXT_SET, image] = False
        if mode != "text-only":
            unparsed = {v.end_image, v.placeholder} | ({i for i in (v.pad, v.bos) if i is not None} - ends)
            unparsed |= v.block_ids - {v.begin_image}
            masks[TEXT_SET, _indices(unparsed, v.size)] = False
    masks[TEXT_WITHOUT_BEGIN_SET] = masks[TEXT_SET]
    if _needs_room(mode):
        masks[TEXT_WITHOUT_BEGIN_SET, v.begin_image] = False

    close = BLOCK + n
    states = close + 1
    set_of, forced, room = [-1] * states, [-1] * states, [0] * states
    set_of[TEXT] = TEXT_SET
    room[TEXT] = n + 2
    forced[OPEN] = v.begin_image
    for state, token in zip(range(BLOCK, close), v.picture.forced, strict=True):
        if free or token < 0:
            set_of[state] = EVERYTHING_SET if free else IMAGE_SET
        else:
            forced[state] = token
    if free:
        set_of[close] = EVERYTHING_SET
    else:
        forced[close] = v.end_image
    tight_set_of = [TEXT_WITHOUT_BEGIN_SET if s == TEXT_SET else s for s in set_of]

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

    # Class 1 are the tokens of pictures that mean nothing else; classes of the few tokens with another meaning follow.
    special = {i: (i == v.begin_image, i in ends, i in v.block_ids) for i in {v.begin_image, *ends} if 0 <= i < v.size}
    plain_image = masks[IMAGE_SET].clone()
    plain_image[_indices(v.block_ids, v.size)] = True
    plain_image[list(special)] = False
    classes = [(False, False, False), (False, False, True), *sorted(set(special.values()))]
    class_ranges = [(low, high, 1) for low, high in _ranges(plain_image)]
    class_ranges += [(i, i + 1, classes.index(kind)) for i, kind in special.items()]
    tables = GrammarTables(
        _token_sets(masks),
        set_of,
        forced,
        [[following(state, *kind) for kind in classes] for state in range(states)],
        class_ranges,
        vocab=v.size,
        tight_set_of=tight_set_of,
        room=room,
    )
    return _Unruled(masks, tables)


def _needs_room(mode: str) -> bool:
    """Whether a picture may begin in text only where all of it fits."""
    return mode in ("image-only", "interleaved-text-image")


def _ruled(unruled: Tensor, mode: str, vocabulary: Vocabulary, phase: Phase) -> Tensor:
    """The masks of the sets in ``phase``."""
    masks = unruled.clone()
    masks[:, _indices(phase.banned, vocabulary.size)] = False
    if phase.forced is not None:
        forced = torch.zeros(vocabulary.size, dtype=torch.bool, device="cpu")
        forced[_indices(phase.forced, vocabulary.size)] = True
        masks[:IMAGE_SET] = unruled[:IMAGE_SET] & forced  # banned or not
    return masks


def _check_phase(masks: Tensor, mode: str, vocabulary: Vocabulary, ends: frozenset[int], phase: Phase) -> None:
    """``ValueError`` if a set is empty that ``mode`` samples from, or if a marker is banned that it must write."""
    causes = "suppress_tokens, begin_suppress_tokens, bad_words_ids, sequence_bias or a minimum length"
    chosen = f"multimodal_generation_mode={mode!r}"
    text, text_without_begin, image, _ = masks.any(1).tolist()
    begin, end = vocabulary.begin_image, vocabulary.end_image
    if mode != "image-only" and not text:
        if phase.forced is not None:
            raise ValueError(
                f"forced_bos_token_id or forced_eos_token_id forces {sorted(phase.forced)}, which {chosen} does not "
                "allow in text: force a token that it allows"
            )
        raise ValueError(f"{causes} leave nothing to sample in text ({chosen}): allow at least one token of text")
    if mode == "interleaved-text-image" and not text_without_begin and phase.forced is None:
        # a forced begin of image is not refused here: whether a picture fits at that one length is not known
        raise ValueError(
            f"{causes} leave only token {begin}, begin of image, to sample in text, and nothing where no picture fits "
            f"({chosen}): allow at least one token of text"
        )
    if _needs_room(mode) and not image:
        raise ValueError(f"{causes} leave nothing to sample in a picture ({chosen}): allow at least one image token")
    if mode == "image-only" and begin in phase.banned - ends:
        raise ValueError(f"{causes} ban token {begin}, begin of image, which {chosen} must write: allow it")
    pictures = mode == "image-only" or (mode == "interleaved-text-image" and begin not in phase.banned)
    if pictures and end in phase.banned - ends:
        raise ValueError(
            f"{causes} ban token {end}, end of image, which {chosen} must write after every picture: allow it"
        )


def _indices(tokens: Iterable[int], size: int) -> Tensor:
    """(n,) int64: those of ``tokens`` that the vocabulary has."""
    return torch.tensor([i for i in tokens if 0 <= i < size], dtype=torch.int64, device="cpu")


def _ranges(mask: Tensor) -> list[tuple[int, int]]:
    """Where ``mask`` (vocab,) bool is True, as half-open ranges."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _token_sets(masks: Tensor) -> TokenSets:
    return TokenSets([_ranges(mask) for mask in masks], masks.shape[1])
