"""From tokens to documents: turns a finished sequence into a list of texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from fastdecode.models.chameleon import Vocabulary, decode_pictures

logger = logging.get_logger(__name__)

Document = list[str | Image.Image]


def segments(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Split tokens into ``("text", tokens)`` and ``("picture", image tokens)``, without begin and end of image.

    A picture is begin of image, exactly ``image_length`` image tokens, end of image. Other runs of image tokens become
    ``("broken", tokens)``.
    """
    found: list[tuple[str, list[int]]] = []
    text: list[int] = []
    i = 0
    while i < len(ids):
        begun = ids[i] == vocabulary.begin_image
        stop = i + begun
        while stop < len(ids) and ids[stop] in vocabulary.image_ids:
            stop += 1
        block = list(ids[i + begun : stop])
        if not block:
            text.append(ids[i])
            i += 1
            continue
        if text:
            found.append(("text", text))
            text = []
        closed = stop < len(ids) and ids[stop] == vocabulary.end_image
        whole = begun and closed and len(block) == vocabulary.image_length
        found.append(("picture" if whole else "broken", block))
        i = stop + closed
    if text:
        found.append(("text", text))
    return found


def _from(ids: Sequence[int], start: int, vocabulary: Vocabulary) -> Sequence[int]:
    """``ids[start:]``; if ``start`` is inside a picture, from the beginning of that picture."""
    first = min(start, len(ids))
    while first > 0 and ids[first - 1] in vocabulary.image_ids:
        first -= 1
    inside = 0 < first < len(ids) and ids[first - 1] == vocabulary.begin_image
    return ids[first - 1 :] if inside else ids[start:]


def _rows(sequences: Any, size: int) -> list[list[int]]:
    """``sequences`` as lists of tokens. ``ValueError`` for another kind, and for what is no token of ``size``."""
    right = "give (batch, length) integers, a list of lists, or what generate returned"
    if isinstance(sequences, (Tensor, np.ndarray)):
        if isinstance(sequences, Tensor) and (sequences.is_meta or sequences.layout is not torch.strided):
            raise ValueError(f"sequences have no dense values: {right}")
        if sequences.ndim != 2:
            raise ValueError(f"sequences are {tuple(sequences.shape)}: {right}; put one sequence in a list")
        rows: list[Any] = sequences.tolist()
    elif isinstance(sequences, (list, tuple)):
        rows = [row.tolist() if isinstance(row, (Tensor, np.ndarray)) else row for row in sequences]
    else:
        raise ValueError(f"sequences is a {type(sequences).__name__}: {right}")
    for number, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
            raise ValueError(f"sequence {number} is a {type(row).__name__}: {right}; put one sequence in a list")
        for column, token in enumerate(row):
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < size:
                raise ValueError(
                    f"sequence {number} has {token!r} at {column}, which is not a token of this checkpoint "
                    f"(0 to {size - 1})"
                )
    return rows


def to_documents(model: Any, processor: Any, sequences: Any, start: int = 0) -> list[Document]:
    """Convert sequences of tokens to documents.

        processor   the model's processor, or its tokenizer
        sequences   (batch, length) integers, a list of lists, or what ``generate`` returned
        start       first column to read: ``inputs["input_ids"].shape[1]`` leaves the prompt out (except the beginning
                    of a picture that the prompt did not finish)
        returns     one list per sequence, of str and PIL.Image in order; empty texts are left out

    All pictures go through the VQ decoder in one pass. An incomplete picture is left out, with a warning.
    ``ValueError`` if there are pictures and the checkpoint has no VQ decoder, if ``sequences`` has a wrong shape or a
    token that the checkpoint does not have, or if ``start`` is negative.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        raise TypeError(f"processor is a {type(processor).__name__}; give the model's processor, or its tokenizer")
    vocabulary = Vocabulary.of(model)
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or start < 0:
        raise ValueError(f"start={start!r}: give the first column to read, a whole number of at least 0")
    rows = _rows(getattr(sequences, "sequences", sequences), vocabulary.size)
    parts = [segments(_from(row, start, vocabulary), vocabulary) for row in rows]
    pictures = iter(
        decode_pictures(model, [ids for row in parts for kind, ids in row if kind == "picture"], vocabulary)
    )
    documents = []
    for number, row in enumerate(parts):
        document: Document = []
        for kind, ids in row:
            if kind == "picture":
                document.append(next(pictures))
            elif kind == "broken":
                logger.warning(
                    f"sequence {number} holds {len(ids)} image tokens that make no whole picture of "
                    f"{vocabulary.image_length}: left out"
                )
            else:
                words = tokenizer.decode(ids, skip_special_tokens=True).strip()
                if words:
                    document.append(words)
        documents.append(document)
    return documents
