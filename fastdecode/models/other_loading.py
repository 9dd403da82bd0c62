"""Loads the models that are not Chameleons, with their processor or tokenizer, as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from fastdecode.models.checkpoint import Checkpoint

OTHERS = {
    "emu3": ("Emu3ForConditionalGeneration", "AutoProcessor"),
    "gemma": ("GemmaForCausalLM", "AutoTokenizer"),
    "janus": ("JanusForConditionalGeneration", "AutoProcessor"),
    "llama": ("LlamaForCausalLM", "AutoTokenizer"),
    "llava": ("LlavaForConditionalGeneration", "AutoProcessor"),
    "llava_next": ("LlavaNextForConditionalGeneration", "AutoProcessor"),
    "mistral": ("MistralForCausalLM", "AutoTokenizer"),
    "qwen2": ("Qwen2ForCausalLM", "AutoTokenizer"),
    "qwen3": ("Qwen3ForCausalLM", "AutoTokenizer"),
}
"""By model_type: the classes of model and processor."""


def read_other(
    kind: str, source: str | Path, checkpoint: Checkpoint, dtype: Any, options: Mapping[str, Any], trust: bool
) -> tuple[Any, Any, set[str]]:
    """Model, processor, and the names of weights that are missing. ``kind``: one of `OTHERS`."""
    model_class, processor_class = (getattr(transformers, name) for name in OTHERS[kind])
    processor = processor_class.from_pretrained(source, trust_remote_code=trust, **checkpoint.hub)
    model, info = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    return model, processor, set(info["missing_keys"])
