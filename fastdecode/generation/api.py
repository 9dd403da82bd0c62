"""`generate`: like ``model.generate``, and it draws pictures. transformers prepares a call; an engine decodes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from fastdecode.decoder import check_decodable, decoder_for
from fastdecode.decoder.wrappers import is_compiled, share_generation_config, unwrapped
from fastdecode.generation import option_kinds, prompt_checks, validation
from fastdecode.generation.calling import calling_generate, calling_own_generate
from fastdecode.generation.decoding import decode_all, decoder_of, progress_bar
from fastdecode.generation.explanation import Explanation
from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.generation.generation_mode import check_begins, only_codes, read_generation_mode
from fastdecode.generation.prepare import prepare
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.returned_cache import FIELD, returned_cache, wanted
from fastdecode.generation.streamers import text_only
from fastdecode.generation.unsupported import (
    HandedOver,
    Unsupported,
    check_fallback,
    check_hand_over,
    say_once,
)
from fastdecode.guidance import Guidance
from fastdecode.kv.page_pool import PAGE_SLOTS, PagePool
from fastdecode.models.families import family_of, supported, text_vocabulary_of, vocabulary_of
from fastdecode.models.pictures import check_pixels, pixel_tensor, reads_vectors
from fastdecode.models.vectors import VectorReader
from fastdecode.schedule import Schedule

Output = Tensor | GenerateDecoderOnlyOutput


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    multimodal_generation_mode: str | None = None,
    guidance: Guidance | Schedule | float | None = None,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    seed: int | Sequence[int] | None = None,
    progress: bool | None = None,
    deterministic: bool | None = None,
    kv_pool: PagePool | None = None,
    fallback: str | None = None,
    streamer: Any = None,
    **kwargs: Any,
) -> Output:
    """Generate text and pictures. Takes the arguments of ``model.generate``, and returns what it does.

    The model is a Chameleon, Anole, Lumina-mGPT, Janus, Emu3, Liquid or GLM-Image, one of a family that was registered,
    or one that writes text: any decoder-only model of transformers that keeps keys and values alone, and LLaVA. Of a
    model whose layers fastdecode does not know, the forward is called once with a few tokens, to see what it needs.

        inputs or input_ids   (batch, length) int64, left-padded with attention_mask (batch, length)
        pixel_values          (pictures, …) float, as the processor returns them: one for each <image> of the prompts
        returns               (batch * num_return_sequences, length + new) int64, padded at the end, or
                              GenerateDecoderOnlyOutput with return_dict_in_generate=True

    multimodal_generation_mode: "text-only" (default; same tokens as transformers), "image-only" (one picture),
    "interleaved-text-image", or "unrestricted".

    max_new_tokens: as in transformers, whose default is mostly 20. image-only has by itself the length of one picture,
    for each prompt that of its own; the other modes that draw need more than that: see the guide.

    guidance: a `Guidance`, or a number for two-way guidance, or a `Schedule` of such numbers; ``guidance_scale`` and
    ``negative_prompt_ids`` work as in transformers, whose Janus ignores both in text. In modes that draw, only pictures
    are guided; in the other modes, every token.

    text, image: sampling parameters of one modality (temperature, top_k, top_p, min_p, repetition_penalty,
    do_sample). They override those of the call, which set both. transformers' default top_k of 50 does not apply to
    pictures.

    generation_mode: of Janus, as its own ``generate`` takes it. "image" returns (batch * num_return_sequences, codes)
    int64: the codes of one whole picture, without the prompt. Prompts end in begin of image; one may already have the
    picture's first tokens, and their codes are returned too. max_new_tokens and max_length have no effect; stopping
    criteria, stop_strings and max_time are refused. Scores and logits are (batch * num_return_sequences, codes of the
    codebook) float32, one for each new code. ``multimodal_generation_mode="image-only"`` returns tokens, as for all
    models.

    image_size: (width, height) in pixels of the pictures, or one such pair per prompt, for models that draw several
    sizes. Default: the model's usual one, or what image_sizes says that the processor of Emu3 returns.

    seed: one per request, or one for all (equal requests then give equal tokens). A request's tokens do not depend on
    the other requests of the batch, except by the rounding of logits: see deterministic. Default: sampled from torch's
    generator. Further sequences of a request get seeds derived from its own. Without do_sample the likeliest token is
    taken, and the log says once that a seed has no effect.

    deterministic: a sequence's logits, and so its tokens, are bit for bit the same whatever runs beside it. Needs a
    model whose steps the C++ library can compute; prefill of long prompts takes about a tenth longer.

    kv_pool: a pool made by `new_pool`, which bounds the memory of keys and values. Sequences that do not fit at once
    take turns, unless a streamer, stopping criteria or logits processors need the whole batch. PoolExhausted (a
    RuntimeError) if the pool is too small for one sequence. Its pages are freed however the call ends. Calls in several
    threads that share a pool run one after another.

    fallback: what becomes of a call of text that fastdecode does not decode itself, such as one with beams, an
    assistant model, or a cache of the caller. "transformers" (default): transformers' own loop decodes it, which is
    logged once per reason. "error": it is refused with a ValueError. It is always refused in modes that draw, and with
    options that only fastdecode has (guidance, text, image, image_size, seed, progress, deterministic, kv_pool).
    `explain` tells who decodes a call.

    All these options except kv_pool, and generation_mode too, may be attributes of the generation_config, or of
    ``model.generation_config``, as in ``GenerationConfig(seed=7)``. An argument of the call goes before its
    generation_config, and that before the model's. None means not given.

    return_dict_in_generate: text also returns the cache of keys and values, as transformers does, which takes one more
    forward of the model over the result; not with use_cache=False or a kv_pool.

    Without any prompt, text begins with the beginning of sequence. A prompt that is padded on the right is handed to
    transformers in text-only mode, which continues it after its padding; in the other modes padding is removed.

    progress: show a bar. streamer, stop_strings (with tokenizer) and other options: as in transformers. A
    `TextStreamer` gets only text tokens; other streamers get all tokens, inside pictures one row of the picture at a
    time.

    Raises TypeError for an unsupported model; ValueError that names a wrong or unsupported option, before any work is
    done; RuntimeError if the model's logits are NaN.
    """
    given = {name: value for name, value in locals().items() if name in GenerateOptions.__dataclass_fields__}
    options = {**kwargs, "generation_config": generation_config}
    option_kinds.check_streamer(streamer)

    def hand_over(reason: str) -> Any:
        say_once(reason)
        handed = options if streamer is None else {**options, "streamer": streamer}
        if handed.get("custom_generate") is custom_generate:
            handed = {name: value for name, value in handed.items() if name != "custom_generate"}
        own = model if hasattr(type(model), "generate") else unwrapped(model)  # torch.compile's wrapper has none
        return type(own).generate(own, inputs, **handed)

    def decode(call: Prepared, extras: GenerateOptions) -> Output:
        if streamer is not None:
            streamer.put(call.prompts)  # not by transformers, which would do so before a call is handed over to it
        return _decoded(call, streamer, extras)

    return _through_transformers(model, inputs, options, given, decode, hand_over)


def _through_transformers(
    model: Any,
    inputs: Tensor | None,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    run: Callable[[Prepared, GenerateOptions], Any],
    hand_over: Callable[[str], Any] | None,
) -> Any:
    """Check a call of `generate`, let transformers prepare it, and return the result of ``run``. For a call that
    fastdecode does not decode, return the result of ``hand_over`` with the reason; without it, refuse the call.

        options   those of transformers       given   fastdecode's own
    """
    config, options, given = options.get("generation_config"), dict(options), dict(given)
    validation.check_config(config)
    option_kinds.check_is_model(model)
    codes = read_generation_mode(model, options, given)
    extras = GenerateOptions.found(model, config, given)
    fallback = "transformers" if extras.fallback is None else extras.fallback
    check_fallback(fallback)
    try:
        inside = check_model(model)
        if hand_over is not None:  # else the caller has a decoder of this model
            _check_layers(inside)
        return _prepared(inside, inputs, options, extras, codes, run)
    except Unsupported as error:
        if hand_over is None:
            raise error.refused(extras.text_only) from None
        check_hand_over(error, fallback, extras.text_only, extras.lost_elsewhere)
        prompt_checks.check_read_elsewhere(model, inputs if inputs is not None else options.get("input_ids"), error)
        reason = error.reason
    return hand_over(reason)


def _prepared(
    model: Any,
    inputs: Tensor | None,
    options: dict[str, Any],
    extras: GenerateOptions,
    codes: bool,
    run: Callable[[Prepared, GenerateOptions], Any],
) -> Any:
    """As `_through_transformers`; `Unsupported` for a call that fastdecode does not decode. ``codes``: it wants the
    codes of a picture alone.
    """
    if options.get("custom_generate") is custom_generate:
        del options["custom_generate"]
    validation.check_names(model, options)
    option_kinds.check_call(model, inputs, options)
    validation.check_options(model, options)
    prompt = inputs if inputs is not None else options.get("input_ids")
    vocabulary = text_vocabulary_of(model) if extras.text_only else vocabulary_of(model)
    prompt_checks.check_prompt(model, vocabulary, prompt, options, text_only=extras.text_only)
    vectors = None
    if options.get("pixel_values") is None:
        options.pop("pixel_values", None)  # transformers would read None as pictures
    elif reads_vectors(model):  # not by transformers, which would call its encoder before fastdecode checks the call
        pixels = pixel_tensor(model, options.pop("pixel_values"))
        vectors = VectorReader(model, pixels, options.pop("image_sizes", None))
    else:
        options["pixel_values"] = check_pixels(model, options["pixel_values"])
    sizes = None if "pixel_values" in options or extras.text_only else options.pop("image_sizes", None)
    allowed = options.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        options["prefix_allowed_tokens_fn"] = option_kinds.checked_prefix(allowed, model)
    validation.read_stop_strings(model, options)
    chosen = validation.chosen_options(model, options)
    if codes:
        chosen -= validation.LENGTHS
    if extras.multimodal_generation_mode == "image-only" and not chosen & validation.LENGTHS:
        # transformers warns without a length; each picture has its own (see `fastdecode.generation.prepare`)
        validation.set_option(options, "max_new_tokens", vocabulary.image_length + 2)

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        call = (input_ids, logits_processor, stopping_criteria, generation_config)
        prepared = prepare(model, vocabulary, *call, extras, chosen, model_kwargs, sizes, vectors)
        if codes:
            check_begins(prepared)
            prepared.codes = True
        return run(prepared, extras)

    return GenerationMixin.generate(model, inputs, custom_generate=decode, **options)


def check_model(model: Any) -> Any:
    """The model inside its wrappers, with their generation_config. TypeError for a model of another class;
    `Unsupported` for adapters, or a wrapper, that fastdecode cannot decode.
    """
    try:
        inside = supported(model)
    except ValueError as error:
        reason, _, advice = str(error).partition("; ")
        raise Unsupported(reason, advice) from None
    share_generation_config(model, inside)
    return inside


def _check_layers(model: Any) -> None:
    """`Unsupported` if no decoder can decode the layers of ``model``, which is inside no wrapper."""
    try:
        check_decodable(model)
    except ValueError as error:
        reason, _, advice = str(error).rpartition(": ")
        raise Unsupported(reason, advice) from None


def prepare_call(model: Any, inputs: Tensor | None, options: Mapping[str, Any], given: Mapping[str, Any]) -> Prepared:
    """Check and prepare a call of `generate`, without decoding it. ``ValueError`` where `generate` hands it over."""
    call: Prepared = _through_transformers(model, inputs, options, given, lambda call, extras: call, None)
    return call


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    multimodal_generation_mode: str | None = None,
    guidance: Guidance | Schedule | float | None = None,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    seed: int | Sequence[int] | None = None,
    progress: bool | None = None,
    deterministic: bool | None = None,
    kv_pool: PagePool | None = None,
    **model_kwargs: Any,
) -> Output:
    """The custom generation loop for transformers: ``model.generate(**inputs,
    custom_generate=fastdecode.custom_generate, …)``.

    Takes the options of `generate` as further keyword arguments of ``model.generate`` and returns the same tokens.
    transformers does not pass the streamer on, so it is read from the calling frame. The tokenizer cannot be read
    there, so stop_strings need `generate`.

    A class with a ``generate`` of its own, as Janus has, drops options and adds others. There all options are read from
    the frame of its caller, and what the class made of them is not used. Janus refuses generation_mode="image" together
    with a custom loop: give multimodal_generation_mode="image-only", or call `generate`. It also refuses prompts of 20
    tokens or more without max_new_tokens.
    """
    given = {name: value for name, value in locals().items() if name in GenerateOptions.__dataclass_fields__}
    extras = GenerateOptions.found(model, generation_config, given)
    call = calling_generate()
    synced = synced_gpus or call.get("synced_gpus")
    try:
        model = check_model(model)
        _check_layers(model)
        own = calling_own_generate(model) if family_of(model).own_generate else None
        if own is not None:
            return _as_generate(model, own, given)
        option_kinds.check_call(model, None, {"generation_config": generation_config, **call})
        vectors = None
        if call.get("pixel_values") is not None:
            pixels = pixel_tensor(model, call["pixel_values"])
            if reads_vectors(model):  # transformers may have encoded them already
                prompt_checks.check_vectors(model, pixels, extras.text_only)
                vectors = VectorReader(model, pixels, call.get("image_sizes"))
        validation.check_options(model, {"generation_config": generation_config, **call, "synced_gpus": synced})
        chosen = validation.chosen_options(model, call or generation_config.to_dict())
        prepared_call = (input_ids, logits_processor, stopping_criteria, generation_config)
        sizes = None if call.get("pixel_values") is not None else call.get("image_sizes")
        vocabulary = text_vocabulary_of(model) if extras.text_only else vocabulary_of(model)
        prepared = prepare(model, vocabulary, *prepared_call, extras, chosen, model_kwargs, sizes, vectors)
    except Unsupported as error:
        raise error.refused(text_only=extras.text_only) from None
    return decode_call(prepared, call.get("streamer"), bool(extras.progress))


def _as_generate(model: Any, options: dict[str, Any], given: dict[str, Any]) -> Output:
    """What `generate` returns for the same ``options``, of which ``given`` are fastdecode's own. Nothing is handed
    over, and transformers has told the streamer the prompt.
    """
    options = {name: value for name, value in options.items() if name not in given and name != "custom_generate"}
    streamer = options.pop("streamer", None)
    inputs = options.pop("inputs", None)

    def decode(call: Prepared, extras: GenerateOptions) -> Output:
        return _decoded(call, streamer, extras)

    output: Output = _through_transformers(model, inputs, options, given, decode, None)
    return output


def _decoded(call: Prepared, streamer: Any, extras: GenerateOptions) -> Output:
    output = decode_call(call, streamer, bool(extras.progress))
    found: Output = only_codes(output, call) if call.codes else output
    return found


def decode_call(call: Prepared, streamer: Any, progress: bool) -> Output:
    """Decode a prepared call on a new engine."""
    call.warn()
    decoder = decoder_of(call)
    requests = call.requests(
        None if streamer is None else text_only(streamer, call.vocabulary), listened=streamer is not None
    )
    with (
        progress_bar(requests) if progress else nullcontext(),
        call.pool.lock if call.pool is not None else nullcontext(),
    ):
        decode_all(decoder, requests, call.pool)
    if streamer is not None:
        streamer.end()
    output: Any = call.output()
    if wanted(call):
        output[FIELD] = returned_cache(call, output.sequences)
    found: Output = output
    return found


def explain(model: Any, inputs: Tensor | None = None, **options: Any) -> Explanation | HandedOver:
    """Describe what `generate` would do with the same arguments, without decoding: print the result.

    It names the backend, the streams of every sequence with their weights, what the grammar allows, the sampling
    parameters of both modalities, the decoder, and why no faster path is used; or that transformers' own loop decodes
    the call, and why. Raises what `generate` would raise.
    """
    given = {name: options.pop(name, None) for name in GenerateOptions.__dataclass_fields__}
    option_kinds.check_streamer(options.pop("streamer", None))

    def describe(call: Prepared, extras: GenerateOptions) -> Explanation:
        return Explanation.of(call, decoder_of(call), is_compiled(model))

    with torch.random.fork_rng(devices=[]):  # a seed is sampled from torch's generator
        found: Explanation | HandedOver = _through_transformers(model, inputs, options, given, describe, HandedOver)
    return found


def new_pool(model: Any, pages: int | None = None, page_slots: int = PAGE_SLOTS) -> PagePool:
    """A pool for the keys and values of ``model``, for `generate`'s ``kv_pool``: at most ``pages`` pages of
    ``page_slots`` tokens each; None: as many as needed.

    Raises TypeError for an unsupported model, ValueError for sizes below 1.
    """
    return decoder_for(supported(model)).new_pool(pages, page_slots)
