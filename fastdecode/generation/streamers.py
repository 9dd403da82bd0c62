"""Streamers of transformers: what they are given of a document of text and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import TextStreamer

from fastdecode.models.chameleon import Vocabulary


def text_only(streamer: Any, vocabulary: Vocabulary) -> Callable[[Tensor], None]:
    """``streamer.put``; for a `TextStreamer`, which would spell every token, one that leaves out those of pictures:
    image tokens and their two markers.
    """
    if not isinstance(streamer, TextStreamer) or not vocabulary.has_pictures:
        put: Callable[[Tensor], None] = streamer.put
        return put
    markers = {vocabulary.begin_image, vocabulary.end_image}

    def put_text(newest: Tensor) -> None:
        kept = [token not in markers and token not in vocabulary.image_ids for token in newest.tolist()]
        if all(kept):
            streamer.put(newest)
        elif any(kept):
            streamer.put(newest[kept])

    return put_text
