"""The parts of a model that a decoder reads: the modules of transformers' families with layers like Llama's.

A layer is: norm, attention (q, k, v; optional norms of query and key heads; rotary embedding; grouped queries), sum,
norm, gated MLP, sum. In Chameleon the norms may follow attention and MLP instead (``swin_norm``).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon import modeling_chameleon as chameleon
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3


@dataclass(frozen=True)
class Family:
    """The module classes of one family. ``inner``: of ``model.model``. ``layers``: of its layers. ``heads``: of the
    norms of queries and keys; None without such norms.
    """

    model: type[nn.Module]
    inner: type[nn.Module]
    layers: tuple[type[nn.Module], ...]
    attention: type[nn.Module]
    rotary: type[nn.Module]
    norm: type[nn.Module]
    mlp: type[nn.Module]
    heads: type[nn.Module] | None = None

    @classmethod
    def of_text(cls, module: ModuleType, name: str, heads: bool = False) -> Family:
        """The family ``name`` of a modeling file of transformers."""
        parts = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "RotaryEmbedding", "RMSNorm", "MLP")
        model, inner, layer, attention, rotary, norm, mlp = (getattr(module, name + part) for part in parts)
        return cls(model, inner, (layer,), attention, rotary, norm, mlp, norm if heads else None)


CHAMELEON = Family(
    ChameleonForConditionalGeneration,
    chameleon.ChameleonModel,
    (chameleon.ChameleonDecoderLayer, chameleon.ChameleonSwinDecoderLayer),
    chameleon.ChameleonAttention,
    chameleon.ChameleonRotaryEmbedding,
    chameleon.ChameleonRMSNorm,
    chameleon.ChameleonMLP,
    ChameleonLayerNorm,
)
TEXT_FAMILIES = (
    Family.of_text(llama, "Llama"),
    Family.of_text(mistral, "Mistral"),
    Family.of_text(qwen2, "Qwen2"),
    Family.of_text(qwen3, "Qwen3", heads=True),
)
FAMILIES = (CHAMELEON, *TEXT_FAMILIES)

QK_EPSILON = 1e-5
"""The epsilon of Chameleon's layer norms of queries and keys; their code has it as a constant."""


def family_of(model: Any) -> Family:
    """The family of ``model``. TypeError for an unsupported class."""
    family = next((f for f in FAMILIES if isinstance(model, f.model)), None)
    if family is None:
        raise TypeError(
            "fastdecode decodes ChameleonForConditionalGeneration and its fine-tunes (Anole, AA-Chameleon, Lumina-mGPT "
            f"in that class), and the text of {', '.join(f.model.__name__ for f in TEXT_FAMILIES)}; got "
            f"{type(model).__name__}"
        )
    return family


def window_of(config: Any) -> int | None:
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
