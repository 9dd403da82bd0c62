"""`generate`: what ``model.generate`` does, and pictures. transformers prepares a call; the loop here decodes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
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

from fastdecode import request
from fastdecode.guidance import Guidance
from fastdecode.models.chameleon import Vocabulary, check_family

Output = Tensor | GenerateDecoderOnlyOutput


def generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    multimodal_generation_mode: str | None = None,
    guidance: Guidance | float | None = None,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    progress: bool = False,
    streamer: Any = None,
    tokenizer: Any = None,
    stop_strings: str | list[str] | None = None,
    **kwargs: Any,
) -> Output:
    """Generate text and pictures with a Chameleon; takes what ``model.generate`` takes and returns what it returns.

        inputs or input_ids   (batch, length) int64, left-padded with attention_mask (batch, length)
        pixel_values          (pictures, 3, H, W) float: one for each <image> of the prompts
        returns               (batch * num_return_sequences, length + new) int64, padded behind, or
                              GenerateDecoderOnlyOutput with return_dict_in_generate=True

    multimodal_generation_mode: "text-only" (default; same tokens as transformers), "image-only" (one picture),
    "interleaved-text-image", or "unrestricted".

    guidance: a `Guidance`, or a number for two-way guidance; ``guidance_scale`` and ``negative_prompt_ids`` work as in
    transformers. In modes that draw, guidance acts inside pictures; in the others, on every token.

    text, image: sampling parameters of one modality (temperature, top_k, top_p, min_p, repetition_penalty,
    do_sample), over those of the call, which set both. transformers' default top_k of 50 is not applied to pictures.

    seed: one for all requests, or one per request; the tokens of a request then do not depend on its neighbours.
    Drawn from torch's generator if not given. Further sequences of a request have seeds derived from it.

    progress: show a bar. streamer, stop_strings (with tokenizer) and all else: as in transformers.

    Raises TypeError for another model, ValueError for an option that is wrong or not supported, naming it, before any
    work is done; RuntimeError if the model's logits are not numbers.
    """
    check_family(model)
    input_ids = inputs if inputs is not None else kwargs.get("input_ids")
    request.check_options(model, kwargs)
    request.check_prompt(model, input_ids, kwargs)
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings needs tokenizer=…, to know how tokens spell them")
        more = StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings)
        kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), more])
    decode = partial(
        _decode,
        extras=request.Extras(multimodal_generation_mode, guidance, text, image, seed, progress),
        streamer=streamer,
        chosen=request.chosen_options(model, kwargs),
    )
    if streamer is not None:
        kwargs["streamer"] = streamer
    result: Any = GenerationMixin.generate(model, inputs, custom_generate=decode, **kwargs)
    produced: Output = result
    return produced


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
    **model_kwargs: Any,
) -> Output:
    """The plug for transformers: ``model.generate(**inputs, custom_generate=fastdecode.custom_generate, …)``.

    Takes the options of `generate` as further keyword arguments of ``model.generate`` and returns the same tokens.
    transformers does not pass a streamer on to a plug; it is taken from the call all the same.
    """
    check_family(model)
    call = _calling_generate()
    if call is None:
        streamer, chosen = None, request.chosen_options(model, generation_config.to_dict())
    else:
        streamer = call["streamer"]
        named = {key: call[key] for key in ("negative_prompt_ids", "synced_gpus") if call.get(key) is not None}
        request.check_options(model, {**call["kwargs"], **named})
        chosen = request.chosen_options(model, call["kwargs"])
    return _decode(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=synced_gpus,
        extras=request.Extras(multimodal_generation_mode, guidance, text, image, seed, progress),
        streamer=streamer,
        chosen=chosen,
        **model_kwargs,
    )


def _calling_generate() -> dict[str, Any] | None:
    """Arguments of the ``GenerationMixin.generate`` that is calling our plug, or None if something else calls it.

    transformers drops ``streamer`` on the way to a plug, and replaces options that were left out by their defaults;
    both would otherwise be ignored without a word.
    """
    frame = sys._getframe(2)
    if frame.f_code is inspect.unwrap(GenerationMixin.generate).__code__:
        return dict(frame.f_locals)
    return None


def _decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    extras: request.Extras,
    streamer: Any,
    chosen: frozenset[str],
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Output:
    if synced_gpus:
        raise ValueError("synced_gpus=True is not supported: every process decodes on its own; leave it out")
    prepared = request.prepare(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        extras,
        chosen,
        model_kwargs,
    )
    bar = None
    if extras.progress:
        from tqdm.auto import tqdm

        most = max((g.limit - g.prompt_length for g in prepared.groups), default=0)
        bar = tqdm(total=most, unit="token", desc="decoding")

    def after_step(newest: Tensor) -> None:
        if streamer is not None:
            streamer.put(newest)
        if bar is not None:
            bar.update(1)

    loop = prepared.loop(after_step)
    try:
        sequences = loop.run().to(input_ids.device)
    finally:
        if bar is not None:
            bar.close()
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences
    kept = loop.recorder
    output: Any = GenerateDecoderOnlyOutput
    finished: GenerateDecoderOnlyOutput = output(
        sequences=sequences,
        scores=None if kept.scores is None else tuple(kept.scores),
        logits=None if kept.logits is None else tuple(kept.logits),
    )
    return finished


def explain(model: Any, inputs: Tensor | None = None, **options: Any) -> request.Explanation:
    """What `generate` would do with the same arguments, without doing it: print the result.

    It names the backend, the streams of every sequence with their weights, what the grammar allows, the sampling
    parameters of both modalities, the decoder, and why a faster way is not taken. Raises what `generate` would raise.
    """
    check_family(model)
    request.check_options(model, options)
    own = {key: options.pop(key, None) for key in request.Extras.__dataclass_fields__}
    input_ids = inputs if inputs is not None else options.get("input_ids")
    request.check_prompt(model, input_ids, options)
    extras = request.Extras(**{**own, "progress": False})
    chosen = request.chosen_options(model, options)
    options.pop("streamer", None)
    found: list[request.Prepared] = []

    def only_prepare(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        found.append(
            request.prepare(
                model,
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                extras,
                chosen,
                model_kwargs,
            )
        )
        return input_ids

    GenerationMixin.generate(model, inputs, custom_generate=only_prepare, **options)
    return found[0].explain()


def enable(model: Any) -> Any:
    """Make ``model.generate`` run `generate`; returns ``model``. `disable` undoes it."""
    check_family(model)
    Vocabulary.of(model)
    model.generate = MethodType(generate, model)
    return model


def disable(model: Any) -> Any:
    """Give ``model`` its own ``generate`` back; returns ``model``."""
    model.__dict__.pop("generate", None)
    return model
