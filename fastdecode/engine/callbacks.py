"""The caller's code that runs between steps: processors, stopping criteria and a streamer; and recorded scores.

transformers gives them the tokens of the whole batch, (batch, length), so the batch runs in lock step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from fastdecode.wording import kind_of


@dataclass
class Recorder:
    """What ``return_dict_in_generate`` records: one tensor (batch, vocab) float32 per step."""

    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None

    @property
    def wanted(self) -> bool:
        return self.scores is not None or self.logits is not None


class Callbacks:
    """The callbacks of one call of `generate`.

    ``prompts`` (batch, length) int64: as the caller gave them, left-padded with ``pad``. ``longest``: the maximum
    number of new tokens. ``process``: logits are mixed, processed and recorded in PyTorch. ``normalise``: before
    processors run, the streams' log-probabilities are mixed instead of their logits, as in transformers' guidance.
    ``after_step`` gets the newest tokens (batch,) after every step, with ``pad`` for sequences that have ended.
    ``columns``: how many tokens, the first ones, scores are for; None: all. No other can come next, or is in a prompt.
    ``device``: where stopping criteria get the tokens.
    """

    def __init__(
        self,
        prompts: Tensor,
        longest: int,
        pad: int,
        *,
        processors: LogitsProcessorList | None = None,
        stopping: StoppingCriteriaList | None = None,
        recorder: Recorder | None = None,
        process: bool = False,
        normalise: bool = False,
        after_step: Callable[[Tensor], None] | None = None,
        columns: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.processors: Any = processors or LogitsProcessorList()
        self.stopping: Any = stopping or StoppingCriteriaList()
        self.recorder, self.normalise, self.after_step = recorder or Recorder(), normalise, after_step
        self.process, self.columns, self.device = process, columns, device
        self.pad, self.length, self.prompt_length = pad, prompts.shape[1], prompts.shape[1]
        self._tokens = torch.full((len(prompts), self.length + longest), pad, dtype=torch.long, device="cpu")
        self._tokens[:, : self.length] = prompts

    @property
    def tokens(self) -> Tensor:
        """(batch, length) int64: the prompts and the tokens generated so far."""
        return self._tokens[:, : self.length]

    @property
    def asks(self) -> bool:
        """Whether the host must read every step before the next one starts."""
        return self.process or bool(self.stopping)

    def rewind(self, generated: list[list[int]]) -> None:
        """Have seen these tokens of the sequences, and no others."""
        steps = max(map(len, generated), default=0)
        self.length = self.prompt_length + steps
        self._tokens[:, self.prompt_length :] = self.pad
        for row, tokens in zip(self._tokens, generated, strict=True):
            row[self.prompt_length : self.prompt_length + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        for kept in (self.recorder.scores, self.recorder.logits):
            if kept is not None:
                del kept[steps:]

    def step(self, newest: list[int]) -> list[bool]:
        """Append one token per sequence, -1 for ended ones. Returns which sequences the criteria stop."""
        column = torch.tensor(newest, device="cpu")
        column[column < 0] = self.pad
        self._tokens[:, self.length] = column
        self.length += 1
        stops = [False] * len(newest)
        if self.stopping:
            scores = self.recorder.scores
            stops = self._stops(None if scores is None else tuple(scores))
        if self.after_step is not None:
            self.after_step(column)
        return stops

    def _stops(self, scores: tuple[Tensor, ...] | None) -> list[bool]:
        """Which sequences the criteria stop. ``ValueError`` that names a criterion which does not say so."""
        batch = len(self._tokens)
        found = torch.zeros(batch, dtype=torch.bool, device="cpu")
        for criterion in self.stopping:
            before = self.tokens.clone()
            said = criterion(self.tokens.to(self.device), scores)
            check_unwritten(self.tokens, before, "stopping criterion", criterion)
            if isinstance(said, Tensor) and said.dtype == torch.bool and said.numel() in (1, batch) and said.ndim < 2:
                found |= said.to("cpu")
            elif isinstance(said, (bool, np.bool_)):
                found |= bool(said)
            else:
                got = f"{tuple(said.shape)} {said.dtype}" if isinstance(said, Tensor) else kind_of(said)
                raise ValueError(
                    f"the stopping criterion {name_of(criterion)} returned {got}; it must return ({batch},) of bools"
                )
        return list(found.tolist())


def name_of(function: Any) -> str:
    """What an error calls a processor or criterion."""
    return str(getattr(function, "__name__", type(function).__name__))


def check_unwritten(tokens: Tensor, before: Tensor, what: str, function: Any) -> None:
    """``ValueError`` if ``function`` has written into the tokens that it was given to read. Puts them back."""
    if not torch.equal(tokens, before):
        tokens.copy_(before)
        raise ValueError(
            f"the {what} {name_of(function)} wrote into the tokens that it was given, which are those of the "
            "sequences; it must leave them as they are, or clone them first"
        )
