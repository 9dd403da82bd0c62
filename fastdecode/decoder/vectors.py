"""Vectors in prompts: what a model computes of a picture, and reads in place of the embeddings of tokens.

A vector is named by a negative number, made of its content, which stands in the prompt as a token does. So equal
pictures have equal numbers, and prompts that begin alike share pages whatever they begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import torch
from torch import Tensor

Vectors = Mapping[int, Tensor]
"""Vectors (hidden,) by their numbers."""


def numbers_of(features: Tensor) -> list[int]:
    """The numbers of vectors (n, hidden) float. All are below 0; only equal vectors have equal ones."""
    contents = features.detach().cpu().contiguous().view(torch.uint8).numpy()
    digests = (blake2b(row.tobytes(), digest_size=8).digest() for row in contents)
    return [-1 - (int.from_bytes(digest, "little") >> 2) for digest in digests]


def embedded(tokens: Tensor, vectors: Vectors, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Embeddings (…, hidden) of ``tokens`` (…) int64, among which are numbers of ``vectors``. ``embed``: those of
    tokens.
    """
    here = tokens < 0
    if not vectors or not here.any():
        return embed(tokens)
    x = embed(tokens.clamp(min=0)).clone()
    x[here] = torch.stack([vectors[number] for number in tokens[here].tolist()]).to(x)
    return x
