"""Turns a call that transformers prepared into requests of an engine."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.utils import logging

from fastdecode.decoder.classes import known_classes, text_config
from fastdecode.engine.callbacks import Recorder
from fastdecode.engine.parameters import Sampling
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.generation.logits_processors import TRANSFORMERS_TOP_K, SplitProcessors, split_processors
from fastdecode.generation.picture_sizes import sized_vocabularies
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.prompt_checks import check_ids, check_positions, check_right_padding
from fastdecode.generation.room_checks import check_begun, check_room, check_stream_room, check_stream_tokens
from fastdecode.generation.unsupported import Unsupported
from fastdecode.generation.validation import DRAWING_MODES, LENGTHS, check_forward, check_options
from fastdecode.grammar import Grammar, compile_grammar
from fastdecode.guidance import UNCONDITIONAL, Guidance, guidance_from, usual_stream
from fastdecode.models.families import family_of
from fastdecode.models.pictures import (
    check_can_draw,
    encoded_pictures,
    fill_placeholders,
    placeholder_of,
    read_pictures,
)
from fastdecode.models.vectors import VectorReader, fill_vectors
from fastdecode.vocabulary import Vocabulary

logger = logging.get_logger(__name__)


def prepare(
    model: Any,
    vocabulary: Vocabulary,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    extras: GenerateOptions,
    chosen: frozenset[str],
    model_kwargs: dict[str, Any],
    image_sizes: Any = None,
    vectors: VectorReader | None = None,
) -> Prepared:
    """Read what transformers prepared for a generation loop. `Unsupported` names what fastdecode does not decode and
    transformers would; ``ValueError`` what is wrong. ``vocabulary``: the model's, for a picture of its usual size.
    ``image_sizes``: what the call gave beside a prompt without pixels (see `sized_vocabularies`). ``vectors``: those of
    the prompts' pictures, for models that read vectors.
    """
    check_options(model, {**model_kwargs, "generation_config": config}, made_by_transformers=True)
    family, repeats, model_kwargs = family_of(model), config.num_return_sequences or 1, dict(model_kwargs)
    told_sizes = None if family.told_sizes is None else family.told_sizes(model, input_ids, model_kwargs, repeats)
    check_forward(model_kwargs)
    mask = model_kwargs.get("attention_mask")
    check_ids(input_ids, mask, vocabulary)
    if extras.text_only:
        check_right_padding(mask)
    check_positions(model_kwargs.get("position_ids"), input_ids, mask)
    ends = [i for c in stopping_criteria if type(c) is EosTokenCriteria for i in c.eos_token_id.tolist()]
    mode = extras.multimodal_generation_mode or "text-only"
    compile_grammar(mode, vocabulary, ends)  # what it refuses is said before anything about sizes
    tell = family.size_in_prompt if mode != "text-only" else None
    told = [None if tell is None else tell(model, ids) for ids in input_ids[::repeats].tolist()]
    sized = sized_vocabularies(vocabulary, extras.image_size, image_sizes, told, draws=mode != "text-only")
    vocabularies = [v for v in sized for _ in range(repeats)]
    grammars = [compile_grammar(mode, v, ends) for v in vocabularies]
    grammar, vocabulary = grammars[0], vocabularies[0]
    padding = torch.zeros(len(input_ids), dtype=torch.long) if mask is None else (mask == 0).sum(1).cpu()
    if grammar.mode in DRAWING_MODES:
        check_can_draw(model)
    if config.do_sample and config.top_p is not None:
        Sampling(top_p=config.top_p).checked()  # transformers silently ignores a top_p above 1
    processors = split_processors(logits_processor, bool(config.do_sample), padding, vocab_size=vocabulary.size)
    shortest = min(g.block_length for g in grammars)
    if grammar.mode == "image-only" and (config.min_new_tokens or 0) > shortest:
        raise ValueError(
            f"min_new_tokens={config.min_new_tokens}: multimodal_generation_mode='image-only' ends after a picture of "
            f"{shortest} tokens; leave it out"
            + ("" if vocabulary.draws_alone else ", or choose 'interleaved-text-image'")
        )
    image_base = processors.sampling
    if "top_k" not in chosen and grammar.draws:
        processors.check_default_top_k()
        if image_base.top_k == TRANSFORMERS_TOP_K:
            image_base = replace(image_base, top_k=0)
    text = processors.sampling.override(extras.text or {}, "text", bool(config.do_sample))
    image = image_base.override(extras.image or {}, "image", bool(config.do_sample))
    processors.check_modality("text", extras.text or {})
    processors.check_modality("image", extras.image or {})
    guidances = _guidances(processors, extras, grammar, len(input_ids), repeats)
    if family.told_sizes is not None and any(len(guidance.streams) > 1 for guidance in guidances):
        raise ValueError(f"{family.name} draws without guidance: leave it out")
    seeds = _seeds(extras.seed, len(input_ids), repeats)
    for guidance, vocabulary in zip(guidances, vocabularies, strict=True):
        check_stream_tokens(guidance, vocabulary)
    how = bool(extras.deterministic)
    prompts, by_number = _prompt_ids(model, input_ids, model_kwargs, vocabularies[0], repeats, vectors, how)
    limits = _limits(prompts, input_ids.shape[1], config, stopping_criteria, grammars, chosen)
    placeholder = vocabulary.placeholder if vectors is None else placeholder_of(model)
    replaced = torch.eq(input_ids, -1 if placeholder is None else placeholder).any(1).tolist()
    sequences: list[Sequence] = []
    for number, ids in enumerate(prompts):
        guidance, limit = guidances[number], limits[number]
        grammar, vocabulary = grammars[number], vocabularies[number]
        check_begun(ids, vocabulary, grammar)
        check_room(ids, limit, grammar.start(ids), grammar)
        s = Sequence(
            ids,
            limit,
            seeds[number],
            guidance,
            vocabulary,
            grammar.mode,
            frozenset(ends),
            text=text,
            image=image,
            rules=processors.rules.shifted(int(padding[number])),
            also_seen=(placeholder,) if replaced[number] and placeholder is not None else (),
            vectors={token: by_number[token] for token in ids if token < 0},
            name=f"sequence {number}",
        )
        s.check_ahead()
        check_stream_room(s)
        sequences.append(s)
    native = (MaxLengthCriteria, EosTokenCriteria)
    stopping = StoppingCriteriaList(c for c in stopping_criteria if type(c) not in native)
    pad = config._pad_token_tensor
    return Prepared(
        model=model,
        vocabulary=vocabularies[0],
        grammar=grammars[0],
        sequences=sequences,
        prompts=input_ids.cpu(),
        mask=mask,
        device=input_ids.device,
        pad=int(pad) if pad is not None else (vocabulary.pad if vocabulary.pad is not None else 0),
        text=text,
        image=image,
        processors=processors,
        stopping=stopping,
        config=config,
        deterministic=bool(extras.deterministic),
        pool=extras.kv_pool,
        recorder=Recorder(*([] if _keeps(config, what) else None for what in ("scores", "logits"))),
        seeded=extras.seed is not None,
        told_sizes=told_sizes,
        text_given=any(value is not None for value in (extras.text or {}).values()),
        columns=columns_of(model, grammars[0], prompts),
    )


def columns_of(model: Any, grammar: Grammar, prompts: list[list[int]]) -> int:
    """How many tokens the scores of a call are for: all, but in text only those of the language model, as in
    transformers, where image tokens have embeddings and a head of their own. Prompts with such tokens transformers
    cannot decode; their scores are for all tokens, so that each token of the prompt has one.
    """
    vocabulary = grammar.vocabulary
    if known_classes(model) is None:
        return vocabulary.size
    known = int(text_config(model).vocab_size)
    alone = not grammar.draws and vocabulary.bans_images and max(map(max, prompts)) < known
    return min(known, vocabulary.size) if alone else vocabulary.size


def _keeps(config: GenerationConfig, what: str) -> bool:
    """Whether the call returns the ``"scores"`` or the ``"logits"`` of every step."""
    return bool(config.return_dict_in_generate and getattr(config, f"output_{what}"))


def _prompt_ids(
    model: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    vocabulary: Vocabulary,
    repeats: int,
    vectors: VectorReader | None,
    deterministic: bool,
) -> tuple[list[list[int]], dict[int, Tensor]]:
    """The tokens of every prompt, without padding, with pictures in place of placeholders; one list per sequence. Of
    ``vectors`` the numbers stand there, and the vectors are returned by their numbers.
    """
    single = input_ids[::repeats].cpu()
    by_number: dict[int, Tensor] = {}
    if vectors is not None:
        placeholder = placeholder_of(model)
        if torch.eq(single[:, -1], -1 if placeholder is None else placeholder).any():
            raise Unsupported("a prompt that ends in a picture is not supported by fastdecode", "let text follow it")
        filled, by_number = fill_vectors(single, vectors(deterministic), placeholder)
    else:
        filled = fill_placeholders(single, _pictures(model, model_kwargs, repeats), vocabulary)
    mask = model_kwargs.get("attention_mask")
    if mask is None:
        rows = filled.tolist()
    else:
        rows = [ids[kept != 0].tolist() for ids, kept in zip(filled, mask[::repeats].cpu(), strict=True)]
    return [list(ids) for ids in rows for _ in range(repeats)], by_number


def _pictures(model: Any, model_kwargs: dict[str, Any], repeats: int) -> list[Tensor]:
    """The tokens of the pictures of all prompts, in order."""
    encoded = (model_kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:  # transformers 5.2x encodes pictures before it calls us, and repeats only features
        return [picture.cpu() for picture in encoded_pictures(model, encoded)]
    if model_kwargs.get("pixel_values") is None:
        return []
    pixels, sizes = model_kwargs["pixel_values"], model_kwargs.get("image_sizes")
    found = read_pictures(model, pixels[::repeats], None if sizes is None else sizes[::repeats])
    return [picture.cpu() for picture in found]


def _guidances(
    processors: SplitProcessors, extras: GenerateOptions, grammar: Grammar, count: int, repeats: int
) -> list[Guidance]:
    """The guidance of every sequence: ours if given, else transformers' two-way guidance with its negative prompts."""
    if processors.guidance is not None:
        if extras.guidance is not None:
            raise ValueError(
                f"both guidance={extras.guidance!r} and guidance_scale={processors.guidance.guidance_scale} were "
                "given: give one of them"
            )
        everywhere = grammar.mode in ("text-only", "unrestricted")
        scale = float(processors.guidance.guidance_scale)
        context: dict[str, Any] = processors.guidance.unconditional_context
        negative = context["input_ids"]
        if negative is None:
            return [_with_usual_stream(Guidance.two_way(scale, everywhere=everywhere), grammar)] * count
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
    if not isinstance(extras.guidance, Guidance):
        guidance = _with_usual_stream(guidance, grammar)
    if len(guidance.streams) > 1 and not guidance.everywhere and grammar.mode in ("text-only", "unrestricted"):
        if isinstance(extras.guidance, Guidance) and grammar.mode == "text-only":
            raise ValueError(
                "this Guidance acts inside pictures, and multimodal_generation_mode='text-only' draws none: build it "
                "with everywhere=True to guide text, or choose a mode that draws"
            )
        if not isinstance(extras.guidance, Guidance):
            guidance = replace(guidance, everywhere=True)
    return [guidance] * count


