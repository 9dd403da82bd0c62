"""Checks of the options that name tokens: suppressed, forced, bad and biased ones, and the special ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from fastdecode.ops.scalars import LARGEST_FLOAT, shown


def check_token_options(value_of: Callable[[str], Any], given: Mapping[str, Any], size: int) -> None:
    """``ValueError`` that names the first option which names no token of a vocabulary of ``size`` tokens.

    ``value_of``: the value of an option that is in effect. ``given``: what the call and its generation_config set; a
    model's own config may have special tokens that do not exist, which then have no effect.
    """
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        value = value_of(name)
        if value is not None:
            _check_tokens(name, _members(name, value), size, whole_floats=True)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = value_of(name)
        if value is not None:
            many = isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, Tensor) and value.ndim > 0)
            tokens = _members(name, value) if many else [value]
            if not tokens:
                raise ValueError(f"{name}={shown(value)}: give a token, or leave it out")
            _check_tokens(name, tokens, size)
    _check_bad_words(value_of("bad_words_ids"), size)
    _check_bias(value_of("sequence_bias"), size)
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        _check_special(name, given.get(name), size)


def _members(name: str, value: Any) -> list[Any]:
    """The tokens of a flat list, tuple, set, array or tensor."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1:
        return list(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return list(value)
    raise ValueError(f"{name}={shown(value)}: give a list of tokens")


def _check_tokens(name: str, tokens: Iterable[Any], size: int, *, whole_floats: bool = False) -> None:
    for token in tokens:
        if isinstance(token, Tensor) and token.ndim == 0:
            token = token.item()
        number = isinstance(token, Integral) or (whole_floats and isinstance(token, float) and token.is_integer())
        if not number or isinstance(token, (bool, np.bool_)) or not 0 <= token < size:
            raise ValueError(f"{name} has {shown(token)}, which is not a token of this checkpoint (0 to {size - 1})")


def _check_bad_words(value: Any, size: int) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not value:
        raise ValueError(f"bad_words_ids={shown(value)}: give a list with a list of tokens for each word")
    for number, word in enumerate(value):
        if not isinstance(word, list) or not word:
            raise ValueError(f"bad_words_ids[{number}] is {shown(word)}: give a list of at least one token")
        _check_tokens(f"bad_words_ids[{number}]", word, size)


def _check_bias(value: Any, size: int) -> None:
    if value is None:
        return
    right = "give a dict such as {(5,): -1.5}, or a list such as [[[5], -1.5]], of tokens and a float"
    if not isinstance(value, (dict, list)) or not value:
        raise ValueError(f"sequence_bias={shown(value)}: {right}")
    pairs: list[Any] = list(value.items()) if isinstance(value, dict) else value
    for pair in pairs:
        kind = tuple if isinstance(value, dict) else list
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], kind) or not pair[0]:
            raise ValueError(f"sequence_bias has {shown(pair[0] if isinstance(value, dict) else pair)}: {right}")
        tokens, bias = pair
        _check_tokens("sequence_bias", tokens, size)
        if not isinstance(bias, float) or not (bias == -math.inf or abs(bias) <= LARGEST_FLOAT):
            raise ValueError(
                f"sequence_bias of {shown(tokens)} is {shown(bias)}: give a finite float, or -inf to ban the tokens"
            )


def _check_special(name: str, value: Any, size: int) -> None:
    """Negative tokens pass: they are a usual way to have none. A token for padding is written, never compared."""
    if value is None:
        return
    many = isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, Tensor) and value.ndim > 0)
    if many and name != "eos_token_id":
        raise ValueError(f"{name}={shown(value)}: give one token")
    for token in _members(name, value) if many else [value]:
        if isinstance(token, Tensor) and token.ndim == 0:
            token = token.item()
        inside = name == "pad_token_id" or (isinstance(token, Real) and token < size)
        if isinstance(token, (bool, np.bool_)) or not isinstance(token, Integral) or not inside:
            raise ValueError(f"{name} has {shown(token)}, which is not a token of this checkpoint (0 to {size - 1})")
