"""A Chameleon whose layers are read matrix by matrix, so that its memory is that of the small model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from fastdecode.models.checkpoint import HUB_OPTIONS, Checkpoint
from fastdecode.models.quantise import Width, linears_of, shrink

OPTIONS = (*HUB_OPTIONS, "variant", "attn_implementation", "trust_remote_code")
"""The options of ``from_pretrained`` that have a meaning here."""


def check_options(options: Mapping[str, Any], config: Mapping[str, Any], given: str) -> None:
    """``ValueError`` for what cannot be given beside ``given``, the option that makes weights small."""
    other = sorted(name for name in options if name not in OPTIONS and options[name] is not None)
    if other:
        raise ValueError(f"{given} goes with dtype, vqgan, {', '.join(OPTIONS)}: leave out {', '.join(other)}")
    if config.get("quantization_config"):
        raise ValueError(
            f"{given}: the checkpoint's weights are small already (quantization_config in its config.json)"
        )


def without_layers(source: str | Path, dtype: torch.dtype | str, options: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """All of the model but its layers, as ``from_pretrained`` reads it, and the names of weights that are missing."""
    hub = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
    config = ChameleonConfig.from_pretrained(source, **hub)
    layers, config.num_hidden_layers = config.num_hidden_layers, 0
    read: Any = ChameleonForConditionalGeneration.from_pretrained
    model, info = read(source, config=config, dtype=dtype, output_loading_info=True, **options)
    model.config.num_hidden_layers = layers
    return model, set(info["missing_keys"])


def add_layers(model: Any) -> None:
    """Give a model that was made `without_layers` its layers, on the meta device."""
    with torch.device("meta"):
        whole = ChameleonForConditionalGeneration(model.config)
    model.model.layers = whole.model.layers


def read_small(
    source: str | Path, checkpoint: Checkpoint, dtype: Any, width: Width, options: Any
) -> tuple[Any, set[str]]:
    """The model with small weights, and the names of weights that are missing. One matrix at a time is in memory in its
    dtype, except the embeddings and the head, which are read first.

    The bytes are those of ``quantise`` after ``from_pretrained``. ``ValueError`` names a weight that is wrong.
    """
    files = checkpoint.safetensors()
    if not files:
        raise ValueError("weights= reads safetensors, and the checkpoint has none: save it as safetensors first")
    model, missing = without_layers(source, dtype, options)
    shrink(model, [("model.embed_tokens", model.model.embed_tokens), ("lm_head", model.lm_head)], width)
    add_layers(model)
    linears = {f"{name}.weight" for name, _ in linears_of(model)}
    missing |= fill(model, lambda name: _stored(files, name), linears, width)
    return model, missing


def fill(model: Any, read: Callable[[str], Tensor | None], linears: set[str], width: Width) -> set[str]:
    """Put weights in the place of those on the meta device, matrices ``linears`` small. ``read`` gives the weight of
    a name, or None. Returns the names that it did not know.
    """
    missing = set()
    for name, parameter in list(model.model.layers.named_parameters(prefix="model.layers")):
        stored = read(name)
        if stored is None:
            missing.add(name)
            continue
        if stored.shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(stored.shape)}, and the config asks for {tuple(parameter.shape)}")
        value = stored.to(model.dtype)
        owner, _, own = name.rpartition(".")
        made = width.made(name, value) if name in linears else nn.Parameter(value.clone())
        setattr(model.get_submodule(owner), own, made)
    return missing


def _stored(files: Mapping[str, Path], name: str) -> Tensor | None:
    """A weight of the language model; None if it is not stored. The file is closed again, so that its pages count as
    memory of this process no longer than the tensor lives.
    """
    for key in (name, name.removeprefix("model.")):
        if key in files:
            with safe_open(files[key], "pt") as stored:
                found: Tensor = stored.get_tensor(key)
                return found
    return None
