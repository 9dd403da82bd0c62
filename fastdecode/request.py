"""From a prepared transformers call to the groups of a decode loop; every refusal of a bad call is here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.utils import logging

from fastdecode.decoder import ChameleonDecoder
from fastdecode.draw import Drawer, Recorder
from fastdecode.explanation import Explanation
from fastdecode.grammar import MODES, Grammar, compile_grammar
from fastdecode.group import Group
from fastdecode.guidance import Guidance, guidance_from
from fastdecode.loop import DecodeLoop
from fastdecode.models.chameleon import (
    Vocabulary,
    check_can_draw,
    check_picture_count,
    check_pixels,
    encode_pictures,
    fill_placeholders,
)
from fastdecode.sampling import TRANSFORMERS_TOP_K, Plan, Sampling, tell_apart

logger = logging.get_logger(__name__)

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beam search"),
    "assistant_model": (None, "assisted decoding"),
    "prompt_lookup_num_tokens": (None, "prompt lookup decoding"),
    "assistant_early_exit": (None, "assisted decoding"),
    "use_mtp": (None, "multi-token prediction"),
    "watermarking_config": (None, "watermarking"),
    "dola_layers": (None, "DoLa decoding"),
    "penalty_alpha": (None, "contrastive search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "token_healing": (False, "token healing"),
    "cache_implementation": (None, "a choice of cache"),
    "prefill_chunk_size": (None, "chunked prefill"),
    "compile_config": (None, "compilation"),
    "output_attentions": (False, "returning attentions"),
    "output_hidden_states": (False, "returning hidden states"),
    "inputs_embeds": (None, "prompts given as embeddings"),
    "past_key_values": (None, "continuing from a cache"),
    "synced_gpus": (False, "synchronised decoding"),
}
"""Options that would change the result and that the loop does not do: what they must be, and what they ask for."""


DRAWING_MODES = ("image-only", "interleaved-text-image")
"""Modes that ask for pictures; ``unrestricted`` merely allows them."""

LENGTHS = frozenset({"max_length", "max_new_tokens"})


@dataclass(frozen=True)
class Extras:
    """Options of `generate` that transformers does not know; see there."""

    multimodal_generation_mode: str | None = None
    guidance: Guidance | float | None = None
    text: Mapping[str, Any] | None = None
    image: Mapping[str, Any] | None = None
    seed: int | Sequence[int] | None = None
    progress: bool = False


def option(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """``name`` as the call, its generation_config or the model's sets it, in this order; None if none does."""
    found = options.get(name)
    for config in (options.get("generation_config"), model.generation_config):
        found = getattr(config, name, None) if found is None else found
    return found


# --- refusals ---------------------------------------------------------------------------------------------------


def check_options(model: Any, options: Mapping[str, Any]) -> None:
    """``ValueError`` naming the first option of a call, or of its generation_config, that is not supported."""
    for name, (neutral, what) in UNSUPPORTED.items():
        value = option(model, options, name)
        if value is None or value is neutral or value == neutral:
            continue
        if name == "past_key_values" and hasattr(value, "get_seq_length") and value.get_seq_length() == 0:
            continue
        shown = value if isinstance(value, (int, float, str, bool)) else type(value).__name__
        raise ValueError(
            f"{name}={shown!r} asks for {what}, which fastdecode does not support; leave it out"
            + (f" (or {name}={neutral!r})" if neutral is not None else "")
        )
    scale = option(model, options, "guidance_scale")
    if options.get("negative_prompt_ids") is not None and scale in (None, 1):
        raise ValueError(
            f"negative_prompt_ids was given with guidance_scale={scale!r}: it has an effect only with another scale "
            "than 1, such as guidance_scale=3.0"
        )


def check_prompt(model: Any, input_ids: Tensor | None, options: Mapping[str, Any]) -> None:
    """``ValueError`` if the ids, the mask and the pictures of a call do not belong together."""
    if input_ids is None:
        raise ValueError("no prompt: give input_ids (batch, length), as the processor returns them")
    vocabulary = Vocabulary.of(model)
    check_ids(input_ids, options.get("attention_mask"), vocabulary)
    pixels = options.get("pixel_values")
    if pixels is not None:
        check_pixels(model, pixels)
    if pixels is not None or not options.get("mm_encoder_outputs"):
        check_picture_count(input_ids, 0 if pixels is None else len(pixels), vocabulary)


