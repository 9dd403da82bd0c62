"""Sorts the logits processors that transformers made for a call.

transformers hands a custom generation loop one list of processors. They are split into guidance (the first), sampling
parameters (repetition penalty, temperature, top-k, top-p, min-p), which `fastdecode.ops.sample` applies itself, and
rules about single tokens (`fastdecode.token_rules.TokenRules`), which become token sets. All other
processors are called on the mixed logits of every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fastdecode.engine.parameters import Sampling
from fastdecode.token_rules import TokenRules

TRANSFORMERS_TOP_K = 50
"""transformers' default top_k. It suits text; in a picture it would keep only 50 of 8,192 image tokens."""


@dataclass(frozen=True)
class SplitProcessors:
    """The parts of a `LogitsProcessorList`; `split_processors` makes them.

    guidance   transformers' guidance processor, or None
    unfused    processors that have to be called on the mixed logits, in their order
    sampling   the parameters of processors that the sampler applies itself, after ``unfused``
    rules      the other processors' rules about single tokens; their lengths count padding, as in transformers: see
               `TokenRules.shifted`. The bias is added before ``sampling``
    """

    guidance: UnbatchedClassifierFreeGuidanceLogitsProcessor | None
    unfused: LogitsProcessorList
    sampling: Sampling
    rules: TokenRules

    def check_modality(self, name: str, values: Mapping[str, Any]) -> None:
        """``ValueError`` if ``values`` (a user's ``text=`` or ``image=``) set a parameter of a processor that is
        unfused, and so acts on text and pictures alike.
        """
        for processor in self.unfused:
            key = _NAMES.get(type(processor), "")
            if values.get(key) is not None:
                raise ValueError(
                    f"{name}[{key!r}]={values[key]!r} would act on top of the call's own {key}, which applies to text "
                    f"and pictures alike because of a processor that runs after it: give {key} in text= and image= only"
                )

    def check_default_top_k(self) -> None:
        """``ValueError`` if transformers' default top_k is unfused, and so would act on pictures too."""
        if any(type(p) is TopKLogitsWarper and p.top_k == TRANSFORMERS_TOP_K for p in self.unfused):
            after = ", ".join(type(p).__name__ for p in self.unfused if type(p) not in _NAMES)
            raise ValueError(
                f"transformers' default top_k={TRANSFORMERS_TOP_K} would cut pictures to that many tokens, because of "
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
"""The processors that the sampler applies itself, in its order."""

_FIRST_FILTER = _FUSED.index(TopKLogitsWarper)


def _fits(processor: Any, position: int, padding: Tensor) -> bool:
    """Whether ``processor`` does exactly what the sampler does at ``position`` of `_FUSED`."""
    if type(processor) is not _FUSED[position]:
        return False
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):  # the sampler penalises all tokens except padding
        ignored = 0 if processor.prompt_ignore_length is None else processor.prompt_ignore_length
        return bool((torch.as_tensor(ignored).cpu() == padding).all())
    if getattr(processor, "min_tokens_to_keep", 1) != 1:
        return False
    if isinstance(processor, (TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)):
        return processor.filter_value == -math.inf
    return True


def split_processors(
    processors: LogitsProcessorList,
    do_sample: bool,
    padding: Tensor,
    *,
    vocab_size: int | None = None,
) -> SplitProcessors:
    """Split the processors of a call into those that the sampler applies and those that must be called.

        padding      (sequences,) int64: how many tokens of each prompt are padding
        vocab_size   number of tokens, if known: processors of bad words, biased and forced tokens beyond it stay
                     unfused, and transformers refuses them as it always does

    ``rules`` are used only if no processor has to be called. Otherwise the longest end of the list that the sampler can
    apply in its own order becomes ``sampling``, and all processors before it are ``unfused``. So these get exactly the
    scores that transformers would give them.
    """
    rest = list(processors)
    guidance = None
    if rest and type(rest[0]) is UnbatchedClassifierFreeGuidanceLogitsProcessor:
        guidance = rest.pop(0)
    rules = TokenRules()
    absorbed = _absorbed(rest, padding, vocab_size)
    if absorbed is not None:
        rest, rules = absorbed
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
    return SplitProcessors(guidance, LogitsProcessorList(rest), sampling.checked(), rules)


def _absorbed(processors: list[Any], padding: Tensor, vocab_size: int | None) -> tuple[list[Any], TokenRules] | None:
    """``processors`` as parameters of the sampler and rules; None if the result would not be exactly the same.

    The sampler adds the bias, restricts the tokens to the allowed set, then penalises, divides by the temperature and
    filters. Bias, penalty and temperature keep a score of -inf, so bans and forced tokens may come before or after
    them. They may not come after a filter, which would have counted banned tokens. A bias must come before the penalty
    and the temperature, because these change it.
    """
    fused: list[Any] = []
    rules = TokenRules()
    position = -1
    for processor in processors:
        slot = next((k for k in range(position + 1, len(_FUSED)) if _fits(processor, k, padding)), None)
        if slot is not None:
            position = slot
            fused.append(processor)
            continue
        read = _READERS.get(type(processor))
        more = None if read is None or position >= _FIRST_FILTER else read(processor, vocab_size)
        if more is None or (more.bias and position >= 0):
            return None
        combined = _followed_by(rules, more)
        if combined is None:
            return None
        rules = combined
    return fused, rules


