"""The parts of a model that a decoder reads: the modules of transformers' families with layers like Llama's.

A layer is: norm, attention (q, k, v; optional norms of query and key heads; rotary embedding; grouped queries), sum,
norm, gated MLP, sum. In Chameleon the norms may follow attention and MLP instead (``swin_norm``). Gemma's embeddings
are multiplied by a number, and its norms by 1 + weight.

The layers may be those of a language model inside another model (`Nest`), which may have image tokens of its own
(`OwnTokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon import modeling_chameleon as chameleon
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.emu3 import modeling_emu3 as emu3
from transformers.models.gemma import modeling_gemma as gemma
from transformers.models.janus import modeling_janus as janus
from transformers.models.llama import modeling_llama as llama
from transformers.models.llava import modeling_llava as llava
from transformers.models.llava_next import modeling_llava_next as llava_next
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3


class Chain(NamedTuple):
    """A module of class ``kind``, whose forward calls the modules ``steps`` one after another and does nothing else."""

    module: nn.Module
    kind: type[nn.Module]
    steps: tuple[nn.Module, ...]


@dataclass(frozen=True)
class OwnTokens:
    """Image tokens behind those of the language model, which have embeddings and a head of their own.

    count   the number of them
    embed   modules that make embeddings (…, hidden) of them, counted from 0 (…,) int64, one after another
    head    modules that make their logits (…, count) of normed hidden states (…, hidden)
    """

    count: Callable[[Any], int]
    embed: Callable[[Any], tuple[Chain, ...]]
    head: Callable[[Any], tuple[Chain, ...]]


@dataclass(frozen=True)
class Nest:
    """A class of models with a language model of one of `DECODED` inside.

    ``path``: the attributes that lead from the model to it. ``between``: the classes of the modules on that path.
    """

    model: type[nn.Module]
    path: tuple[str, ...]
    between: tuple[type[nn.Module], ...]
    own_tokens: OwnTokens | None = None


@dataclass(frozen=True)
class Classes:
    """The module classes of one kind of models. ``inner``: of the language model. ``layers``: of its layers.
    ``heads``: of the norms of queries and keys; None without such norms. ``embed``: of the embeddings. ``norm_offset``:
    what its norms add to their weights before they multiply by them. ``path``, ``between``, ``own_tokens``: see `Nest`.
    """

    model: type[nn.Module]
    inner: type[nn.Module]
    layers: tuple[type[nn.Module], ...]
    attention: type[nn.Module]
    rotary: type[nn.Module]
    norm: type[nn.Module]
    mlp: type[nn.Module]
    heads: type[nn.Module] | None = None
    embed: type[nn.Module] = nn.Embedding
    norm_offset: float = 0.0
    path: tuple[str, ...] = ("model",)
    between: tuple[type[nn.Module], ...] = ()
    own_tokens: OwnTokens | None = None

    @property
    def all(self) -> Iterator[type[nn.Module]]:
        """All of them."""
        yield from (self.model, *self.between, self.inner, *self.layers)
        yield from (self.attention, self.rotary, self.norm, self.mlp, self.embed)
        if self.heads is not None:
            yield self.heads

    @classmethod
    def of_text(cls, module: ModuleType, name: str, heads: bool = False, **more: Any) -> Classes:
        """Those called ``name`` in a modeling file of transformers. ``more``: further fields."""
        parts = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "RotaryEmbedding", "RMSNorm", "MLP")
        model, inner, layer, attention, rotary, norm, mlp = (getattr(module, name + part) for part in parts)
        return cls(model, inner, (layer,), attention, rotary, norm, mlp, norm if heads else None, **more)


CHAMELEON = Classes(
    ChameleonForConditionalGeneration,
    chameleon.ChameleonModel,
    (chameleon.ChameleonDecoderLayer, chameleon.ChameleonSwinDecoderLayer),
    chameleon.ChameleonAttention,
    chameleon.ChameleonRotaryEmbedding,
    chameleon.ChameleonRMSNorm,
    chameleon.ChameleonMLP,
    ChameleonLayerNorm,
)
EMU3 = Classes(
    emu3.Emu3ForCausalLM,
    emu3.Emu3TextModel,
    (emu3.Emu3DecoderLayer,),
    emu3.Emu3Attention,
    emu3.Emu3RotaryEmbedding,
    emu3.Emu3RMSNorm,
    emu3.Emu3MLP,
)
TEXT_CLASSES = (
    Classes.of_text(llama, "Llama"),
    Classes.of_text(mistral, "Mistral"),
    Classes.of_text(qwen2, "Qwen2"),
    Classes.of_text(qwen3, "Qwen3", heads=True),
    Classes.of_text(gemma, "Gemma", embed=gemma.GemmaTextScaledWordEmbedding, norm_offset=1.0),
)
DECODED = [CHAMELEON, *TEXT_CLASSES, EMU3]
EMBEDDINGS = tuple({f.embed: None for f in DECODED})
"""The classes of embeddings. Those beside nn.Embedding multiply by their ``embed_scale``: see `scale_of`."""

_OFFSETS = {f.norm: f.norm_offset for f in DECODED}


def _janus_codes(model: Any) -> int:
    return int(model.config.vq_config.num_embeddings)


def _janus_embed(model: Any) -> tuple[Chain, ...]:
    table, aligner = model.model.generation_embeddings, model.model.generation_aligner
    between = [step for layer in aligner.hidden_layers for step in (aligner.activation_fn, layer)]
    return (
        Chain(table, nn.Embedding, (table,)),
        Chain(aligner, janus.JanusVQVAEAlignerMLP, (aligner.fc1, *between)),
    )


def _janus_head(model: Any) -> tuple[Chain, ...]:
    head = model.model.generation_head
    return (Chain(head, janus.JanusVQVAEHead, (head.proj_out, head.activation_fn, head.vision_head)),)


JANUS = Nest(
    janus.JanusForConditionalGeneration,
    ("model", "language_model"),
    (janus.JanusModel,),
    OwnTokens(_janus_codes, _janus_embed, _janus_head),
)
NESTS = [
    JANUS,
    Nest(emu3.Emu3ForConditionalGeneration, ("model", "text_model"), (emu3.Emu3Model,)),
    Nest(llava.LlavaForConditionalGeneration, ("model", "language_model"), (llava.LlavaModel,)),
    Nest(llava_next.LlavaNextForConditionalGeneration, ("model", "language_model"), (llava_next.LlavaNextModel,)),
]

QK_EPSILON = 1e-5
"""The epsilon of Chameleon's layer norms of queries and keys; their code has it as a constant."""


