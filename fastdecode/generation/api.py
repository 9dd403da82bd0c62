"""`generate`: like ``model.generate``, and it draws pictures. transformers prepares a call; an engine decodes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput, StopStringCriteria

from fastdecode.decoder import Decoder
from fastdecode.engine.core import EngineCore
from fastdecode.engine.request import Request
from fastdecode.generation import option_kinds, prepare, validation
from fastdecode.generation.explanation import Explanation
from fastdecode.generation.streamers import text_only
from fastdecode.guidance import Guidance
from fastdecode.kv.page_pool import PAGE_SLOTS, PagePool
from fastdecode.models.chameleon import Vocabulary, check_family, check_pixels

Output = Tensor | GenerateDecoderOnlyOutput


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    multimodal_generation_mode: str | None = None,
    guidance: Guidance | float | None = None,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    progress: bool = False,
    deterministic: bool = False,
    kv_pool: PagePool | None = None,
    streamer: Any = None,
    **kwargs: Any,
) -> Output:
    """Generate text and pictures with a Chameleon. Takes the arguments of ``model.generate``, and returns what it does.

        inputs or input_ids   (batch, length) int64, left-padded with attention_mask (batch, length)
        pixel_values          (pictures, 3, H, W) float: one for each <image> of the prompts
        returns               (batch * num_return_sequences, length + new) int64, padded at the end, or
                              GenerateDecoderOnlyOutput with return_dict_in_generate=True

    multimodal_generation_mode: "text-only" (default; same tokens as transformers), "image-only" (one picture),
    "interleaved-text-image", or "unrestricted".

    guidance: a `Guidance`, or a number for two-way guidance; ``guidance_scale`` and ``negative_prompt_ids`` work as in
    transformers. In modes that draw, only pictures are guided; in the other modes, every token.

    text, image: sampling parameters of one modality (temperature, top_k, top_p, min_p, repetition_penalty,
    do_sample). They override those of the call, which set both. transformers' default top_k of 50 does not apply to
    pictures.

    seed: one per request, or one for all (equal requests then give equal tokens). A request's tokens do not depend on
    the other requests of the batch, except by the rounding of logits: see deterministic. Default: sampled from torch's
    generator. Further sequences of a request get seeds derived from its own.

    deterministic: a sequence's logits, and so its tokens, are bit for bit the same whatever runs beside it. Needs a
    model whose steps the C++ library can compute; prefill of long prompts takes about a tenth longer.

    kv_pool: a pool made by `new_pool`, which bounds the memory of keys and values. Sequences that do not fit at once
    take turns, unless a streamer, stopping criteria or logits processors need the whole batch. PoolExhausted (a
    RuntimeError) if the pool is too small for one sequence. Its pages are freed however the call ends. Calls in several
    threads that share a pool run one after another.

    progress: show a bar. streamer, stop_strings (with tokenizer) and other options: as in transformers. A
    `TextStreamer` gets only text tokens; other streamers get all tokens, inside pictures one row of the picture at a
    time.

    Raises TypeError for an unsupported model; ValueError that names a wrong or unsupported option, before any work is
    done; RuntimeError if the model's logits are NaN.
    """
    extras = prepare.GenerateOptions(
        multimodal_generation_mode, guidance, text, image, seed, progress, deterministic, kv_pool
    )
    options = {**kwargs, "generation_config": generation_config}
    if streamer is not None:
        options["streamer"] = streamer
    return _through_transformers(model, inputs, options, extras, partial(_decode, streamer=streamer, progress=progress))


def _through_transformers(
    model: Any,
    inputs: Tensor | None,
    options: dict[str, Any],
    extras: prepare.GenerateOptions,
    run: Callable[[prepare.Prepared], Any],
) -> Any:
    """Check a call of `generate`, let transformers prepare it, and return the result of ``run``."""
    check_family(model)
    if options.pop("custom_generate", custom_generate) is not custom_generate:
        raise ValueError("custom_generate asks for another decoding loop; call fastdecode.disable(model) first")
    option_kinds.check_call(model, inputs, options)
    validation.check_options(model, options)
    validation.check_prompt(model, inputs if inputs is not None else options.get("input_ids"), options)
    if options.get("pixel_values") is not None:
        options["pixel_values"] = check_pixels(model, options["pixel_values"])
    tokenizer = options.pop("tokenizer", None)
    stop_strings = validation.option(model, options, "stop_strings")
    if stop_strings is not None:  # transformers does not pass the tokenizer to a custom loop
        if tokenizer is None:
            raise ValueError("stop_strings needs tokenizer=…, to know how tokens spell them")
        more = StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings)
        options["stopping_criteria"] = StoppingCriteriaList([*(options.get("stopping_criteria") or []), more])
        options["stop_strings"] = None
    validation.set_default_length(model, extras.multimodal_generation_mode, options)
    chosen = validation.chosen_options(model, options)

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
        return run(prepare.prepare(model, *call, extras, chosen, model_kwargs))

    return GenerationMixin.generate(model, inputs, custom_generate=decode, **options)


def prepare_call(model: Any, inputs: Tensor | None, options: dict[str, Any], extras: prepare.GenerateOptions) -> Any:
    """Check and prepare a call of `generate`, without decoding it."""
    return _through_transformers(model, inputs, options, extras, lambda call: call)


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    multimodal_generation_mode: str | None = None,
    guidance: Guidance | float | None = None,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    progress: bool = False,
    deterministic: bool = False,
    kv_pool: PagePool | None = None,
    **model_kwargs: Any,
) -> Output:
    """The custom generation loop for transformers: ``model.generate(**inputs,
    custom_generate=fastdecode.custom_generate, …)``.

    Takes the options of `generate` as further keyword arguments of ``model.generate`` and returns the same tokens.
    transformers does not pass the streamer on, so it is read from the calling frame. The tokenizer cannot be read
    there, so stop_strings need `generate`.
    """
    check_family(model)
    call = _calling_generate()
    synced = synced_gpus or call.get("synced_gpus")
    option_kinds.check_call(model, None, {"generation_config": generation_config, **call})
    validation.check_options(model, {"generation_config": generation_config, **call, "synced_gpus": synced})
    chosen = validation.chosen_options(model, call or generation_config.to_dict())
    extras = prepare.GenerateOptions(
        multimodal_generation_mode, guidance, text, image, seed, progress, deterministic, kv_pool
    )
    prepared_call = (input_ids, logits_processor, stopping_criteria, generation_config)
    return _decode(prepare.prepare(model, *prepared_call, extras, chosen, model_kwargs), call.get("streamer"), progress)


def _calling_generate() -> dict[str, Any]:
    """The options given to the ``GenerationMixin.generate`` that calls `custom_generate`; empty for another caller.

    Before the call transformers drops ``streamer`` and ``assistant_model``, and adds defaults. Without this function
    they would be ignored silently, and a default would look like a choice of the user.
    """
    target = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(2)
    while frame.f_code is not target:
        if frame.f_back is None:
            return {}
        frame = frame.f_back
    names = ("streamer", "assistant_model", "negative_prompt_ids", "synced_gpus")
    call = {**frame.f_locals.get("kwargs", {}), **{name: frame.f_locals.get(name) for name in names}}
    outer = frame.f_back.f_locals if frame.f_back is not None else {}  # of torch.no_grad, which wraps generate
    args, kwargs = outer.get("args", ()), outer.get("kwargs", {})
    given = kwargs.get("generation_config", args[2] if len(args) > 2 else None)
    return {**call, "generation_config": given} if isinstance(given, GenerationConfig) else call


def _decode(call: prepare.Prepared, streamer: Any, progress: bool) -> Output:
    """Decode a prepared call on a new engine."""
    decoder = _decoder_for(call)
    requests = call.requests(
        None if streamer is None else text_only(streamer, call.vocabulary), listened=streamer is not None
    )
    with (
        _progress_bar(requests) if progress else nullcontext(),
        call.pool.lock if call.pool is not None else nullcontext(),
    ):
        decode_all(decoder, requests, call.pool)
    if streamer is not None:
        streamer.end()
    return call.output()


def _progress_bar(requests: Sequence[Request]) -> Any:
    """A progress bar of the new tokens of all sequences. The requests advance it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=sum(s.limit - s.prompt_length for r in requests for s in r.sequences), unit="token")

    def moved_by(request: Request) -> Callable[[], None]:
        told = 0

        def move() -> None:
            nonlocal told
            tokens = sum(len(s.tokens) - s.prompt_length for s in request.sequences)
            bar.update(tokens - told)
            told = tokens

        return move

    for request in requests:
        request.listened, request.on_change = True, moved_by(request)
    return bar


