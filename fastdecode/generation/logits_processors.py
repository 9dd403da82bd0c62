"""Sampling parameters of a call: what transformers prepared, told apart into what the kernel does and what it cannot.

transformers hands a custom generation loop a list of logits processors. A tail of it (repetition penalty,
temperature, top-k, top-p, min-p) is what `fastdecode.ops.sample` computes and is fused; guidance at its head becomes
streams; what lies between runs as it is, on the mixed logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fastdecode.engine.parameters import Sampling
from fastdecode.token_rules import TokenRules

TRANSFORMERS_TOP_K = 50
"""What transformers samples with when nobody chose a top_k. It suits text; it would cut 8,192 image ids to 50."""


@dataclass(frozen=True)
class SplitProcessors:
    """`LogitsProcessorList` told apart.

    ``guidance``: transformers' guidance processor, or None. ``unfused``: processors that run on the mixed logits.
    ``sampling``: the fused rest.
    """

    guidance: UnbatchedClassifierFreeGuidanceLogitsProcessor | None
    unfused: LogitsProcessorList
    sampling: Sampling
    rules: TokenRules = field(default_factory=TokenRules)

    def check_modality(self, name: str, values: Mapping[str, Any]) -> None:
        """``ValueError`` if ``values`` (a user's ``text=`` or ``image=``) want what runs unfused, the same for both."""
        for processor in self.unfused:
            key = _NAMES.get(type(processor), "")
            if values.get(key) is not None:
                raise ValueError(
                    f"{name}[{key!r}]={values[key]!r} would act on top of the call's own {key}, which applies to text "
                    f"and pictures alike because of a processor that runs after it: give {key} in text= and image= only"
                )

    def check_default_top_k(self) -> None:
        """``ValueError`` if transformers' default top_k runs unfused, and so would act on pictures too."""
        if any(type(p) is TopKLogitsWarper and p.top_k == TRANSFORMERS_TOP_K for p in self.unfused):
            after = ", ".join(type(p).__name__ for p in self.unfused if type(p) not in _NAMES)
            raise ValueError(
                f"transformers' default top_k={TRANSFORMERS_TOP_K} would cut pictures to that many ids, because of "
                f"what runs after it ({after}): give top_k yourself, 0 for none"
            )


_NAMES: dict[type, str] = {
    RepetitionPenaltyLogitsProcessor: "repetition_penalty",
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
_FUSED = tuple(_NAMES)


def _fits(processor: Any, position: int, padding: Tensor) -> bool:
    """Whether ``processor`` is exactly the fused operation at ``position`` of `_FUSED`, with nothing it does not do."""
    if type(processor) is not _FUSED[position]:
        return False
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):  # the kernel's counts all ids as seen but padding
        ignored = 0 if processor.prompt_ignore_length is None else processor.prompt_ignore_length
        return bool((torch.as_tensor(ignored).cpu() == padding).all())
    if getattr(processor, "min_tokens_to_keep", 1) != 1:
        return False
    if isinstance(processor, (TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)):
        return processor.filter_value == -math.inf
    return True


def split_processors(processors: LogitsProcessorList, do_sample: bool, padding: Tensor) -> SplitProcessors:
    """The longest tail of ``processors`` that the kernel computes in its own order is fused.

    ``padding`` (sequences,) int64: how many ids of each prompt are padding.
    """
    rest = list(processors)
    guidance = None
    if rest and type(rest[0]) is UnbatchedClassifierFreeGuidanceLogitsProcessor:
        guidance = rest.pop(0)
    values: dict[str, Any] = {}
    position = len(_FUSED)
    while rest:
        last = rest[-1]
        slot = next((k for k in range(position) if _fits(last, k, padding)), None)
        if slot is None:
            break
        rest.pop()
        position = slot
        name = _NAMES[_FUSED[slot]]
        values[name] = float(last.penalty) if slot == 0 else getattr(last, name)
    sampling = Sampling(**values)
    if not do_sample:
        sampling = replace(sampling, temperature=0.0)
    return SplitProcessors(guidance, LogitsProcessorList(rest), sampling.checked())
