"""The bit set of tokens that are already in a sequence: int32 words; token t is bit t & 31 of word t >> 5."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array, as_tensor, is_array
from fastdecode.ops.sample.checks import MAX_VOCAB
from fastdecode.ops.scalars import shown, whole_number


def _padded(ids: Any) -> Tensor:
    """Rows of different lengths as one tensor, with −1 where there is no token."""
    try:
        rows = [[operator.index(token) for token in row] for row in ids]
        longest = max(map(len, rows), default=0)
        padded = [row + [-1] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(padded), longest)
    except (TypeError, ValueError, RuntimeError):  # the latter two: beyond 64 bits, on the meta device
        raise ValueError(f"ids = {reprlib.repr(ids)}: must be a sequence of tokens for each group") from None


def seen_bits(ids: Array | Sequence[Sequence[int]], vocab: int) -> Tensor:
    """(groups, ceil(vocab / 32)) int32: the bit set of each group's tokens.

        ids    (groups, n) integer tensor, or for each group a sequence of tokens; negative ones are padding
        vocab  number of tokens in the vocabulary

    Raises ValueError naming the first token that is not below vocab, and for a vocab outside [1, 2^22].
    """
    vocab = whole_number("vocab", vocab)
    if not 1 <= vocab <= MAX_VOCAB:
        raise ValueError(f"vocab = {shown(vocab)}: must be in [1, {MAX_VOCAB}]")
    ids = as_tensor("ids", ids) if is_array(ids) else _padded(ids)
    if ids.dim() != 2 or ids.is_floating_point():
        raise ValueError(f"ids: must be (groups, n) integers, got {tuple(ids.shape)} {ids.dtype}")
    outside = (ids >= vocab).nonzero()
    if len(outside):
        group, position = outside[0].tolist()
        value = int(ids[group, position])
        raise ValueError(f"ids[{group}, {position}] = {value}: must be below {vocab}")
    words = (vocab + 31) // 32
    # Padding is written to one extra place at the end, which is cut off.
    member = torch.zeros(len(ids), words * 32 + 1, dtype=torch.int64, device=ids.device)
    member.scatter_(1, torch.where(ids < 0, words * 32, ids).long(), 1)
    bits = member[:, :-1].unflatten(1, (words, 32)) << torch.arange(32, device=ids.device)
    return bits.sum(2).to(torch.int32)


def set_seen_(seen: Array, token: Array) -> Tensor:
    """Adds one token per group to a bit set, in place, and returns the bit set.

    seen   (groups, ceil(vocab / 32)) int32, written
    token  (groups,) int64; negative: nothing is added to that group

    Raises ValueError naming the argument, and on the CPU the first token that the words have no bit for; then nothing
    is written.
    """
    seen, token = as_tensor("seen", seen, written=True), as_tensor("token", token)
    if token.shape != seen.shape[:1] or seen.dim() != 2 or seen.dtype != torch.int32:
        raise ValueError(
            f"seen, token: must be (groups, words) int32 and (groups,), "
            f"got {tuple(seen.shape)} {seen.dtype} and {tuple(token.shape)}"
        )
    if token.dtype != torch.int64:
        raise ValueError(f"token.dtype = {token.dtype}: must be torch.int64")
    if seen.device.type == "cpu":
        outside = (token >= 32 * seen.shape[1]).nonzero()
        if len(outside):
            group = int(outside[0])
            raise ValueError(f"token[{group}] = {int(token[group])}: must be below {32 * seen.shape[1]}")
        if 0 in seen.stride() and seen.numel() > 1:
            raise ValueError(
                f"seen.stride() = {seen.stride()}: its elements must not share memory, since it is written"
            )
    token = token.unsqueeze(1)
    word = token.clamp_min(0) >> 5
    bit = torch.where(token < 0, 0, torch.ones_like(token) << (token & 31)).to(torch.int32)
    return seen.scatter_(1, word, seen.gather(1, word) | bit)
