"""Rules about single tokens that depend on nothing but the length of the sequence.

They are what ``suppress_tokens``, ``bad_words_ids``, ``min_new_tokens``, ``forced_eos_token_id`` and ``sequence_bias``
of a call mean. `fastdecode.grammar.compile_grammar` turns what they say at one length, a `Phase`, into token sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any


@dataclass(frozen=True)
class Phase:
    """What the rules say at one length: the tokens ``banned``, and the only tokens allowed, ``forced`` (None: any).

    In text, forced tokens come even if they are banned, as they do in transformers.
    """

    banned: frozenset[int] = frozenset()
    forced: frozenset[int] | None = None

    def __bool__(self) -> bool:
        return bool(self.banned) or self.forced is not None


@dataclass(frozen=True)
class TokenRules:
    """Bans, forced tokens and biases. Plain data: it can be compared, hashed and sent to another process.

        banned        tokens that are never sampled
        banned_while  (start, stop, tokens): tokens that are not sampled while start <= length < stop
        forced_at     (length, tokens): at that length only these tokens are sampled, banned or not
        bias          (token, bias): added to the mixed float32 logit of the token, before the repetition penalty

    ``length`` counts the tokens of the sequence so far: the prompt, without padding, and what was generated. The tuples
    are sorted on construction, so that equal rules compare equal. Rules that say nothing are falsy.

    Raises ValueError naming the field and the entry for a negative token or one that is not an integer, start >= stop,
    an empty set, two entries for one forced length or one biased token, and a bias that is not finite.
    """

    banned: frozenset[int] = frozenset()
    banned_while: tuple[tuple[int, int, frozenset[int]], ...] = ()
    forced_at: tuple[tuple[int, frozenset[int]], ...] = ()
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        spans = [(start, stop, _tokens("banned_while", tokens)) for start, stop, tokens in self.banned_while]
        forced = [(length, _tokens("forced_at", tokens)) for length, tokens in self.forced_at]
        for start, stop, tokens in spans:
            if not start < stop or not tokens:
                raise ValueError(
                    f"banned_while has ({start}, {stop}, {set(tokens)}): it must be (start, stop, tokens) with "
                    "start < stop and at least one token"
                )
        for length, tokens in forced:
            if not tokens:
                raise ValueError(f"forced_at has ({length}, no tokens): give at least one token")
        _tokens("bias", [token for token, _ in self.bias])
        for token, bias in self.bias:
            if not math.isfinite(bias):
                raise ValueError(f"bias of token {token} is {bias}: it must be finite (ban a token with banned)")
        for name, keys in (("forced_at", [f[0] for f in forced]), ("bias", [b[0] for b in self.bias])):
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise ValueError(f"{name} has two entries for {twice}: give one")
        fields: dict[str, Any] = {
            "banned": _tokens("banned", self.banned),
            "banned_while": tuple(sorted(set(spans), key=lambda s: (s[0], s[1], sorted(s[2])))),
            "forced_at": tuple(sorted(forced, key=lambda f: f[0])),
            "bias": tuple(sorted((int(token), float(bias)) for token, bias in self.bias)),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __bool__(self) -> bool:
        return bool(self.banned or self.banned_while or self.forced_at or self.bias)

    def shifted(self, padding: int) -> TokenRules:
        """These rules for a sequence that stands behind ``padding`` padding tokens.

        transformers counts the padding of a batch in its lengths. Rules that end before the first token are dropped.
        ``ValueError`` for a negative number.
        """
        if padding < 0:
            raise ValueError(f"padding={padding}: a number of padding tokens is at least 0")
        return TokenRules(
            self.banned,
            tuple(
                (max(start - padding, 0), stop - padding, tokens)
                for start, stop, tokens in self.banned_while
                if stop > padding
            ),
            tuple((length - padding, tokens) for length, tokens in self.forced_at if length >= padding),
            self.bias,
        )

    def phase(self, length: int) -> Phase:
        """What is banned and what is forced at ``length``."""
        timed = (tokens for start, stop, tokens in self.banned_while if start <= length < stop)
        return Phase(self.banned.union(*timed), dict(self.forced_at).get(length))

    def next_change(self, length: int) -> int | None:
        """The smallest length above ``length`` whose phase is not that of ``length``; None if there is none."""
        bounds = {bound for start, stop, _ in self.banned_while for bound in (start, stop)}
        bounds.update(bound for at, _ in self.forced_at for bound in (at, at + 1))
        now = self.phase(length)
        return next((bound for bound in sorted(bounds) if bound > length and self.phase(bound) != now), None)


def _tokens(name: str, tokens: Iterable[Any]) -> frozenset[int]:
    found = frozenset(tokens)
    for token in found:
        if type(token) is bool or not isinstance(token, Integral) or token < 0:
            raise ValueError(f"{name} has token {token!r}: a token is an integer of at least 0")
    return found if all(type(token) is int for token in found) else frozenset(map(int, found))
