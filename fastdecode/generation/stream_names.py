"""The streams of a sequence in words, for `explain`."""

from __future__ import annotations

from collections.abc import Iterable

from fastdecode.engine.sequence import PlannedCourse, Sequence
from fastdecode.guidance import FULL, Guidance
from fastdecode.schedule import Schedule


def describe_streams(s: Sequence) -> list[str]:
    """One line for each stream that ``s`` runs where its guidance first acts: weight, kind and number of tokens; of a
    schedule also the tokens at which the stream is decoded, if not at all.

    Streams with equal tokens are one stream, which has all their kinds.
    """
    planned, weights = s.streams_planned()
    both = s.courses if s.guidance.text_weights is not None else (None, None)
    names: dict[tuple[int, ...], list[str]] = {}
    full = planned[0]
    in_picture = s.image_start >= 0
    sets = (s.guidance.weights, s.guidance.text_weights or s.guidance.weights)
    for stream, *of_stream in zip(s.guidance.streams, *sets, strict=True):
        if (
            stream != FULL
            and any(of_stream)
            and len(planned[0])
            and (s.guidance.everywhere or in_picture or s.grammar.draws)
        ):
            tail = s.image_start if in_picture else len(s.tokens)
            key = stream.rewrite(full, s.prompt_length, tail, s.vocabulary)
            names.setdefault(key, []).append(stream.kind)
    found, course = [], s.course_planned()
    for number, (tokens, weight) in enumerate(zip(planned, weights, strict=True)):
        own = [*(["full"] if number == 0 else []), *names.get(tokens, [])]
        shown, where = f"{weight:+g}", ""
        if both[0] is not None and both[1] is not None:  # all streams are decoded all along
            shown = " in text, ".join(_first_to_last(c.weights[:, number].tolist()) for c in both if c) + " in pictures"
        elif course is not None:
            shown, where = _scheduled(course, number)
        found.append(f"{shown} x {' = '.join(dict.fromkeys(own)) or 'a stream'}, {len(tokens)} tokens{where}")
    return found


def _scheduled(planned: PlannedCourse, number: int) -> tuple[str, str]:
    """The weight of stream ``number`` of a schedule, first to last, and where it is decoded if not everywhere."""
    course = planned.course
    first, end, column = planned.position, course.length, 0
    if number:
        column = 1 + planned.numbers[number - 1]
        begin, end = course.span(column - 1)
        first = max(first, begin)
    shown = _first_to_last(course.weights[first:end, column].tolist())
    whole = first == planned.position and end == course.length
    return shown, "" if whole else f", decoded at tokens {first} to {end - 1} of {course.length}"


def _first_to_last(weights: list[float]) -> str:
    return f"{weights[0]:+g}" if len(set(weights)) == 1 else f"{weights[0]:+g} to {weights[-1]:+g}"


def describe_contrasts(guidances: Iterable[Guidance]) -> list[str]:
    """The contrasts of ``guidances`` in words, each once."""
    found: dict[str, None] = {}
    for guidance in guidances:
        if guidance.contrast is not None:
            alpha, k = guidance.contrast
            which = "the likeliest" if k == 1 else f"the {_ordinal(k)} likeliest"
            found[f"tokens that are at least {alpha:g} x as likely in the full stream as {which}"] = None
    return list(found)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def describe_schedules(guidances: Iterable[Guidance]) -> list[str]:
    """The schedules of ``guidances`` in words, each once."""
    found: dict[str, None] = {}
    for guidance in dict.fromkeys(guidances):
        where = "of a picture, or of the new text outside of one" if guidance.everywhere else "of a picture"
        sets = [(guidance.weights, where)]
        if guidance.text_weights is not None:
            sets = [(guidance.weights, "of a picture"), (guidance.text_weights, "of the new text")]
        for weights, place in sets:
            for weight in weights:
                for leaf in weight.leaves if isinstance(weight, Schedule) else []:
                    found[f"{leaf.words}, over the tokens {place}"] = None
    return list(found)
