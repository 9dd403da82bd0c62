"""From a call that transformers prepared to the groups of a decode loop."""

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

from fastdecode.decoder import Decoder
from fastdecode.engine.loop import DecodeLoop
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.sampler import Recorder, Sampler
from fastdecode.engine.sequence import Group
from fastdecode.generation.logits_processors import TRANSFORMERS_TOP_K, SplitProcessors, split_processors
from fastdecode.generation.validation import (
    DRAWING_MODES,
    LENGTHS,
    check_ids,
    check_memory,
    check_options,
    check_positions,
    check_room,
    check_streams,
)
from fastdecode.grammar import Grammar, compile_grammar
from fastdecode.guidance import Guidance, guidance_from
from fastdecode.kv.page_pool import PagePool
from fastdecode.models.chameleon import (
    Vocabulary,
    check_can_draw,
    encode_pictures,
    fill_placeholders,
)

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `generate` that transformers does not know; see there."""

    multimodal_generation_mode: str | None = None
    guidance: Guidance | float | None = None
    text: Mapping[str, Any] | None = None
    image: Mapping[str, Any] | None = None
    seed: int | Sequence[int] | None = None
    progress: bool = False
    deterministic: bool = False
    kv_pool: PagePool | None = None


@dataclass
class Prepared:
    """A call, ready to decode."""

    model: Any
    vocabulary: Vocabulary
    grammar: Grammar
    groups: list[Group]
    prompts: Tensor
    device: torch.device
    pad: int
    text: Sampling
    image: Sampling
    plan: SplitProcessors
    stopping: StoppingCriteriaList
    config: GenerationConfig
    decoder: Decoder
    pool: PagePool | None

    @property
    def normalise(self) -> bool:
        """Whether streams are normalised before they are mixed: as transformers' guidance of text does."""
        return self.plan.guidance is not None and all(g.guidance.everywhere for g in self.groups)

    def keeps(self, what: str) -> bool:
        """Whether the call wants the ``"scores"`` or the ``"logits"`` of every step returned."""
        return bool(self.config.return_dict_in_generate and getattr(self.config, f"output_{what}"))

    def loop(self, after_step: Callable[[Tensor], None] | None = None) -> DecodeLoop:
        recorder = Recorder(*([] if self.keeps(what) else None for what in ("scores", "logits")))
        drawer = Sampler(
            self.decoder,
            self.grammar,
            self.vocabulary,
            self.groups,
            self.text,
            self.image,
            self.plan.unfused,
            recorder,
            self.normalise,
        )
        where = (self.prompts, self.pad, self.stopping, after_step, self.pool)
        return DecodeLoop(drawer, self.vocabulary, self.groups, *where)


def prepare(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    extras: GenerateOptions,
    chosen: frozenset[str],
    model_kwargs: dict[str, Any],
) -> Prepared:
    """Read what transformers prepared for a generation loop. ``ValueError`` names what cannot be done."""
    check_options(model, {**model_kwargs, "generation_config": config})
    vocabulary = Vocabulary.of(model)
    mask = model_kwargs.get("attention_mask")
    check_ids(input_ids, mask, vocabulary)
    check_positions(model_kwargs.get("position_ids"), input_ids, mask)
    ends = [i for c in stopping_criteria if type(c) is EosTokenCriteria for i in c.eos_token_id.tolist()]
    grammar = compile_grammar(extras.multimodal_generation_mode or "text-only", vocabulary, ends)
    padding = torch.zeros(len(input_ids), dtype=torch.long) if mask is None else (mask == 0).sum(1).cpu()
    if grammar.mode in DRAWING_MODES:
        check_can_draw(model)
    if config.do_sample and config.top_p is not None:
        Sampling(top_p=config.top_p).checked()  # transformers takes a top_p above 1 for none, without a word
    plan = split_processors(logits_processor, bool(config.do_sample), padding)
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
        check_room(ids, limit, state, grammar)
        group = Group(len(groups), ids, limit, seed, guidance, state, tail=grammar.tail(len(ids), state))
        group.shown = (vocabulary.placeholder,) if shows else ()
        check_streams(group, grammar, vocabulary)
        groups.append(group)
    decoder = Decoder(model, bool(extras.deterministic))
    check_memory(decoder, groups, grammar, extras.kv_pool)
    native = (MaxLengthCriteria, EosTokenCriteria)
    stopping = StoppingCriteriaList(c for c in stopping_criteria if type(c) not in native)
    pad = config._pad_token_tensor
    return Prepared(
        model=model,
        vocabulary=vocabulary,
        grammar=grammar,
        groups=groups,
        prompts=input_ids.cpu(),
        device=input_ids.device,
        pad=int(pad) if pad is not None else (vocabulary.pad if vocabulary.pad is not None else 0),
        text=text,
        image=image,
        plan=plan,
        stopping=stopping,
        config=config,
        decoder=decoder,
        pool=extras.kv_pool,
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


def _guidances(
    plan: SplitProcessors, extras: GenerateOptions, grammar: Grammar, count: int, repeats: int
) -> list[Guidance]:
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
    else:
        try:
            first = [operator.index(s) for s in (seed if isinstance(seed, Iterable) else [seed] * requests)]
        except TypeError:
            raise ValueError(f"seed={seed!r}: it must be an integer, or one integer per prompt") from None
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