def known_classes(model: Any) -> Classes | None:
    """Those of ``model``; None for a model whose layers fastdecode does not know. TypeError for a model of `NESTS`
    whose language model is none of `DECODED`.
    """
    nest = next((n for n in NESTS if isinstance(model, n.model)), None)
    if nest is None:
        return next((f for f in DECODED if isinstance(model, f.model)), None)
    inner = reduce(getattr, nest.path, model)
    known = next((f for f in DECODED if isinstance(inner, f.inner)), None)
    if known is None:
        raise TypeError(
            f"the language model of this {type(model).__name__} is a {type(inner).__name__}, which fastdecode does not "
            f"decode: it decodes {', '.join(f.inner.__name__ for f in DECODED)}"
        )
    return _nested(nest, known)


def classes_of(model: Any) -> Classes:
    """Those of ``model``. TypeError for a model whose layers fastdecode does not know."""
    known = known_classes(model)
    if known is None:
        raise TypeError(
            "fastdecode knows the layers of ChameleonForConditionalGeneration and its fine-tunes (Anole, AA-Chameleon, "
            f"Lumina-mGPT in that class), {', '.join(n.model.__name__ for n in NESTS)}, and "
            f"{', '.join(f.model.__name__ for f in TEXT_CLASSES)}; got {type(model).__name__}"
        )
    return known


@lru_cache(maxsize=64)
def _nested(nest: Nest, known: Classes) -> Classes:
    return replace(known, model=nest.model, path=nest.path, between=nest.between, own_tokens=nest.own_tokens)


def inner_of(model: Any) -> Any:
    """The language model inside: the module with ``embed_tokens``, ``layers``, ``norm`` and ``rotary_emb``."""
    return reduce(getattr, classes_of(model).path, model)


def text_config(model: Any) -> Any:
    """The config of the language model, for any model of transformers."""
    known = known_classes(model)
    return model.config.get_text_config(decoder=True) if known is None else reduce(getattr, known.path, model).config


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
    """The epsilon of an RMS norm of `DECODED`, or of one of Chameleon's layer norms of heads."""
    if isinstance(norm, ChameleonLayerNorm):
        return QK_EPSILON
    return float(norm.eps if isinstance(norm, gemma.GemmaRMSNorm) else norm.variance_epsilon)


def factors_of(norm: Any) -> Tensor:
    """What a norm of `DECODED` multiplies by: its own weight, or a float32 sum of it and an offset."""
    weight: Tensor = norm.weight
    offset = _OFFSETS.get(type(norm), 0.0)
    return weight if offset == 0.0 else weight.float() + offset


def scale_of(embed: Any) -> Tensor | None:
    """What embeddings of one of `EMBEDDINGS` are multiplied by, () in their dtype; None for nothing."""
    return None if type(embed) is nn.Embedding else embed.embed_scale.to(embed.weight.dtype)