def check_ids(input_ids: Tensor, mask: Tensor | None, vocabulary: Vocabulary) -> None:
    """``ValueError`` unless ``input_ids`` and ``mask`` (or None) are prompts that something can follow."""
    if input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids is {tuple(input_ids.shape)} {input_ids.dtype}; it must be (batch, length) integers, at least "
            "one of each prompt"
        )
    outside = (input_ids < 0) | (input_ids >= vocabulary.size)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"input_ids[{row}, {column}] = {int(input_ids[row, column])} is not an id of this checkpoint "
            f"(0 to {vocabulary.size - 1})"
        )
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(mask.shape)}; it must be {tuple(input_ids.shape)}, as input_ids")
    lengths = (torch.ones_like(input_ids) if mask is None else mask != 0).sum(1)
    longest, shortest = int(lengths.max()), int(lengths.argmin())
    if longest >= vocabulary.context:
        raise ValueError(
            f"the prompt is {longest} ids long, and the context of this checkpoint is {vocabulary.context}: nothing "
            "can follow it; shorten the text or give fewer pictures"
        )
    if not lengths[shortest]:
        raise ValueError(f"attention_mask leaves nothing of prompt {shortest}: every prompt needs an id")


def _check_positions(positions: Tensor | None, input_ids: Tensor, mask: Tensor | None) -> None:
    """``ValueError`` unless ``positions`` count the ids that are not padding, as transformers and the loop do."""
    if positions is None:
        return
    kept = torch.ones_like(input_ids) if mask is None else mask != 0
    if positions.ndim != 2 or (positions - kept.cumsum(1) + 1)[kept != 0].any():
        raise ValueError("position_ids other than 0, 1, 2, … of each prompt's ids are not supported: leave them out")


def chosen_options(model: Any, options: Mapping[str, Any]) -> frozenset[str]:
    """Names of options that somebody set: in the call, in its generation_config, or in the model's."""
    names = {key for key, value in options.items() if value is not None}
    for config in (options.get("generation_config"), model.generation_config):
        if config is not None:
            names |= {key for key, value in config.to_dict().items() if value is not None}
    return frozenset(names)


def set_default_length(model: Any, mode: str | None, options: dict[str, Any]) -> None:
    """``image-only`` without a length of its own: room for one picture, without transformers' warning about it."""
    if mode == "image-only" and not chosen_options(model, options) & LENGTHS:
        options["max_new_tokens"] = Vocabulary.of(model).image_length + 2


# --- preparation ------------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """A call, ready to decode."""

    model: Any
    vocabulary: Vocabulary
    grammar: Grammar
    groups: list[Group]
    prompts: Tensor
    pad: int
    text: Sampling
    image: Sampling
    plan: Plan
    stopping: StoppingCriteriaList
    config: GenerationConfig

    @property
    def normalise(self) -> bool:
        """Whether streams are normalised before they are mixed: as transformers' guidance of text does."""
        return self.plan.guidance is not None and all(g.guidance.everywhere for g in self.groups)

    def keeps(self, what: str) -> bool:
        """Whether the call wants the ``"scores"`` or the ``"logits"`` of every step returned."""
        return bool(self.config.return_dict_in_generate and getattr(self.config, f"output_{what}"))

    def loop(self, after_step: Callable[[Tensor], None] | None = None) -> DecodeLoop:
        recorder = Recorder(*([] if self.keeps(what) else None for what in ("scores", "logits")))
        drawer = Drawer(
            ChameleonDecoder(self.model),
            self.grammar,
            self.vocabulary,
            self.groups,
            self.text,
            self.image,
            self.plan.unfused,
            recorder,
            self.normalise,
        )
        return DecodeLoop(drawer, self.vocabulary, self.groups, self.prompts, self.pad, self.stopping, after_step)

    def explain(self) -> Explanation:
        return Explanation.of(self)


