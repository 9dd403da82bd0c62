"""From token ids to documents: a finished sequence as a list of texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.utils import logging

from fastdecode.models.chameleon import Vocabulary, decode_pictures

logger = logging.get_logger(__name__)

Document = list[str | Image.Image]


def segments(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """``ids`` split into ``("text", ids)`` and ``("picture", image ids)``; markers are left out.

    A picture is begin of image, exactly ``image_length`` image ids, end of image. What looks like one but is not
    whole comes as ``("broken", ids)``.
    """
    found: list[tuple[str, list[int]]] = []
    text: list[int] = []
    i = 0
    while i < len(ids):
        if ids[i] == vocabulary.begin_image:
            stop = i + 1
            while stop < len(ids) and ids[stop] in vocabulary.image_ids:
                stop += 1
            if stop > i + 1:
                if text:
                    found.append(("text", text))
                    text = []
                whole = stop - i - 1 == vocabulary.image_length
                closed = stop < len(ids) and ids[stop] == vocabulary.end_image
                found.append(("picture" if whole and closed else "broken", list(ids[i + 1 : stop])))
                i = stop + closed
                continue
        text.append(ids[i])
        i += 1
    if text:
        found.append(("text", text))
    return found


def to_documents(model: Any, processor: Any, sequences: Any, start: int = 0) -> list[Document]:
    """Sequences of ids to documents.

        sequences   (batch, length) integers, a list of lists, or what ``generate`` returned
        start       first column to read: ``inputs["input_ids"].shape[1]`` leaves the prompt out
        returns     one list per sequence, of str and PIL.Image in order; empty texts are left out

    All pictures go through the VQ decoder in one pass. A picture that was cut short is left out, with a warning.
    ``ValueError`` if there are pictures and the checkpoint has no VQ decoder.
    """
    vocabulary = Vocabulary.of(model)
    rows = getattr(sequences, "sequences", sequences)
    rows = rows.tolist() if isinstance(rows, Tensor) else [list(row) for row in rows]
    parts = [segments(row[start:], vocabulary) for row in rows]
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
                    f"sequence {number} holds {len(ids)} image ids that make no whole picture of "
                    f"{vocabulary.image_length}: left out"
                )
            else:
                words = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
                if words:
                    document.append(words)
        documents.append(document)
    return documents
