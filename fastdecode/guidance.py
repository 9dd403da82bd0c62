"""Guidance: which streams a request runs, and the weights that mix their logits, ``z = sum of w[k] * logits[k]``.

A *stream* is another version of the sequence so far, with something left out or replaced, that the model reads too.
Classifier-free guidance and its relatives differ only in their streams and weights, so a `Guidance` is plain data. Its
constructors are the known recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from fastdecode.layout import tokens_of
from fastdecode.ops.scalars import shown
from fastdecode.schedule import Schedule, finite_number, scale_of
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of

KINDS = ("full", "images", "unconditional", "blank", "prompt")


@dataclass(frozen=True)
class Stream:
    """One version of a sequence, made from its tokens.

    ``kind``:
      - ``"full"``: the sequence itself.
      - ``"images"``: begin of sequence and all pictures with their begin and end tokens, without the text.
      - ``"unconditional"``: begin of sequence (unless ``bos=False``) and the picture being drawn.
      - ``"blank"``: the sequence with a padding token (or the one in ``ids``) in place of every token of the prompt but
        begin of sequence and begin of image; a picture that the prompt has begun stays.
      - ``"prompt"``: the tokens ``ids`` in place of the prompt. All generated tokens follow them, as they do with
        transformers' ``negative_prompt_ids``; with ``history=False`` only the picture being drawn follows. If the
        prompt ends inside a picture, so does this stream: that part of the picture is added, unless ``ids`` already
        end with it.
    """

    kind: str
    ids: tuple[int, ...] = ()
    history: bool = True
    bos: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"stream kind {shown(self.kind)} is unknown; choose one of {', '.join(KINDS)}")
        object.__setattr__(self, "ids", tokens_of("ids of a Stream", self.ids))
        for name in ("history", "bos"):
            _check_bool(f"{name} of a Stream", getattr(self, name))
        if self.kind == "prompt" and not self.ids:
            raise ValueError("a stream of kind 'prompt' needs at least one token in ids")
        if self.kind not in ("prompt", "blank") and self.ids:
            raise ValueError(f"ids belong to a stream of kind 'prompt' or 'blank'; this one is {shown(self.kind)}")
        if self.kind == "blank" and len(self.ids) > 1:
            raise ValueError(f"a stream of kind 'blank' takes one token in ids, not {len(self.ids)}")
        for name, kind in (("history", "prompt"), ("bos", "unconditional")):
            if not getattr(self, name) and self.kind != kind:
                raise ValueError(f"{name}=False belongs to a stream of kind {kind!r}; this one is {shown(self.kind)}")

    def rewrite(self, ids: Sequence[int], prompt_length: int, tail: int, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The tokens of this stream for a sequence ``ids``, the first ``prompt_length`` of which are the prompt.

        ``tail`` is the position of ``begin_image`` of the picture being drawn, or ``len(ids)`` in text. ``ValueError``
        if an unconditional stream needs a begin of sequence and the vocabulary has none.
        """
        if self.kind == "full":
            return tuple(ids)
        if self.kind == "images":
            kept = {vocabulary.begin_image, vocabulary.end_image, vocabulary.bos}
            pictures = vocabulary.block_ids  # numbers below 0 are vectors of a picture, which cannot end a stream
            found = tuple(i for i in ids if i in kept or i in pictures or i < 0)
            return found if found and found[-1] >= 0 else (*found, *ids[-1:])
        if self.kind == "blank":
            return self._blank(ids, min(prompt_length, tail), vocabulary)
        if self.kind == "prompt":
            begun = tuple(ids[tail:prompt_length])
            if begun and self.ids[-len(begun) :] == begun:
                tail = prompt_length
            return (*self.ids, *ids[min(tail, prompt_length) if self.history else tail :])
        if tail == len(ids):  # in text: only the last token, as in transformers without negative_prompt_ids
            return tuple(ids[-1:])
        if not self.bos:
            start: tuple[int, ...] = ()
        elif vocabulary.bos is None:
            raise ValueError(
                "guidance needs an unconditional prompt, and none can be made: the checkpoint's vocabulary_map has no "
                "'<s>'. Give negative_prompt_ids, or Stream('unconditional', bos=False)"
            )
        else:
            start = (vocabulary.bos,)
        return (*start, *ids[tail:])

    def _blank(self, ids: Sequence[int], end: int, vocabulary: Vocabulary) -> tuple[int, ...]:
        """``ids``, the first ``end`` of which are replaced but for begin of sequence and of image."""
        token = self.ids[0] if self.ids else vocabulary.pad
        if token is None:
            raise ValueError(
                "guidance needs a padding token to stand for the prompt, and the checkpoint names none: set "
                "model.generation_config.pad_token_id, or give Stream('blank', (token,))"
            )
        kept = {vocabulary.bos, vocabulary.begin_image}
        return (*(i if i in kept else token for i in ids[:end]), *ids[end:])


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}: give True or False")


