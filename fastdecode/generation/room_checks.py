"""Checks that what a call asks for has room: in the context, in a guidance stream, in a pool; and that it is decodable.

They change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastdecode.decoder import BaseDecoder
from fastdecode.decoder.support import unsupported_reason
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.validation import DRAWING_MODES
from fastdecode.grammar import Grammar, unfinished_picture
from fastdecode.guidance import Guidance
from fastdecode.kv.page_pool import PagePool
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of


def check_begun(ids: list[int], vocabulary: Vocabulary, grammar: Grammar) -> None:
    """``ValueError`` if the prompt ends in a picture that cannot go on to one of the size that is asked for."""
    begun = unfinished_picture(ids, vocabulary) if grammar.mode in DRAWING_MODES else None
    if begun is not None and not vocabulary.fits(begun):
        raise ValueError(
            f"the prompt ends in a picture whose {len(begun)} tokens do not begin one of {vocabulary.pixels} pixels: "
            "finish it, leave it out, or give its image_size"
        )


def check_room(ids: list[int], limit: int, state: int, grammar: Grammar) -> None:
    """``ValueError`` if a mode that draws has no room for one whole picture."""
    if grammar.mode not in DRAWING_MODES:
        return
    needed = grammar.remaining(state) or grammar.block_length
    if len(ids) + needed > limit:
        vocabulary = grammar.vocabulary
        fits = len(ids) + needed <= vocabulary.context
        advice = f"set max_new_tokens to at least {needed}" if fits else "the context is full: shorten the prompt"
        if vocabulary.any_size or vocabulary.sizes is not None:
            advice += f", or give a smaller image_size=(width, height) than {vocabulary.pixels} pixels"
        raise ValueError(
            f"no room for one picture: the prompt has {len(ids)} tokens and may grow to {limit}, but the picture takes "
            f"{needed} more; {advice}"
        )


def check_stream_tokens(guidance: Guidance, vocabulary: Vocabulary) -> None:
    """``ValueError`` if a stream has a token that the checkpoint has not, or leaves no room in the context."""
    for stream in guidance.streams:
        if len(stream.ids) >= vocabulary.context:
            raise ValueError(
                f"a stream of kind 'prompt' (or negative_prompt_ids) has {len(stream.ids)} tokens, and the context of "
                f"this checkpoint is {vocabulary.context}: nothing can follow it; give a shorter one"
            )
        for token in stream.ids:
            if not 0 <= token < vocabulary.size:
                raise ValueError(
                    f"a stream of kind 'prompt' (or negative_prompt_ids) has token {token}, which is not a token of "
                    f"this checkpoint (0 to {vocabulary.size - 1})"
                )


def check_stream_room(s: Sequence) -> None:
    """``ValueError`` if a guidance stream has no room in the context for what the sequence is about to write."""
    if s.guidance.everywhere:
        more, what = 1, "the next token"
    else:
        more, what = max(0, s.grammar.remaining(s.state) - 2) or s.grammar.image_length, "a picture"
    for tokens in s.streams_planned()[0][1:]:
        if len(tokens) + more > s.vocabulary.context:
            raise ValueError(
                f"a guidance stream of {s.name} has {len(tokens)} tokens, and {what} takes {more} more, but the "
                f"context of this checkpoint is {s.vocabulary.context}: give shorter ids of its Stream"
            )


def check_deterministic(decoder: BaseDecoder) -> None:
    """``ValueError`` if the model cannot be decoded deterministically."""
    if decoder.deterministic and not decoder.uses_cpu_step:
        why = f"its own forward is called, because {decoder.forward_reason}"
        if decoder.forward_reason is None:
            why = str(unsupported_reason(decoder.model))
        raise ValueError(f"deterministic=True needs steps of the C++ library, and this model has none: {why}")


def check_pool(decoder: BaseDecoder, pool: Any) -> None:
    """``ValueError`` unless ``pool`` is None or a pool for this model."""
    if pool is None:
        return
    if not isinstance(pool, PagePool):
        raise ValueError(
            f"kv_pool is {shown(pool)}, {kind_of(pool)}: it must be what fastdecode.new_pool(model) returns"
        )
    decoder.new_cache(pool)


def check_fits(
    sequences: Iterable[Sequence], pool: PagePool | None, whose: str = "kv_pool", name: str | None = None
) -> None:
    """``ValueError`` if a sequence can never fit into the pool's pages, even alone. It counts the minimum that will be
    stored: the prompt and a picture that is certain to follow, in all streams.
    """
    if pool is None or pool.limit is None:
        return
    slots = pool.page_slots
    for s in sequences:
        remaining = s.grammar.remaining(s.state)
        wanted = s.mode in DRAWING_MODES and remaining == 0
        streams = s.streams_planned(at_end=True)[0] if remaining or wanted else s.streams_now()
        # A picture stores all image tokens except the last, and not its end; planned streams contain its begin.
        more = s.grammar.image_length if wanted else max(0, remaining - 2)
        stored = len(s.tokens) + more
        parts = ""
        if stored > s.prompt_length:
            parts = f" ({s.prompt_length} of the prompt and {stored - s.prompt_length} of the picture that follows)"
        alone = -(-stored // slots)
        pages = pages_of([(stream[:-1], len(streams[0]) - len(s.tokens) + more) for stream in streams], slots)
        if alone > pool.limit or pages > pool.limit:
            what = f"its {stored} tokens{parts} alone take {alone} pages of {slots}"
            if alone <= pool.limit:
                what = f"the {len(streams)} streams of its {stored} tokens{parts} take {pages} pages of {slots}"
            raise ValueError(f"{name or s.name} can never fit: {what}, and {whose} has {pool.limit}")


def pages_of(streams: Iterable[tuple[tuple[int, ...], int]], slots: int) -> int:
    """The pages of streams, each a prompt and a number of further tokens. Equal beginnings share whole pages."""
    pages: dict[tuple[int, tuple[int, ...]], int] = {}
    own = 0
    for prompt, more in streams:
        page, whole = -1, len(prompt) // slots
        for start in range(0, whole * slots, slots):
            page = pages.setdefault((page, prompt[start : start + slots]), len(pages))
        own += -(-(len(prompt) + more) // slots) - whole
    return len(pages) + own
