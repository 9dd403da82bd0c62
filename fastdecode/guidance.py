"""Which streams a request runs, and with which weights their logits are mixed: ``z = sum of w[k] * logits[k]``.

A *stream* is a rewriting of the sequence so far. Classifier-free guidance and its relatives differ only in which
rewritings they use and how they weigh them, so a recipe is data: see the constructors of `Guidance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdecode.models.chameleon import Vocabulary

KINDS = ("full", "images", "unconditional", "prompt")


@dataclass(frozen=True)
class Stream:
    """One rewriting of a sequence.

    ``kind``:
      - ``"full"``: the sequence itself.
      - ``"images"``: begin of sequence and the pictures, with their markers; the text is left out.
      - ``"unconditional"``: begin of sequence (unless ``bos=False``) and the picture being drawn.
      - ``"prompt"``: ``ids`` in place of the prompt. With ``history`` what was generated since follows them (as
        transformers does with ``negative_prompt_ids``), without it only the picture being drawn. A picture that the
        prompt has begun is begun here too, if ``ids`` do not end with that beginning themselves.
    """

    kind: str
    ids: tuple[int, ...] = ()
    history: bool = True
    bos: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stream kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.kind == "prompt" and not self.ids:
            raise ValueError("a stream of kind 'prompt' needs at least one id in ids")
        if self.kind != "prompt" and self.ids:
            raise ValueError(f"ids belong to a stream of kind 'prompt'; this one is {self.kind!r}")

    def rewrite(self, ids: Sequence[int], prompt_length: int, tail: int, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The stream's ids for a sequence ``ids`` whose first ``prompt_length`` are the prompt.

        ``tail`` is where the picture being drawn begins (its begin marker), or ``len(ids)`` in text. ``ValueError``
        if an unconditional stream cannot be made.
        """
        if self.kind == "full":
            return tuple(ids)
        if self.kind == "images":
            kept = {vocabulary.begin_image, vocabulary.end_image, vocabulary.bos}
            return tuple(i for i in ids if i in kept or i in vocabulary.image_ids) or tuple(ids[-1:])
        if self.kind == "prompt":
            begun = tuple(ids[tail:prompt_length])
            if begun and self.ids[-len(begun) :] == begun:
                tail = prompt_length
            return (*self.ids, *ids[min(tail, prompt_length) if self.history else tail :])
        if tail == len(ids):  # in text there is no picture to begin with: what transformers does by default
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


FULL, IMAGES, UNCONDITIONAL = Stream("full"), Stream("images"), Stream("unconditional")


@dataclass(frozen=True)
class Guidance:
    """Streams and their weights. The first stream must be the full sequence; weights need not add up to one.

    ``everywhere=False`` mixes inside pictures only: the other streams are made when a picture begins, and given up
    when it ends. ``everywhere=True`` makes them once, from the prompt, and every generated token follows in each.
    """

    streams: tuple[Stream, ...] = (FULL,)
    weights: tuple[float, ...] = (1.0,)
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not self.streams or self.streams[0] != FULL:
            raise ValueError(
                "the first stream of a Guidance must be Stream('full'): it is the sequence being generated"
            )
        if len(self.streams) != len(self.weights):
            raise ValueError(
                f"Guidance has {len(self.streams)} streams but {len(self.weights)} weights: give one weight per stream"
            )
        for k, weight in enumerate(self.weights):
            if not math.isfinite(weight):
                raise ValueError(f"weights[{k}] = {weight} of Guidance is not a finite number")

    @classmethod
    def none(cls) -> Guidance:
        """One stream: plain decoding."""
        return cls()

    @classmethod
    def two_way(
        cls,
        scale: float,
        negative_prompt_ids: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
    ) -> Guidance:
        """Classifier-free guidance ``u + scale * (c - u)``.

        ``u`` is the unconditional stream, or the sequence with ``negative_prompt_ids`` in place of its prompt.
        """
        other = UNCONDITIONAL if negative_prompt_ids is None else Stream("prompt", tuple(map(int, negative_prompt_ids)))
        return cls((FULL, other), (float(scale), 1.0 - float(scale)), everywhere)

    @classmethod
    def instruct(cls, text: float = 3.0, image: float = 1.2, *, everywhere: bool = False) -> Guidance:
        """The three-way recipe of Chameleon's own inference: ``u + image * (i - u) + text * (c - i)``.

        ``c`` is the full sequence, ``i`` its pictures alone, ``u`` neither.
        """
        text, image = float(text), float(image)
        return cls((FULL, IMAGES, UNCONDITIONAL), (text, image - text, 1.0 - image), everywhere)

    @classmethod
    def five_way(
        cls,
        negative: Sequence[int],
        original: Sequence[int],
        *,
        full: float = 2.0,
        image: float = 1.2,
        against: float = 0.0,
        toward: float = 5.0,
    ) -> Guidance:
        """Thinking with generated images: ``u + full (c-i) + image (i-u) - against (n-u) + toward (o-u)``.

        ``n`` begins with the ids ``negative``, ``o`` with ``original``; ``u`` has no begin of sequence.
        """
        streams = (
            FULL,
            IMAGES,
            Stream("unconditional", bos=False),
            Stream("prompt", tuple(negative), history=False),
            Stream("prompt", tuple(original), history=False),
        )
        return cls(streams, (full, image - full, 1.0 - image + against - toward, -against, toward))

    def plan(
        self, ids: Sequence[int], prompt_length: int, tail: int, vocabulary: Vocabulary
    ) -> tuple[list[tuple[int, ...]], list[float]]:
        """Streams to run besides the full one, and the weights of (full, \\*those).

        Streams with equal ids are merged, and those whose weights cancel to 0 are left out; the full stream always
        stays, since the sequence goes on in it. ``ValueError`` if all weights cancel.
        """
        rewritten: dict[tuple[int, ...], float] = {}
        for stream, weight in zip(self.streams, self.weights, strict=True):
            if weight == 0.0 and stream != FULL:
                continue
            key = stream.rewrite(ids, prompt_length, tail, vocabulary)
            rewritten[key] = rewritten.get(key, 0.0) + weight
        full = tuple(ids)
        others = {key: weight for key, weight in rewritten.items() if key != full and weight != 0.0}
        if not others and rewritten[full] == 0.0:
            raise ValueError(
                f"the weights {self.weights} of this Guidance cancel to 0, since some of its streams are equal (or "
                "have weight 0): nothing is left to draw from"
            )
        return list(others), [rewritten[full], *others.values()]


def guidance_from(value: Any) -> Guidance:
    """``None``, a number (two-way scale) or a `Guidance`; ``TypeError`` for anything else."""
    if value is None:
        return Guidance.none()
    if isinstance(value, Guidance):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Guidance.none() if value == 1 else Guidance.two_way(value)
    raise TypeError(f"guidance={value!r}: give a fastdecode.Guidance, or a number for two-way guidance")