FULL, IMAGES, UNCONDITIONAL = Stream("full"), Stream("images"), Stream("unconditional")

_USUAL = {"unconditional": UNCONDITIONAL, "bare": Stream("unconditional", bos=False), "blank": Stream("blank")}


def usual_stream(vocabulary: Vocabulary) -> Stream:
    """The stream that two-way guidance subtracts for a family of models, where there is no negative prompt: the picture
    alone behind the begin of sequence ("unconditional"), without it ("bare"), or behind other tokens; or the whole
    prompt in padding tokens ("blank").
    """
    usual = vocabulary.unconditional
    return _USUAL[usual] if isinstance(usual, str) else Stream("prompt", usual, history=False)


@dataclass(frozen=True)
class Guidance:
    """Streams and their weights. The first stream must be the full sequence; weights need not add up to one.

    A weight, and each scale of the recipes below, is a number, or a `fastdecode.Schedule` of numbers that change from
    the first token of a picture to its last. A stream is decoded only from the first token at which its weight is not 0
    to the last one: so a scale of 1 costs nothing.

    With ``everywhere=False`` only pictures are guided: the other streams start when a picture begins and are freed
    when it ends. With ``everywhere=True`` text is guided too: the other streams start with the prompt, and every
    generated token is added to each of them.

    ``contrast``: a pair (alpha, k). Where guidance acts, only tokens come that are likely in the full sequence, which
    are those of at least alpha times the probability of its k-th likeliest token. Of all tokens that the grammar allows
    there, and before they are mixed. See `contrastive`. Weights are numbers then.

    ``text_weights``: the weights in text, where they are others than in pictures. They need ``everywhere=True``.
    """

    streams: tuple[Stream, ...] = (FULL,)
    weights: tuple[float | Schedule, ...] = (1.0,)
    everywhere: bool = False
    contrast: tuple[float, int] | None = None
    text_weights: tuple[float | Schedule, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("streams", "weights", "text_weights"):
            value = getattr(self, name)
            if name == "text_weights" and value is None:
                continue
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"{name} of Guidance is {kind_of(value)}: give a tuple")
            object.__setattr__(self, name, tuple(value))
        for k, stream in enumerate(self.streams):
            if not isinstance(stream, Stream):
                raise ValueError(f"streams[{k}] of Guidance is {kind_of(stream)}: give a fastdecode.Stream")
        _check_bool("everywhere of Guidance", self.everywhere)
        if not self.streams or self.streams[0] != FULL:
            raise ValueError(
                "the first stream of a Guidance must be Stream('full'): it is the sequence being generated"
            )
        for name in ("weights", "text_weights") if self.text_weights is not None else ("weights",):
            given = getattr(self, name)
            if len(self.streams) != len(given):
                raise ValueError(
                    f"Guidance has {len(self.streams)} streams but {len(given)} {name}: give one weight per stream"
                )
            numbers = tuple(scale_of(f"{name}[{k}] of Guidance", weight) for k, weight in enumerate(given))
            object.__setattr__(self, name, numbers)
        if self.text_weights is not None and not self.everywhere:
            raise ValueError("text_weights of Guidance guide text: give everywhere=True too, or leave them out")
        if self.contrast is not None:
            object.__setattr__(self, "contrast", self._checked(self.contrast))

    def _checked(self, contrast: Any) -> tuple[float, int]:
        """``contrast`` as a pair. ``ValueError`` if it is none, or if the streams and weights do not go with it."""
        if not isinstance(contrast, (tuple, list)) or len(contrast) != 2:
            raise ValueError(f"contrast of Guidance is {shown(contrast)}: give a pair (alpha, k), or None")
        alpha, k = finite_number("alpha of a Guidance's contrast", contrast[0]), contrast[1]
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha of a Guidance's contrast is {alpha:g}: give a number from 0 to 1")
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ValueError(f"k of a Guidance's contrast is {shown(k)}: give a whole number of at least 1")
        if self.scheduled:
            raise ValueError(
                "a Guidance with a contrast has a Schedule among its weights: give numbers, since contrastive decoding "
                "subtracts one stream from another with fixed weights"
            )
        if self.text_weights is not None:
            raise ValueError("a Guidance with a contrast has text_weights: leave one of them out")
        if len(self.streams) < 2 or self.weights[0] == 0:
            raise ValueError(
                "a Guidance with a contrast compares the full sequence with another stream: give at least two streams, "
                "and the full one a weight that is not 0"
            )
        return alpha, int(k)

    @classmethod
    def none(cls) -> Guidance:
        """No guidance: the full sequence is the only stream."""
        return cls()

    @classmethod
    def two_way(
        cls,
        scale: float | Schedule,
        negative_prompt_ids: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
        text_scale: float | Schedule | None = None,
    ) -> Guidance:
        """Classifier-free guidance ``u + scale * (c - u)``.

        ``c`` is the full sequence; ``u`` is the unconditional stream, or the sequence with ``negative_prompt_ids`` in
        place of its prompt. ``text_scale``: the scale in text, where it is another than in pictures; text is guided
        then.
        """
        scale = scale_of("scale of Guidance.two_way", scale)
        other = UNCONDITIONAL
        if negative_prompt_ids is not None:
            negative = tokens_of("negative_prompt_ids", negative_prompt_ids)
            if not negative:
                raise ValueError("negative_prompt_ids has no token: give at least one, or leave it out")
            other = Stream("prompt", negative)
        if text_scale is None:
            return cls((FULL, other), (scale, 1.0 - scale), everywhere)
        of_text = scale_of("text_scale of Guidance.two_way", text_scale)
        return cls((FULL, other), (scale, 1.0 - scale), True, text_weights=(of_text, 1.0 - of_text))

    @classmethod
    def instruct(
        cls, text: float | Schedule = 3.0, image: float | Schedule = 1.2, *, everywhere: bool = False
    ) -> Guidance:
        """The three-way recipe of Chameleon's own inference: ``u + image * (i - u) + text * (c - i)``.

        ``c`` is the full sequence, ``i`` its pictures without the text, ``u`` the unconditional stream.
        """
        text, image = scale_of("text of Guidance.instruct", text), scale_of("image of Guidance.instruct", image)
        return cls((FULL, IMAGES, UNCONDITIONAL), (text, image - text, 1.0 - image), everywhere)

    @classmethod
    def contrastive(
        cls,
        alpha: float = 0.1,
        k: int = 1,
        negative_prompt_ids: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
    ) -> Guidance:
        """CD-K, the contrastive decoding of CM3Leon (arXiv 2309.02591): ``c - u`` over the tokens likely in ``c``.

        A token may come if its probability in ``c`` is at least ``alpha`` times that of the ``k``-th likeliest token
        that the grammar allows; of these, ``log p_c - log p_u`` are the logits. The larger k and the smaller alpha, the
        more tokens may come. ``k=1`` and ``alpha=0.1`` are those of contrastive decoding itself (arXiv 2210.15097);
        CM3Leon's own values are not published.

        ``c`` is the full sequence; ``u`` is the unconditional stream, or the sequence with ``negative_prompt_ids`` in
        place of its prompt: with CM3Leon, the prompt with ``<mask>`` in place of the text.
        """
        streams = cls.two_way(0.0, negative_prompt_ids, everywhere=everywhere).streams
        return cls(streams, (1.0, -1.0), everywhere, (alpha, k))

    @classmethod
    def five_way(
        cls,
        negative: Sequence[int],
        original: Sequence[int],
        *,
        full: float | Schedule = 2.0,
        image: float | Schedule = 1.2,
        against: float | Schedule = 0.0,
        toward: float | Schedule = 5.0,
    ) -> Guidance:
        """Thinking with generated images: ``u + full (c-i) + image (i-u) - against (n-u) + toward (o-u)``.

        ``c``, ``i`` and ``u`` are as in `instruct`, but ``u`` has no begin of sequence. ``n`` is the picture being
        drawn after the tokens ``negative``, ``o`` the same after ``original``.
        """
        full, image = scale_of("full of Guidance.five_way", full), scale_of("image of Guidance.five_way", image)
        against = scale_of("against of Guidance.five_way", against)
        toward = scale_of("toward of Guidance.five_way", toward)
        streams = (
            FULL,
            IMAGES,
            Stream("unconditional", bos=False),
            Stream("prompt", tokens_of("negative of Guidance.five_way", negative), history=False),
            Stream("prompt", tokens_of("original of Guidance.five_way", original), history=False),
        )
        return cls(streams, (full, image - full, 1.0 - image + against - toward, -against, toward))

    @property
    def scheduled(self) -> bool:
        """Whether a weight is a schedule."""
        return any(isinstance(weight, Schedule) for weight in (*self.weights, *(self.text_weights or ())))

    @property
    def changes(self) -> bool:
        """Whether weights change with the position: by a schedule, or between text and pictures."""
        return self.scheduled or self.text_weights is not None

    def plan(
        self, ids: Sequence[int], prompt_length: int, tail: int, vocabulary: Vocabulary
    ) -> tuple[list[tuple[int, ...]], list[float | Schedule]]:
        """As `plan_both`, without the weights in text."""
        return self.plan_both(ids, prompt_length, tail, vocabulary)[:2]

    def plan_both(
        self, ids: Sequence[int], prompt_length: int, tail: int, vocabulary: Vocabulary
    ) -> tuple[list[tuple[int, ...]], list[float | Schedule], list[float | Schedule]]:
        """The tokens of each stream besides the full one, and the weights in pictures and in text: the full stream's
        first, then theirs.

        Arguments: see `Stream.rewrite`. Streams with equal tokens become one stream with the sum of their weights.
        Streams of weight 0 are left out, except the full stream, which is the sequence itself. ``ValueError`` if only
        the full stream has a weight there, which is 0, or if that weight is 0 and there is a contrast.
        """
        sets = (self.weights, self.weights if self.text_weights is None else self.text_weights)
        rewritten: dict[tuple[int, ...], tuple[float | Schedule, ...]] = {}
        for stream, *weights in zip(self.streams, *sets, strict=True):
            if not any(weights) and stream != FULL:
                continue
            key = stream.rewrite(ids, prompt_length, tail, vocabulary)
            rewritten[key] = tuple(a + b for a, b in zip(rewritten.get(key, (0.0, 0.0)), weights, strict=True))
        full = tuple(ids)
        others = {key: weights for key, weights in rewritten.items() if key != full and any(weights)}
        if self.contrast is not None and rewritten[full][0] == 0.0:
            raise ValueError(
                "the contrast of this Guidance compares the full sequence with a stream of the same tokens, so that "
                "nothing is left to draw from: give a longer prompt, or negative_prompt_ids that differ from it"
            )
        found = [rewritten[full], *others.values()]
        for column, given in zip(zip(*found, strict=True), sets, strict=True):
            if not any(column):
                raise ValueError(
                    f"the weights {given} of this Guidance cancel to 0, since some of its streams are equal (or have "
                    "weight 0): nothing is left to draw from"
                )
        return list(others), [pair[0] for pair in found], [pair[1] for pair in found]


def guidance_from(value: Any) -> Guidance:
    """A `Guidance` from None, a number or `Schedule` (the two-way scale), or a `Guidance`. ``TypeError`` for anything
    else.
    """
    if value is None:
        return Guidance.none()
    if isinstance(value, Guidance):
        return value
    if isinstance(value, Schedule):
        value = scale_of("guidance", value)
    if isinstance(value, Schedule):
        return Guidance.two_way(value)
    if not isinstance(value, bool) and isinstance(value, Real):
        scale = finite_number("guidance", value)
        return Guidance.none() if scale == 1 else Guidance.two_way(scale)
    raise TypeError(
        f"guidance={shown(value)}: give a number for two-way guidance, a fastdecode.Schedule, or a fastdecode.Guidance"
    )