def _followed_by(first: TokenRules, then: TokenRules) -> TokenRules | None:
    """One rule for ``first`` followed by ``then``; None if rules cannot express the result.

    A forced token overrides all bans before it. A ban of it afterwards would leave no token. The sum of two biases of
    one token would be rounded once; transformers rounds twice.
    """
    forced = dict(first.forced_at) | dict(then.forced_at)
    for length, tokens in first.forced_at:
        if tokens & then.phase(length).banned:
            return None
    if dict(first.bias).keys() & dict(then.bias).keys():
        return None
    return TokenRules(
        first.banned | then.banned,
        first.banned_while + then.banned_while,
        tuple(forced.items()),
        first.bias + then.bias,
    )


def _token_set(tokens: Any) -> frozenset[int] | None:
    """The tokens of a processor that uses torch.isin, which never matches negative ones; None if not integers."""
    found = torch.as_tensor(tokens).flatten()
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        return None
    return frozenset(int(token) for token in found.tolist() if token >= 0)


def _banned_while(start: Any, stop: Any, tokens: Any) -> TokenRules | None:
    found = _token_set(tokens)
    if found is None or not isinstance(start, Integral) or not isinstance(stop, Integral):
        return None
    return TokenRules(banned_while=((int(start), int(stop), found),)) if found and start < stop else TokenRules()


def _min_length(processor: Any, vocab_size: int | None) -> TokenRules | None:
    return _banned_while(0, processor.min_length, processor.eos_token_id)


def _min_new_tokens(processor: Any, vocab_size: int | None) -> TokenRules | None:
    return _banned_while(0, processor.prompt_length_to_skip + processor.min_new_tokens, processor.eos_token_id)


def _suppressed(processor: Any, vocab_size: int | None) -> TokenRules | None:
    found = _token_set(processor.suppress_tokens)
    return None if found is None else TokenRules(banned=found)


def _suppressed_at_begin(processor: Any, vocab_size: int | None) -> TokenRules | None:
    begin = processor.begin_index
    return None if begin is None else _banned_while(begin, begin + 1, processor.begin_suppress_tokens)


def _forced_at(length: Any, tokens: Any, vocab_size: int | None) -> TokenRules | None:
    """One forced token. transformers samples several ones with equal probability, whatever their logits."""
    found = _token_set(tokens)
    if (
        not isinstance(length, int)
        or found is None
        or len(found) != 1
        or (vocab_size is not None and max(found) >= vocab_size)
    ):
        return None
    return TokenRules(forced_at=((length, found),))


def _forced_bos(processor: Any, vocab_size: int | None) -> TokenRules | None:
    return _forced_at(1, processor.bos_token_id, vocab_size)


def _forced_eos(processor: Any, vocab_size: int | None) -> TokenRules | None:
    longest = processor.max_length
    return None if longest is None else _forced_at(longest - 1, processor.eos_token_id, vocab_size)


def _sequence_bias(processor: Any, vocab_size: int | None) -> TokenRules | None:
    """Biases of single tokens; -inf is a ban. Bad words are biases of -inf, except tokens that end the sequence."""
    banned: set[int] = set()
    biases: list[tuple[int, float]] = []
    for sequence, bias in processor.sequence_bias.items():
        if len(sequence) != 1 or (vocab_size is not None and sequence[0] >= vocab_size):
            return None
        token, added = int(sequence[0]), float(torch.tensor(bias, dtype=torch.float32, device="cpu"))
        if added == -math.inf:
            banned.add(token)
        elif not math.isfinite(added):
            return None
        elif added != 0.0:
            biases.append((token, bias))
    return TokenRules(banned=frozenset(banned), bias=tuple(biases))


_READERS: dict[type, Callable[[Any, int | None], TokenRules | None]] = {
    MinLengthLogitsProcessor: _min_length,
    MinNewTokensLengthLogitsProcessor: _min_new_tokens,
    SuppressTokensLogitsProcessor: _suppressed,
    SuppressTokensAtBeginLogitsProcessor: _suppressed_at_begin,
    ForcedBOSTokenLogitsProcessor: _forced_bos,
    ForcedEOSTokenLogitsProcessor: _forced_eos,
    NoBadWordsLogitsProcessor: _sequence_bias,
    SequenceBiasLogitsProcessor: _sequence_bias,
}
"""For each exact class, a function that returns its rules, or None if rules cannot express it."""
