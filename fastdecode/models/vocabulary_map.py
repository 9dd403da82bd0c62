"""Tokens that a checkpoint's config names: those of its vocabulary_map, and single ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastdecode.ops.scalars import shown

EVERY = "it must map every token of the tokenizer to its id"


def named_tokens(config: Any, names: Iterable[str], size: int, why: str = EVERY) -> Mapping[str, int]:
    """``config.vocabulary_map``, which has ``names``. ``ValueError`` if it lacks some, with ``why`` they are needed, or
    if one of them is none of ``size`` tokens.
    """
    ids: Mapping[str, int] = config.vocabulary_map or {}
    names = list(names)
    absent = [name for name in names if name not in ids]
    if absent:
        raise ValueError(
            f"config.vocabulary_map of this checkpoint has no {', '.join(absent)}: {why} (it has {len(ids)} entries)"
        )
    for name in names:
        check_token(f"config.vocabulary_map gives {name} the token", ids[name], size)
    return ids


def check_token(says: str, token: Any, size: int) -> int:
    """``token``. ``ValueError`` unless it is one of ``size`` tokens. ``says``: what names it, with a verb."""
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
        raise ValueError(
            f"{says} {shown(token)}, which is not a token of this checkpoint: its tokens are 0 to {size - 1}"
        )
    return token


def code_ids(mapping: Any, count: int, example: str) -> tuple[int, ...]:
    """By entry of the codebook: its token, as transformers reads the vocabulary_map (``mapping``). ``ValueError``
    unless it names one for each of ``count`` entries. ``example``: such a name.
    """
    try:
        codes = mapping.img2bpe
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.vocabulary_map names image tokens that cannot be read ({error}): name them like {example}"
        ) from None
    if codes.keys() != set(range(count)):
        raise ValueError(
            f"config.vocabulary_map names {len(codes)} image tokens ({example}), but the codebook has {count} entries: "
            "each entry needs its own"
        )
    return tuple(codes[code] for code in range(count))
