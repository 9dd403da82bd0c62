"""One sequence being generated: its tokens, its state in the grammar, its streams and its parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fastdecode.engine.parameters import Sampling
from fastdecode.grammar import DONE, Grammar, compile_grammar
from fastdecode.guidance import Guidance
from fastdecode.token_rules import TokenRules
from fastdecode.vocabulary import Vocabulary

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Sequence:
    """Everything that a step needs to know about one sequence, independent of any batch.

    ``tokens``: the prompt (without padding, pictures in place of placeholders) and the generated tokens. ``limit``: its
    maximum length. ``also_seen``: further tokens that the repetition penalty applies to (placeholders that pictures
    replaced). ``name``: its name in errors.

    ``state``: its state in ``grammar``. ``image_start``: the position where the picture being drawn begins, or -1.
    ``streams``: its guidance streams besides the full sequence, as they were when it had ``streams_from`` tokens; every
    later token is added to each. ``rows``: its rows of the cache, the full sequence's first; none while it waits.
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
    name: str = "sequence 0"
    grammar: Grammar = field(init=False)
    rules_change_at: int | None = field(init=False)
    state: int = field(init=False)
    image_start: int = field(init=False)
    prompt_length: int = field(init=False)
    streams: list[Tokens] = field(default_factory=list, init=False)
    streams_from: int = field(default=0, init=False)
    weights: list[float] = field(default_factory=lambda: [1.0], init=False)
    rows: list[int] = field(default_factory=list, init=False)
    inputs: list[int] = field(default_factory=list, init=False)
    seen: Tensor | None = field(default=None, init=False)
    reason: str | None = field(default=None, init=False)

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
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    def follow_rules(self) -> None:
        """Switch to the grammar for the present length. It has the same states, so ``state`` does not change."""
        length = len(self.tokens)
        self.grammar = compile_grammar(self.mode, self.vocabulary, self.ends, self.rules.phase(length))
        self.rules_change_at = self.rules.next_change(length)

    # --- one more token -----------------------------------------------------------------------------------------

    def append(self, token: int) -> bool:
        """Append ``token`` and advance the grammar. Returns whether a picture begins with it."""
        before = self.state
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
        return inside and (self.image_start < 0 or token == self.vocabulary.begin_image)

    def recover(self) -> None:
        """Find the place in the grammar anew, from the tokens: something interrupted a step."""
        tokens = self.tokens
        try:
            self.tokens = tokens[: self.prompt_length]
            self.end_streams()
            self.__post_init__()
            for token in tokens[self.prompt_length :]:
                was_inside = self.in_picture
                if self.append(token):
                    self.begin_picture()
                elif was_inside and not self.in_picture and not self.guidance.everywhere:
                    self.end_streams()
        finally:
            self.tokens = tokens  # also if this is interrupted

    # --- streams ------------------------------------------------------------------------------------------------

    def begin_picture(self) -> None:
        """After a token that begins a picture, plan the picture's streams, unless guidance acts everywhere."""
        self.image_start = len(self.tokens) - 1
        if not self.guidance.everywhere:
            self.plan_streams()

    def plan_streams(self) -> None:
        start = self.image_start if self.image_start >= 0 else len(self.tokens)
        self.streams, self.weights = self.guidance.plan(self.tokens, self.prompt_length, start, self.vocabulary)
        self.streams_from = len(self.tokens)

    def end_streams(self) -> None:
        """Keep only the full sequence."""
        self.streams, self.weights = [], [1.0]

    def streams_now(self) -> list[Tokens]:
        """The tokens of every stream, the full sequence first."""
        newer = tuple(self.tokens[self.streams_from :])
        return [tuple(self.tokens), *((*stream, *newer) for stream in self.streams)]

    def streams_planned(self) -> tuple[list[Tokens], list[float]]:
        """Streams and weights where guidance first acts: now, or in the next picture; only the full one if nowhere."""
        tokens = tuple(self.tokens)
        if self.guidance.everywhere or self.image_start >= 0:
            return self.streams_now(), self.weights
        if not self.grammar.draws:
            return [tokens], [1.0]
        begun = (*tokens, self.vocabulary.begin_image)
        others, weights = self.guidance.plan(begun, self.prompt_length, len(tokens), self.vocabulary)
        return [begun, *others], weights

    @property
    def most_streams(self) -> int:
        """The maximum number of rows that it needs at once."""
        guided = self.guidance.everywhere or self.grammar.draws
        return 1 + sum(weight != 0.0 for weight in self.guidance.weights[1:]) if guided else 1
