"""The streams of a sequence in words, for `explain`."""

from __future__ import annotations

from fastdecode.engine.sequence import Sequence
from fastdecode.guidance import FULL


def describe_streams(s: Sequence) -> list[str]:
    """One line for each stream that ``s`` runs where its guidance first acts: weight, kind and number of tokens.

    Streams with equal tokens are one stream, which has all their kinds.
    """
    planned, weights = s.streams_planned()
    names: dict[tuple[int, ...], list[str]] = {}
    full = planned[0]
    in_picture = s.image_start >= 0
    for stream, weight in zip(s.guidance.streams, s.guidance.weights, strict=True):
        if (
            stream != FULL
            and weight != 0.0
            and len(planned[0])
            and (s.guidance.everywhere or in_picture or s.grammar.draws)
        ):
            tail = s.image_start if in_picture else len(s.tokens)
            key = stream.rewrite(full, s.prompt_length, tail, s.vocabulary)
            names.setdefault(key, []).append(stream.kind)
    found = []
    for number, (tokens, weight) in enumerate(zip(planned, weights, strict=True)):
        own = [*(["full"] if number == 0 else []), *names.get(tokens, [])]
        found.append(f"{weight:+g} x {' = '.join(dict.fromkeys(own)) or 'a stream'}, {len(tokens)} tokens")
    return found