def _with_usual_stream(guidance: Guidance, grammar: Grammar) -> Guidance:
    """Guidance that only has a scale, with the stream that the family takes for the unconditional one."""
    if not grammar.draws:
        return guidance
    usual = usual_stream(grammar.vocabulary)
    return replace(guidance, streams=tuple(usual if s == UNCONDITIONAL else s for s in guidance.streams))


def _seeds(seed: int | Iterable[int] | None, count: int, repeats: int) -> list[int]:
    """One 64-bit seed per sequence: a request's first sequence gets its seed, the others get derived ones."""
    requests = count // repeats
    if seed is None:
        first = torch.randint(-(2**63), 2**63 - 1, (requests,)).tolist()
    else:
        given: Any = seed if isinstance(seed, Iterable) and getattr(seed, "ndim", 1) == 1 else [seed] * requests
        try:
            first = [operator.index(s) for s in given]
        except (TypeError, RuntimeError):  # of a tensor without values
            raise ValueError(f"seed={seed!r}: it must be an integer, or one integer per prompt") from None
        if len(first) != requests:
            prompts = "1 prompt" if requests == 1 else f"{requests} prompts"
            more = f"; repeat the prompt {len(first)} times to give each its seed" if requests == 1 < len(first) else ""
            raise ValueError(f"seed has {len(first)} values for {prompts}: give one number, or one per prompt{more}")
    for i, value in enumerate(first):
        if not -(2**63) <= value < 2**63:
            shown = value if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
            raise ValueError(f"seed {shown} of prompt {i} does not fit 64 bits: give one from -2**63 to 2**63 - 1")
    return [_derived(value, j) for value in first for j in range(repeats)]


def _derived(seed: int, j: int) -> int:
    """``seed`` for j = 0, else a seed derived from it (by the splitmix64 mix), as a signed 64-bit number."""
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
    grammars: list[Grammar],
    chosen: frozenset[str],
) -> list[int]:
    """The maximum length of every sequence: the prompt and the new tokens that the call allows, at most the context.

    ``image-only`` without a given length allows each sequence its own picture.
    """
    longest = min([config.max_length, *(c.max_length for c in stopping if isinstance(c, MaxLengthCriteria))])
    new = max(1, longest - padded)  # as transformers: a criterion is asked after the first token
    vocabulary = grammars[0].vocabulary
    if grammars[0].mode == "image-only" and not chosen & LENGTHS:
        pairs = zip(prompts, grammars, strict=True)
        return [min(len(p) + g.remaining(g.start(p)), vocabulary.context) for p, g in pairs]
    if grammars[0].mode != "image-only" and any(len(p) + new > vocabulary.context for p in prompts):
        logger.warning_once(
            f"max_new_tokens={new} after a prompt of {max(map(len, prompts))} tokens goes beyond the context of "
            f"{vocabulary.context}; decoding stops there"
        )
    return [min(len(p) + new, vocabulary.context) for p in prompts]
