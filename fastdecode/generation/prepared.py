"""A call that is ready to decode, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import logging

from fastdecode.engine.callbacks import Callbacks, Recorder
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.request import Request
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.logits_processors import SplitProcessors
from fastdecode.grammar import Grammar
from fastdecode.kv.page_pool import PagePool
from fastdecode.vocabulary import Vocabulary

logger = logging.get_logger(__name__)

_DICT: Any = GenerateDecoderOnlyOutput


@dataclass
class Prepared:
    """A call that is ready to decode: its sequences, and the caller's code that runs between steps."""

    model: Any
    vocabulary: Vocabulary
    grammar: Grammar
    sequences: list[Sequence]
    prompts: Tensor
    mask: Tensor | None
    device: torch.device
    pad: int
    text: Sampling
    image: Sampling
    processors: SplitProcessors
    stopping: StoppingCriteriaList
    config: GenerationConfig
    deterministic: bool
    pool: PagePool | None
    recorder: Recorder
    seeded: bool
    """Whether the caller gave a seed."""
    text_given: bool
    """Whether the caller gave sampling parameters of text alone."""
    columns: int
    """How many tokens processors see, and scores have: see `fastdecode.generation.prepare.columns_of`."""
    codes: bool = False
    """Whether the caller wants the codes of a picture alone."""
    told_sizes: list[list[tuple[int, int]]] | None = None
    """What `Family.told_sizes` read, of every sequence."""

    @property
    def normalise(self) -> bool:
        """Whether streams are normalised before they are mixed, as in transformers' guidance of text."""
        return self.processors.guidance is not None and all(s.guidance.everywhere for s in self.sequences)

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled, in text or in pictures; else each is the likeliest."""
        by_mode = {"text-only": ("text",), "image-only": ("image",)}
        used = by_mode.get(self.grammar.mode, ("text", "image"))
        return any(getattr(s, name).temperature != 0 for s in self.sequences for name in used)

    @property
    def without_effect(self) -> dict[str, str]:
        """The names of options that were given and change nothing, each with the reason: a seed where every token is
        the likeliest, and parameters of text where none is written.
        """
        found = {}
        if self.text_given and self.grammar.mode == "image-only":
            found["text"] = "multimodal_generation_mode='image-only' writes none"
        if self.seeded and not self.samples:
            found["seed"] = "nothing is sampled: do_sample=True samples, and without it the likeliest token is taken"
        return found

    def warn(self) -> None:
        """Say once in the log what has no effect."""
        for name, reason in self.without_effect.items():
            logger.warning_once(f"{name} has no effect, because {reason}")

    @property
    def unfused(self) -> bool:
        """Whether logits are mixed in PyTorch: because other processors run on them, because they are returned, or
        because transformers penalises mixed log-probabilities.
        """
        penalised = any(s.text.repetition_penalty != 1.0 or s.image.repetition_penalty != 1.0 for s in self.sequences)
        return bool(self.processors.unfused) or self.recorder.wanted or (self.normalise and penalised)

    def requests(
        self, after_step: Callable[[Tensor], None] | None = None, *, listened: bool = False, priority: int = 0
    ) -> list[Request]:
        """One request per sequence. If code of the caller needs the whole batch between steps: one request for all, in
        lock step. ``listened``: report tokens as soon as they are sampled, also inside pictures.
        """
        if not self.unfused and not self.stopping and after_step is None:
            return [Request([s], listened=listened, priority=priority) for s in self.sequences]
        callbacks = Callbacks(
            self.prompts,
            max((s.limit - s.prompt_length for s in self.sequences), default=0),
            self.pad,
            processors=self.processors.unfused,
            stopping=self.stopping,
            recorder=self.recorder,
            process=self.unfused,
            normalise=self.normalise,
            after_step=after_step,
            columns=self.columns,
            device=self.device,
        )
        return [Request(self.sequences, callbacks, listened=listened, priority=priority)]

    def output(self) -> Tensor | GenerateDecoderOnlyOutput:
        """The result of `generate` from the present sequences: the prompts as the caller gave them, each followed by
        its generated tokens, padded to the longest.
        """
        width = self.prompts.shape[1]
        longest = max((len(s.tokens) - s.prompt_length for s in self.sequences), default=0)
        found = torch.full((len(self.sequences), width + longest), self.pad, dtype=torch.long, device="cpu")
        found[:, :width] = self.prompts
        for row, s in zip(found, self.sequences, strict=True):
            new = s.generated
            row[width : width + len(new)] = torch.tensor(new, dtype=torch.long)
        found = found.to(self.device)
        if not self.config.return_dict_in_generate:
            return found
        scores, logits = self.recorder.scores, self.recorder.logits
        return _DICT(
            sequences=found,
            scores=None if scores is None else tuple(t.clone() for t in scores),
            logits=None if logits is None else tuple(t.clone() for t in logits),
        )