def _decoder_for(call: prepare.Prepared) -> Decoder:
    """A decoder with the options of the call. ``ValueError`` if the model cannot be decoded so."""
    decoder = Decoder(call.model, call.deterministic)
    validation.check_deterministic(decoder)
    validation.check_pool(decoder, call.pool)
    validation.check_fits(call.sequences, call.pool)
    return decoder


def decode_all(decoder: Decoder, requests: Sequence[Request], pool: PagePool | None) -> None:
    """Decode requests on a new engine. Raises the error of the first request that fails. The pages are freed however it
    ends.
    """
    engine = EngineCore(decoder, pool)
    try:
        for request in requests:
            engine.add(request)
        failed = next((r for r in requests if r.error is not None), None)
        while failed is None and engine.step():
            failed = next((r for r in requests if r.error is not None), None)
    finally:
        engine.cache.clear()
    if failed is not None and failed.error is not None:
        raise failed.error


def explain(model: Any, inputs: Tensor | None = None, **options: Any) -> Explanation:
    """Describe what `generate` would do with the same arguments, without decoding: print the result.

    It names the backend, the streams of every sequence with their weights, what the grammar allows, the sampling
    parameters of both modalities, the decoder, and why no faster path is used. Raises what `generate` would raise.
    """
    own = {key: options.pop(key, None) for key in prepare.GenerateOptions.__dataclass_fields__}
    own["seed"] = 0 if own["seed"] is None else own["seed"]  # so that torch's generator is not advanced
    extras = prepare.GenerateOptions(**own)
    option_kinds.check_call(model, inputs, options)
    options.pop("streamer", None)
    found: Explanation = _through_transformers(
        model, inputs, options, extras, lambda call: Explanation.of(call, _decoder_for(call))
    )
    return found


def new_pool(model: Any, pages: int | None = None, page_slots: int = PAGE_SLOTS) -> PagePool:
    """A pool for the keys and values of ``model``, for `generate`'s ``kv_pool``: at most ``pages`` pages of
    ``page_slots`` tokens each; None: as many as needed.

    Raises TypeError for an unsupported model, ValueError for sizes below 1.
    """
    check_family(model)
    return Decoder(model).new_pool(pages, page_slots)


def enable(model: Any) -> Any:
    """Make ``model.generate`` call `generate`. Returns ``model``. `disable` undoes it."""
    check_family(model)
    Vocabulary.of(model)
    model.generate = MethodType(generate, model)
    return model


def disable(model: Any) -> Any:
    """Restore the model's own ``generate``. Returns ``model``."""
    model.__dict__.pop("generate", None)
    return model
