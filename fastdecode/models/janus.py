"""Janus and Janus-Pro: image tokens with embeddings and a head of their own, behind the language model's tokens.

Image token ``c`` is token ``vocab_size + c``, where ``vocab_size`` is that of the language model. A picture begins
where the processor's prompt ends. The end of the sequence closes it: the model is not trained to end a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import JanusForConditionalGeneration

from fastdecode.layout import Grid, Layout
from fastdecode.models.family import Family
from fastdecode.models.painting import decoded, painted
from fastdecode.models.recipe import Recipe, by_task
from fastdecode.models.vocabulary_map import check_token
from fastdecode.vocabulary import Vocabulary
from fastdecode.wording import kind_of


def _settings(model: Any) -> dict[str, Any]:
    """``generation_kwargs`` of the generation_config. ``ValueError`` unless it is a dict."""
    found = getattr(model.generation_config, "generation_kwargs", None)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"model.generation_config.generation_kwargs is {kind_of(found)}: it must be a dict")
    return dict(found or {})


def _begin(model: Any) -> Any:
    """The token that begins a picture, if the generation_config says it."""
    return _settings(model).get("boi_token_id", getattr(model.generation_config, "boi_token_id", None))


def name_begin(model: Any, processor: Any) -> None:
    """Write into the generation_config which token begins a picture, where it does not say: transformers 5.24 does not
    read it from the checkpoint's file. ``ValueError`` if the processor does not know it either.
    """
    if _begin(model) is not None:
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    name = getattr(processor, "image_start_token", None)
    known = tokenizer.get_vocab()
    if name not in known:
        raise ValueError(f"the tokenizer has no {name!r}, the token that begins a picture: give the processor of Janus")
    model.generation_config.generation_kwargs = {**_settings(model), "boi_token_id": known[name]}


def vocabulary(model: Any) -> Vocabulary:
    """Read the config and the generation_config, which has the begin of image. ``ValueError`` if that is missing."""
    config, text = model.config, model.config.text_config
    begin, end = _begin(model), text.eos_token_id
    if begin is None:
        raise ValueError(
            "model.generation_config.generation_kwargs of this checkpoint has no 'boi_token_id', the token that "
            "begins a picture: load the checkpoint with fastdecode.load, or set it"
        )
    check_token("boi_token_id of model.generation_config is", begin, text.vocab_size)
    if isinstance(end, (list, tuple)):
        end = next(iter(end), None)
    if end is None:
        raise ValueError(
            f"config.text_config.eos_token_id of this checkpoint is {text.eos_token_id}: it must be the end of sequence"
        )
    check_token("config.text_config.eos_token_id is", end, text.vocab_size)
    rows, columns = model.model.vqmodel.quantize.quant_state_dims
    codes, layout = config.vq_config.num_embeddings, Layout(rows, columns)
    pad = model.generation_config.pad_token_id
    return Vocabulary(
        size=text.vocab_size + codes,
        code_ids=tuple(range(text.vocab_size, text.vocab_size + codes)),
        begin_image=begin,
        end_image=end,
        placeholder=config.image_token_id,
        image_length=len(layout),
        context=text.max_position_embeddings,
        bos=text.bos_token_id,
        pad=text.pad_token_id if pad is None else pad,
        layout=layout,
        cell=2 ** (len(config.vq_config.channel_multiplier) - 1),
        draws_alone="Janus draws one picture to a prompt",
        unconditional="blank",
    )


def paint(model: Any, grids: Sequence[Grid]) -> list[Image.Image]:
    """Paint each grid of codes by the model's own decoder, in float32."""
    vqmodel = model.model.vqmodel
    decode, device = decoded(vqmodel), vqmodel.quantize.embedding.weight.device
    return painted(grids, device, lambda codes: decode(codes.flatten(1)), rounded=False)


DEEPSEEK = "deepseek-ai/Janus, generation_inference.py"
DEMO = "deepseek-ai/Janus, demo/app_januspro.py"
DRAWN = {
    "multimodal_generation_mode": "image-only",
    "do_sample": True,
    "guidance": 5.0,
    "image": {"temperature": 1.0},
}
SAID = {"multimodal_generation_mode": "text-only", "do_sample": True, "temperature": 0.1, "top_p": 0.95}


def recipes(model: Any) -> dict[str, Recipe]:
    """By task."""
    said = {**SAID, "max_new_tokens": 512}
    question = "<|User|>: <image>\n{text}\n\n<|Assistant|>:"
    asked = "<|User|>: {text}\n\n<|Assistant|>:"
    found = [
        Recipe.of("Janus", "text-to-image", asked, DRAWN, DEEPSEEK, processor={"generation_mode": "image"}),
        Recipe.of("Janus", "caption", question, said, DEMO),
        Recipe.of("Janus", "chat", asked, said, DEMO),
    ]
    return by_task(found)


JANUS = Family(
    "Janus",
    lambda model: isinstance(model, JanusForConditionalGeneration),
    vocabulary,
    paint=paint,
    recipes=recipes,
    own_generate=True,
)
