"""Streamers of transformers: which tokens of a document they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import TextStreamer

from fastdecode.vocabulary import Vocabulary


def text_only(streamer: Any, vocabulary: Vocabulary) -> Callable[[Tensor], None]:
    """``streamer.put``. For a `TextStreamer`, which would print every token, a function that skips image tokens, begin
    and end of image, and begins a new line in place of a picture.
    """
    put: Callable[[Tensor], None] = streamer.put
    if not isinstance(streamer, TextStreamer) or not vocabulary.has_pictures:
        return put
    markers = {vocabulary.begin_image, vocabulary.end_image}

    def put_text(newest: Tensor) -> None:
        kept = [token not in markers and token not in vocabulary.block_ids for token in newest.tolist()]
        if all(kept):
            put(newest)
            return
        if vocabulary.begin_image in newest.tolist():
            _new_line(streamer)
        if any(kept):
            put(newest[kept])

    return put_text


def _new_line(streamer: TextStreamer) -> None:
    """Print what the streamer has buffered and begin a new line, as it does itself at a newline."""
    text: Any = streamer.tokenizer.decode(streamer.token_cache, **streamer.decode_kwargs)
    rest = text[streamer.print_len :]
    streamer.token_cache, streamer.print_len = [], 0
    if text:
        streamer.on_finalized_text(f"{rest}\n")