def prepare(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    extras: Extras,
    chosen: frozenset[str],
    model_kwargs: dict[str, Any],
) -> Prepared:
    """Read what transformers prepared for a generation loop. ``ValueError`` names what cannot be done."""
    check_options(model, {**model_kwargs, "generation_config": config})
    vocabulary = Vocabulary.of(model)
    mask = model_kwargs.get("attention_mask")
    check_ids(input_ids, mask, vocabulary)
    _check_positions(model_kwargs.get("position_ids"), input_ids, mask)
    ends = [i for c in stopping_criteria if type(c) is EosTokenCriteria for i in c.eos_token_id.tolist()]
    grammar = compile_grammar(extras.multimodal_generation_mode or "text-only", vocabulary, ends)
    padding = torch.zeros(len(input_ids), dtype=torch.long) if mask is None else (mask == 0).sum(1).cpu()
    if grammar.mode in DRAWING_MODES:
        check_can_draw(model)
    if config.do_sample and config.top_p is not None:
        Sampling(top_p=config.top_p).checked()  # transformers takes a top_p above 1 for none, without a word
    plan = tell_apart(logits_processor, bool(config.do_sample), padding)
    image_base = plan.sampling
    if "top_k" not in chosen and grammar.draws:
        plan.check_default_top_k()
        if image_base.top_k == TRANSFORMERS_TOP_K:
            image_base = replace(image_base, top_k=0)
    text = plan.sampling.override(extras.text or {}, "text", bool(config.do_sample))
    image = image_base.override(extras.image or {}, "image", bool(config.do_sample))
    plan.check_modality("text", extras.text or {})
    plan.check_modality("image", extras.image or {})
    repeats = config.num_return_sequences or 1
    prompts = _prompt_ids(model, input_ids, model_kwargs, vocabulary, repeats)
    guidances = _guidances(plan, extras, grammar, len(prompts), repeats)
    seeds = _seeds(extras.seed, len(prompts), repeats)
    limits = _limits(prompts, input_ids.shape[1], config, stopping_criteria, grammar, vocabulary, chosen)
    replaced = (input_ids == vocabulary.placeholder).any(1).tolist()
    groups: list[Group] = []
    for ids, guidance, seed, limit, shows in zip(prompts, guidances, seeds, limits, replaced, strict=True):
        state = grammar.start(ids)
        _check_room(ids, limit, state, grammar)
        group = Group(len(groups), ids, limit, seed, guidance, state, tail=grammar.tail(len(ids), state))
        group.shown = (vocabulary.placeholder,) if shows else ()
        _check_streams(group, grammar, vocabulary)
        groups.append(group)
    native = (MaxLengthCriteria, EosTokenCriteria)
    stopping = StoppingCriteriaList(c for c in stopping_criteria if type(c) not in native)
    pad = config._pad_token_tensor
    return Prepared(
        model=model,
        vocabulary=vocabulary,
        grammar=grammar,
        groups=groups,
        prompts=input_ids.cpu(),
        pad=int(pad) if pad is not None else (vocabulary.pad if vocabulary.pad is not None else 0),
        text=text,
        image=image,
        plan=plan,
        stopping=stopping,
        config=config,
    )


