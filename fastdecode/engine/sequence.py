"""One sequence being generated: its tokens, its state in the grammar, its streams and its parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, cast

from torch import Tensor

from fastdecode.decoder.vectors import Vectors
from fastdecode.engine.course import Course
from fastdecode.engine.parameters import Sampling
from fastdecode.grammar import DONE, Grammar, compile_grammar
from fastdecode.guidance import Guidance
from fastdecode.schedule import Schedule
from fastdecode.token_rules import TokenRules
from fastdecode.vocabulary import Vocabulary

Tokens = tuple[int, ...]

Draw = tuple[int, float]
"""A token, and its log probability among the tokens that could be drawn: 0 if it was forced."""

UNSCHEDULED: tuple[None, None] = (None, None)


class PlannedCourse(NamedTuple):
    """A course, the next position in it, and the ``numbers`` of the streams that it still needs. ``full``: the tokens
    of the full sequence there. ``newer``: those that follow the course's ``streams``.
    """

    course: Course
    position: int
    numbers: list[int]
    full: Tokens
    newer: Tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """Everything that a step needs to know about one sequence, independent of any batch.

    ``tokens``: the prompt (without padding, pictures in place of placeholders) and the generated tokens. ``limit``: its
    maximum length. ``also_seen``: further tokens that the repetition penalty applies to (placeholders that pictures
    replaced). ``vectors``: those whose numbers stand among its ``tokens``, all of them in the prompt. ``name``: its
    name in errors. ``logprobs``: of the generated tokens.

    ``state``: its state in ``grammar``. ``image_start``: the position where the picture being drawn begins, or -1.
    ``streams``: its guidance streams besides the full sequence, as they were when it had ``streams_from`` tokens; every
    later token is added to each. ``rows``: its rows of the cache, the full sequence's first; none while it waits.

    ``courses``: where the weights change, by a schedule or between text and pictures, those of its text and of its
    present picture, None where it has none; ``needed``: the numbers of ``streams`` in its course, which are those with
    a weight now or on both sides.
    """

    tokens: list[int]
    limit: int
    seed: int
    guidance: Guidance
    vocabulary: Vocabulary
    mode: str
    ends: frozenset[int]
    text: Sampling = field(default_factory=Sampling)
    image: Sampling = field(default_factory=Sampling)
    rules: TokenRules = field(default_factory=TokenRules)
    also_seen: Tokens = ()
    vectors: Vectors = field(default_factory=dict)
    name: str = "sequence 0"
    grammar: Grammar = field(init=False)
    rules_change_at: int | None = field(init=False)
    state: int = field(init=False)
    image_start: int = field(init=False)
    prompt_length: int = field(init=False)
    streams: list[Tokens] = field(default_factory=list, init=False)
    streams_from: int = field(default=0, init=False)
    weights: list[float] = field(default_factory=lambda: [1.0], init=False)
    courses: tuple[Course | None, Course | None] = field(default=UNSCHEDULED, init=False)
    needed: Tokens = field(default=(), init=False)
    rows: list[int] = field(default_factory=list, init=False)
    inputs: list[int] = field(default_factory=list, init=False)
    seen: Tensor | None = field(default=None, init=False)
    reason: str | None = field(default=None, init=False)
    logprobs: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)
        self.reason = None
        self.follow_rules()
        self.state = self.grammar.start(self.tokens)
        self.image_start = self.grammar.image_start(len(self.tokens), self.state)
        self.streams_from = len(self.tokens)
        if self.image_start >= 0 or self.guidance.everywhere:
            self.plan_streams()

    def check_ahead(self) -> None:
        """``ValueError`` if its rules leave no token to sample at some length, or a stream cannot be made."""
        self.streams_planned()
        change = self.rules_change_at
        while change is not None and change < self.limit:
            compile_grammar(self.mode, self.vocabulary, self.ends, self.rules.phase(change))
            change = self.rules.next_change(change)

    # --- where it is --------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def in_picture(self) -> bool:
        return self.grammar.in_picture(self.state)

    @property
    def in_block(self) -> bool:
        """Whether its next token is one of a picture, between its begin and its end."""
        return self.grammar.in_block(self.state)

    @property
    def forced(self) -> int:
        """The token that the grammar forces next, or -1."""
        return self.grammar.forced[self.state]

    @property
    def sampling(self) -> Sampling:
        """The parameters of the next token."""
        return self.image if self.in_picture else self.text

    @property
    def contrast(self) -> tuple[float, int] | None:
        """That of its guidance, where the guidance acts."""
        return self.guidance.contrast if self.guidance.everywhere or self.image_start >= 0 else None

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def penalised(self) -> list[int]:
        """The tokens that the repetition penalty applies to."""
        return [*(token for token in self.tokens if token >= 0), *self.also_seen]

    def follow_rules(self) -> None:
        """Switch to the grammar for the present length. It has the same states, so ``state`` does not change."""
        length = len(self.tokens)
        self.grammar = compile_grammar(self.mode, self.vocabulary, self.ends, self.rules.phase(length))
        self.rules_change_at = self.rules.next_change(length)

    # --- one more token -----------------------------------------------------------------------------------------

    def append(self, token: int, logprob: float = 0.0) -> bool:
        """Append ``token`` and advance the grammar. Returns whether a picture begins with it."""
        before = self.state
        self.logprobs.append(logprob)
        self.tokens.append(token)
        self.inputs = []
        self.state = self.grammar.advance(before, token)
        if len(self.tokens) >= self.limit and self.state != DONE:
            self.state, self.reason = DONE, "length"
        elif self.state == DONE:
            self.reason = "stop"
        if self.reason is not None:
            return False
        if self.rules_change_at is not None and len(self.tokens) >= self.rules_change_at:
            self.follow_rules()
        inside, was_inside = self.grammar.in_picture(self.state), self.grammar.in_picture(before)
        if was_inside and not inside:
            self.image_start = -1
        begins = inside and (self.image_start < 0 or token == self.vocabulary.begin_image)
        if self.courses is not UNSCHEDULED and not begins:
            self.follow_schedule()
        return begins

    def recover(self) -> None:
        """Find the place in the grammar anew, from the tokens: something interrupted a step."""
        tokens, logprobs = self.tokens, self.logprobs[: len(self.generated)]  # one more if this interrupted `append`
        try:
            self.tokens, self.logprobs = tokens[: self.prompt_length], []
            self.end_streams()
            self.__post_init__()
            for token, logprob in zip(tokens[self.prompt_length :], logprobs, strict=True):
                was_inside = self.in_picture
                if self.append(token, logprob):
                    self.begin_picture()
                elif was_inside and not self.in_picture and not self.guidance.everywhere:
                    self.end_streams()
        finally:
            self.tokens, self.logprobs = tokens, logprobs  # also if this is interrupted

    # --- streams ------------------------------------------------------------------------------------------------

    def begin_picture(self) -> None:
        """After a token that begins a picture, plan the picture's streams, unless guidance acts everywhere."""
        self.image_start = len(self.tokens) - 1
        if not self.guidance.everywhere:
            self.plan_streams()
        else:
            self.follow_schedule()

    def plan_streams(self) -> None:
        start = self.image_start if self.image_start >= 0 else len(self.tokens)
        others, weights, of_text = self.guidance.plan_both(self.tokens, self.prompt_length, start, self.vocabulary)
        self.streams_from = len(self.tokens)
        self.courses = self._courses(others, weights, of_text)
        if self.courses is UNSCHEDULED:
            self.streams, self.weights = others, cast(list[float], weights)
        else:
            self.streams, self.needed = [], ()
            self.follow_schedule()

    def end_streams(self) -> None:
        """Keep only the full sequence."""
        self.streams, self.weights = [], [1.0]
        self.courses, self.needed = UNSCHEDULED, ()

    # --- schedules ----------------------------------------------------------------------------------------------

    def _courses(
        self, others: list[Tokens], weights: list[float | Schedule], of_text: list[float | Schedule]
    ) -> tuple[Course | None, Course | None]:
        """Of its text and of its pictures, where a schedule is among the weights, or text has weights of its own."""
        of_text = weights if self.mode == "image-only" else of_text
        if weights == of_text and not any(isinstance(weight, Schedule) for weight in weights):
            return UNSCHEDULED
        everywhere, draws = self.guidance.everywhere, self.grammar.draws
        new = max(1, self.limit - self.prompt_length)
        skips = not (everywhere and draws)  # else the next picture may need what the text does not
        text = Course(others, of_text, new, skips=skips) if everywhere else None
        return text, Course(others, weights, self.vocabulary.image_length, skips=skips) if draws else None

    @property
    def position(self) -> int:
        """Of the next token: in the picture, or else among the new tokens."""
        return len(self.tokens) - (self.image_start + 1 if self.image_start >= 0 else self.prompt_length)

    @property
    def course(self) -> Course | None:
        """The course at the present position."""
        return self.courses[self.image_start >= 0]

    def follow_schedule(self) -> None:
        """Take the weights and the streams of the present position from the course, if there is one."""
        course = self.course
        if course is None:
            return
        needed = course.needed(self.position)
        if needed != self.needed:
            self.needed, self.streams = needed, [course.streams[k] for k in needed]
        self.weights = course.weights_at(self.position, needed)

    @property
    def streams_change_at(self) -> int | None:
        """At how many tokens the schedule next starts or ends a stream."""
        course = self.course
        change = None if course is None else course.next_change(self.position)
        return None if change is None else len(self.tokens) + change - self.position

    @property
    def streams_coming(self) -> list[Tokens]:
        """The tokens so far of the streams that the schedule will start."""
        course = self.course
        return [] if course is None else [self._now(course.streams[k]) for k in course.coming(self.position)]

    # --- streams at present and planned -------------------------------------------------------------------------

    def _now(self, stream: Tokens) -> Tokens:
        return (*stream, *self.tokens[self.streams_from :])

    def streams_now(self) -> list[Tokens]:
        """The tokens of every stream, the full sequence first."""
        return [tuple(self.tokens), *map(self._now, self.streams)]

    def streams_planned(self, *, at_end: bool = False) -> tuple[list[Tokens], list[float]]:
        """Streams and weights where guidance first acts: now, or in the next picture; only the full one if nowhere. Of
        a schedule, all streams that it still needs there; ``at_end``: those that it needs at the picture's end.
        """
        tokens, planned = tuple(self.tokens), self.course_planned()
        if planned is not None:
            course, numbers = planned.course, planned.numbers
            if at_end:
                numbers = [k for k in numbers if k in course.needed(course.length - 1)]
            streams = [(*course.streams[k], *planned.newer) for k in numbers]
            return [planned.full, *streams], course.weights_at(planned.position, numbers)
        if self.guidance.everywhere or self.image_start >= 0:
            return self.streams_now(), self.weights
        if not self.grammar.draws:
            return [tokens], [1.0]
        begun = (*tokens, self.vocabulary.begin_image)
        others, weights = self.guidance.plan(begun, self.prompt_length, len(tokens), self.vocabulary)
        return [begun, *others], cast(list[float], weights)

    def course_planned(self) -> PlannedCourse | None:
        """The course where guidance first acts: now, or in the next picture. None if the weights never change."""
        if not self.guidance.changes:
            return None
        tokens, course = tuple(self.tokens), self.course
        if course is not None:
            numbers = [*self.needed, *course.coming(self.position)]
            return PlannedCourse(course, self.position, numbers, tokens, tokens[self.streams_from :])
        if self.guidance.everywhere or self.image_start >= 0 or not self.grammar.draws:
            return None
        begun = (*tokens, self.vocabulary.begin_image)
        _, course = self._courses(*self.guidance.plan_both(begun, self.prompt_length, len(tokens), self.vocabulary))
        return None if course is None else PlannedCourse(course, 0, list(range(len(course.streams))), begun, ())

    @property
    def most_streams(self) -> int:
        """The maximum number of rows that it needs at once."""
        guided = self.guidance.everywhere or self.grammar.draws
        sets = (self.guidance.weights, self.guidance.text_weights or self.guidance.weights)
        return 1 + sum(any(weights) for weights in list(zip(*sets, strict=True))[1:]) if guided else 1
