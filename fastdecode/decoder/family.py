"""The parts of a model that a decoder reads: the modules of transformers' families with layers like Llama's.

A layer is: norm, attention (q, k, v; optional norms of query and key heads; rotary embedding; grouped queries), sum,
norm, gated MLP, sum. In Chameleon the norms may follow attention and MLP instead (``swin_norm``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    ChameleonForConditionalGeneration,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonAttention,
    ChameleonLayerNorm,
    ChameleonMLP,
    ChameleonRMSNorm,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm


@dataclass(frozen=True)
class Family:
    """The module classes of one family. ``heads``: of the norms of queries and keys; None without such norms."""

    model: type[nn.Module]
    attention: type[nn.Module]
    norm: type[nn.Module]
    mlp: type[nn.Module]
    heads: type[nn.Module] | None = None


CHAMELEON = Family(
    ChameleonForConditionalGeneration, ChameleonAttention, ChameleonRMSNorm, ChameleonMLP, ChameleonLayerNorm
)
TEXT_FAMILIES = (
    Family(LlamaForCausalLM, LlamaAttention, LlamaRMSNorm, LlamaMLP),
    Family(MistralForCausalLM, MistralAttention, MistralRMSNorm, MistralMLP),
    Family(Qwen2ForCausalLM, Qwen2Attention, Qwen2RMSNorm, Qwen2MLP),
    Family(Qwen3ForCausalLM, Qwen3Attention, Qwen3RMSNorm, Qwen3MLP, Qwen3RMSNorm),
)
FAMILIES = (CHAMELEON, *TEXT_FAMILIES)

QK_EPSILON = 1e-5
"""The epsilon of Chameleon's layer norms of queries and keys; their code has it as a constant."""


def family_of(model: Any) -> Family:
    """The family of ``model``. TypeError for an unsupported class; ValueError if some layers of the model attend to a
    window of the sequence only.
    """
    family = next((f for f in FAMILIES if isinstance(model, f.model)), None)
    if family is None:
        if hasattr(model, "_orig_mod"):
            raise TypeError("the model went through torch.compile; give the one that it was made of: model._orig_mod")
        raise TypeError(
            "fastdecode decodes ChameleonForConditionalGeneration and its fine-tunes (Anole, AA-Chameleon, Lumina-mGPT "
            f"in that class), and the text of {', '.join(f.model.__name__ for f in TEXT_FAMILIES)}; got "
            f"{type(model).__name__}"
        )
    window = _window(model.config)
    if window is not None:
        raise ValueError(
            f"this {type(model).__name__} has layers that see {window} ids only; fastdecode's see the whole sequence. "
            "Where no sequence will be longer, load it with sliding_window=None (use_sliding_window=False)"
        )
    return family


def _window(config: Any) -> int | None:
    """The number of last tokens that a layer attends to, if a sequence can be longer; else None."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and set(kinds) <= {"full_attention"}):
        return None
    return window if window < config.max_position_embeddings else None


@dataclass(frozen=True)
class Sizes:
    """The sizes that all layers share: features, heads, and the scale of the products of queries and keys."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float

    @classmethod
    def of(cls, layer: Any) -> Sizes:
        attention, config = layer.self_attn, layer.self_attn.config
        heads = (config.num_attention_heads, config.num_key_value_heads, attention.head_dim)
        return cls(attention.q_proj.in_features, layer.mlp.gate_proj.out_features, *heads, attention.scaling)


def head_norms(attention: Any) -> tuple[Any, Any] | None:
    """The norms of queries and keys; None if the attention has none."""
    norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return None if norms == (None, None) else norms


def epsilon_of(norm: Any) -> float:
    """The epsilon of an RMS norm, or of one of Chameleon's layer norms of heads."""
    return QK_EPSILON if isinstance(norm, ChameleonLayerNorm) else float(norm.variance_epsilon)