def _prompt_ids(
    model: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    vocabulary: Vocabulary,
    repeats: int,
) -> list[list[int]]:
    """Every prompt without padding, pictures in place of placeholders; one list per sequence to generate."""
    single = input_ids[::repeats].cpu()
    pictures = None
    encoded = (model_kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:  # transformers 5.2x encodes pictures before it calls a plug, and repeats only features
        codes = encoded.image_tokens.view(-1, vocabulary.image_length)
        pictures = model.model.vocabulary_mapping.convert_img2bpe(codes).long()
    elif model_kwargs.get("pixel_values") is not None:
        pixels = model_kwargs["pixel_values"]
        pictures = encode_pictures(model, pixels if repeats == 1 else pixels[::repeats])
    filled = fill_placeholders(single, None if pictures is None else pictures.cpu(), vocabulary)
    mask = model_kwargs.get("attention_mask")
    if mask is None:
        rows = filled.tolist()
    else:
        rows = [ids[kept != 0].tolist() for ids, kept in zip(filled, mask[::repeats].cpu(), strict=True)]
    return [list(ids) for ids in rows for _ in range(repeats)]


def _guidances(plan: Plan, extras: Extras, grammar: Grammar, count: int, repeats: int) -> list[Guidance]:
    """Guidance of every sequence: ours if given, else transformers' two-way with its negative prompts."""
    if plan.guidance is not None:
        if extras.guidance is not None:
            raise ValueError(
                f"both guidance={extras.guidance!r} and guidance_scale={plan.guidance.guidance_scale} were given: "
                "give one of them"
            )
        everywhere = grammar.mode in ("text-only", "unrestricted")
        scale = float(plan.guidance.guidance_scale)
        context: dict[str, Any] = plan.guidance.unconditional_context
        negative = context["input_ids"]
        if negative is None:
            return [Guidance.two_way(scale, everywhere=everywhere)] * count
        mask = context["attention_mask"]
        mask = torch.ones_like(negative) if mask is None else mask
        if negative.ndim != 2 or len(negative) not in (1, count // repeats, count):
            raise ValueError(
                f"negative_prompt_ids is {tuple(negative.shape)}; it must be (1, length) or ({count // repeats}, "
                "length), one per prompt"
            )
        rows = [ids[kept != 0].tolist() for ids, kept in zip(negative.cpu(), mask.cpu(), strict=True)]
        each = count // len(rows)
        return [Guidance.two_way(scale, row, everywhere=everywhere) for row in rows for _ in range(each)]
    guidance = guidance_from(extras.guidance)
    if len(guidance.streams) > 1 and not guidance.everywhere and grammar.mode in ("text-only", "unrestricted"):
        if isinstance(extras.guidance, Guidance) and grammar.mode == "text-only":
            raise ValueError(
                "this Guidance acts inside pictures, and multimodal_generation_mode='text-only' draws none: build it "
                "with everywhere=True to guide text, or choose a mode that draws"
            )
        if not isinstance(extras.guidance, Guidance):
            guidance = replace(guidance, everywhere=True)
    return [guidance] * count


def _seeds(seed: int | Sequence[int] | None, count: int, repeats: int) -> list[int]:
    """One 64-bit seed per sequence: the request's own for its first, derived from it for the others."""
    requests = count // repeats
    if seed is None:
        first = torch.randint(-(2**63), 2**63 - 1, (requests,)).tolist()
    elif not isinstance(seed, Iterable):
        first = [operator.index(seed)] * requests
    else:
        first = [int(s) for s in seed]
        if len(first) != requests:
            raise ValueError(f"seed has {len(first)} values for {requests} prompts: give one number, or one per prompt")
    for i, value in enumerate(first):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"seed {value} of prompt {i} does not fit 64 bits")
    return [_derived(value, j) for value in first for j in range(repeats)]


def _derived(seed: int, j: int) -> int:
    """``seed`` itself for j = 0, else one of its descendants (the splitmix64 mix), as a signed 64-bit number."""
    if j == 0:
        return seed
    z = (seed + j * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


def _limits(
    prompts: list[list[int]],
    padded: int,
    config: GenerationConfig,
    stopping: StoppingCriteriaList,
    grammar: Grammar,
    vocabulary: Vocabulary,
    chosen: frozenset[str],
) -> list[int]:
    """Most ids of every sequence: the new ids that the call allows, and never more than the context.

    ``image-only`` without a length of its own allows one picture.
    """
    longest = min([config.max_length, *(c.max_length for c in stopping if isinstance(c, MaxLengthCriteria))])
    new = longest - padded
    if grammar.mode == "image-only" and not chosen & LENGTHS:
        return [min(len(p) + grammar.remaining(grammar.start(p)), vocabulary.context) for p in prompts]
    if any(len(p) + new > vocabulary.context for p in prompts):
        logger.warning_once(
            f"max_new_tokens={new} after a prompt of {max(map(len, prompts))} ids goes beyond the context of "
            f"{vocabulary.context}; decoding stops there"
        )
    return [min(len(p) + new, vocabulary.context) for p in prompts]


def _check_room(ids: list[int], limit: int, state: int, grammar: Grammar) -> None:
    """``ValueError`` if a mode that draws pictures cannot finish even one."""
    if grammar.mode not in DRAWING_MODES:
        return
    needed = grammar.remaining(state) or grammar.block_length
    if len(ids) + needed > limit:
        raise ValueError(
            f"no room for one picture: the prompt has {len(ids)} ids and may grow to {limit}, but the picture takes "
            f"{needed} more; set max_new_tokens to at least {needed}, or shorten the prompt if the context is full"
        )


def _check_streams(group: Group, grammar: Grammar, vocabulary: Vocabulary) -> None:
    """``ValueError`` if a stream that the call will need cannot be made: not in the middle of decoding."""
    for stream in group.guidance.streams:
        for i in stream.ids:
            if not 0 <= i < vocabulary.size:
                raise ValueError(
                    f"a stream of kind 'prompt' (or negative_prompt_ids) has id {i}, which is not an id of this "
                    f"checkpoint (0 to {vocabulary.size - 1})"
                )
    group.first_plan(grammar, vocabulary)


__all__ = [
    "MODES",
    "Extras",
    "Prepared",
    "check_options",
    "check_prompt",
    "chosen_options",
    "prepare",
]
