"""From tokens to documents: turns a finished sequence into a list of texts and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from fastdecode.models.families import supported, text_vocabulary_of
from fastdecode.models.pictures import decode_pictures
from fastdecode.ops.scalars import shown
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

logger = logging.get_logger(__name__)

Document = list[str | Image.Image]


def segments(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Split tokens into ``("text", tokens)`` and ``("picture", tokens)``, without begin and end of image.

    A picture is begin of image, the tokens of a whole picture (`Vocabulary.grid`), end of image. Other runs of tokens
    of pictures become ``("broken", tokens)``.
    """
    found: list[tuple[str, list[int]]] = []
    text: list[int] = []
    i = 0
    while i < len(ids):
        begun = ids[i] == vocabulary.begin_image
        stop = i + begun
        while stop < len(ids) and ids[stop] in vocabulary.block_ids:
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
        whole = begun and closed and vocabulary.grid(block) is not None
        found.append(("picture" if whole else "broken", block))
        i = stop + closed
    if text:
        found.append(("text", text))
    return found


def _from(ids: Sequence[int], start: int, vocabulary: Vocabulary) -> Sequence[int]:
    """``ids[start:]``; if ``start`` is inside a picture, from the beginning of that picture."""
    first = min(start, len(ids))
    while first > 0 and ids[first - 1] in vocabulary.block_ids:
        first -= 1
    inside = 0 < first < len(ids) and ids[first - 1] == vocabulary.begin_image
    return ids[first - 1 :] if inside else ids[start:]


def _rows(sequences: Any, vocabulary: Vocabulary) -> list[list[int]]:
    """The sequences as lists of tokens. ``ValueError`` for anything else."""
    wanted = "sequences must be (batch, length) integers, or a list of lists: put one sequence in a list"
    if isinstance(sequences, (str, bytes, Mapping)) or not hasattr(sequences, "__iter__"):
        raise ValueError(f"{wanted}; got {shown(sequences)}, {kind_of(sequences)}")
    if isinstance(sequences, Tensor) and sequences.ndim == 0:
        raise ValueError(f"{wanted}; got a single number")
    found = []
    for number, row in enumerate(sequences):
        if isinstance(row, (Tensor, np.ndarray)):
            if isinstance(row, Tensor) and (row.is_meta or row.layout is not torch.strided):
                raise ValueError(f"{wanted}; got a tensor that is sparse, or on the meta device and without values")
            row = row.tolist()
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
            raise ValueError(f"{wanted}; sequence {number} is {shown(row)}, {kind_of(row)}")
        for column, token in enumerate(row):
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
                raise ValueError(f"{wanted}; sequence {number} has {shown(token)} in column {column}")
            if not 0 <= token < vocabulary.size:
                raise ValueError(
                    f"sequence {number} has {shown(token)} in column {column}, which is not a token of this checkpoint "
                    f"(0 to {vocabulary.size - 1})"
                )
        found.append(list(row))
    return found


def to_documents(model: Any, processor: Any, sequences: Any, start: int = 0) -> list[Document]:
    """Convert sequences of tokens to documents.

        processor   the model's processor, or its tokenizer
        sequences   (batch, length) integers, a list of lists, or what ``generate`` returned
        start       first column to read: ``inputs["input_ids"].shape[1]`` leaves the prompt out (except the beginning
                    of a picture that the prompt did not finish)
        returns     one list per sequence, of str and PIL.Image in order; empty texts are left out

    A picture is painted in float32, whatever the model's dtype, and by itself: it depends on its own tokens only. An
    incomplete picture is left out, with a warning. ``ValueError`` if there are pictures and the checkpoint has no VQ
    decoder, or its config does not say how pictures are written; if ``sequences`` has a wrong shape or kind or holds
    what is no token; and for a negative ``start``.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        raise TypeError(f"processor is {kind_of(processor)}; give the model's processor, or its tokenizer")
    model = supported(model)
    vocabulary = text_vocabulary_of(model)
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ValueError(f"start={shown(start)}: it must be a column, 0 or more")
    rows = _rows(getattr(sequences, "sequences", sequences), vocabulary)
    parts = [segments(_from(row, start, vocabulary), vocabulary) for row in rows]
    if vocabulary.problem is not None and any(kind != "text" for row in parts for kind, _ in row):
        raise ValueError(f"there are image tokens, but {vocabulary.problem}")
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
