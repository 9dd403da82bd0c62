"""Reasons why a model cannot use a fast decode step: modules that compute something the kernels do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdecode.decoder.activations import activation_of
from fastdecode.decoder.classes import Classes, Sizes, classes_of, epsilon_of, head_norms, inner_of
from fastdecode.decoder.plain import altered, plain, plain_tensor
from fastdecode.decoder.quantised import of_small, unsupported_small, unsupported_stored
from fastdecode.ops.backends import ENVIRONMENT_VARIABLE, choose_step_backend, unavailable

Size = tuple[int, ...]

READ = "dense float32, bfloat16 or float16 on the CPU"


def linears(layer: Any, sizes: Sizes) -> Iterator[tuple[str, Any, Size]]:
    """Name, module and weight shape of each linear module of a layer, in the order of ``fastdecode_layer``."""
    hidden, inner = sizes.hidden, sizes.inner
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    yield "self_attn.q_proj", layer.self_attn.q_proj, (queries, hidden)
    yield "self_attn.k_proj", layer.self_attn.k_proj, (keys, hidden)
    yield "self_attn.v_proj", layer.self_attn.v_proj, (keys, hidden)
    yield "self_attn.o_proj", layer.self_attn.o_proj, (hidden, queries)
    yield "mlp.gate_proj", layer.mlp.gate_proj, (inner, hidden)
    yield "mlp.up_proj", layer.mlp.up_proj, (inner, hidden)
    yield "mlp.down_proj", layer.mlp.down_proj, (hidden, inner)


def norms_of(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _unsupported_layer(layer: Any, inner: Any, known: Classes, device: str) -> str | None:
    first = inner.layers[0]
    sizes = Sizes.of(first)
    attention, mlp = layer.self_attn, layer.mlp
    if altered(attention):
        return "self_attn has hooks, or a forward of its own"
    if not plain(attention, known.attention):
        return f"self_attn is {type(attention).__name__}, not {known.attention.__name__}"
    if not plain(mlp, known.mlp):
        return f"mlp is not a plain {known.mlp.__name__}, or has hooks"
    activation = activation_of(mlp.act_fn)
    if not activation:
        return f"mlp.act_fn is {type(mlp.act_fn).__name__}, not SiLU or GELU, or has hooks"
    if activation != activation_of(first.mlp.act_fn):
        return f"mlp.act_fn is {type(mlp.act_fn).__name__}, and the first layer's {type(first.mlp.act_fn).__name__}"
    tensors: list[tuple[str, Any, Size]] = []
    dtype = inner.embed_tokens.weight.dtype  # of keys and values
    for name, module, size in linears(layer, sizes):
        if not plain(module, nn.Linear):
            return f"{name} is not a plain nn.Linear, or has hooks"
        if of_small(module.weight):
            weight = module.weight
            reason = unsupported_small(weight) if device == "cpu" else unsupported_stored(weight, device)
            if reason is not None:
                return f"{name}.weight is a {type(module.weight).__name__} {reason}"
            if module.weight.shape != size:
                return f"{name} is {tuple(module.weight.shape)}, not {size} as the first layer's"
        else:
            if plain_tensor(module.weight, device) and module.weight.dtype != dtype:
                its = str(dtype).removeprefix("torch.")
                return f"{name}.weight is {_described(module.weight)}, not {its} as the embeddings"
            tensors.append((f"{name}.weight", module.weight, size))
        if module.bias is not None:
            tensors.append((f"{name}.bias", module.bias, size[:1]))
    reason = _unsupported_head_norms(attention, first.self_attn, sizes, known)
    if reason is not None:
        return reason
    for norm in norms_of(layer):
        if not plain(norm, known.norm) or epsilon_of(norm) != epsilon_of(inner.norm):
            return f"its norms are not plain {known.norm.__name__}s with the epsilon of the last one, or have hooks"
        tensors.append(("a norm's weight", norm.weight, (sizes.hidden,)))
    for name, tensor, size in tensors:
        if not plain_tensor(tensor, device):
            return f"{name} is {_described(tensor)}, not {_read(device)}"
        if tensor.shape != size:
            return f"{name} is {tuple(tensor.shape)}, not {size} as the first layer's"
    if Sizes.of(layer) != sizes:
        return "its heads or their scaling are not those of the first layer"
    return None


def _unsupported_head_norms(attention: Any, first: Any, sizes: Sizes, known: Classes) -> str | None:
    norms, class_name = head_norms(attention), known.attention.__name__
    if known.heads is None:
        return None if norms is None else f"self_attn has norms of queries and keys that a {class_name} has not"
    if norms is None:
        return f"self_attn lacks the norms of queries and keys that a {class_name} has"
    for name, norm, count in zip(("q_norm", "k_norm"), norms, (sizes.heads, sizes.kv_heads), strict=True):
        if not plain(norm, known.heads):
            return f"self_attn.{name} is not a plain {known.heads.__name__}, or has hooks"
        if norm.weight.shape[-1] != sizes.head_dim or norm.weight.numel() not in (
            sizes.head_dim,
            count * sizes.head_dim,
        ):
            return f"self_attn.{name} has weights of {tuple(norm.weight.shape)}"
        if epsilon_of(norm) != epsilon_of(first.q_norm):
            return f"self_attn.{name} has another epsilon than the first"
    return None


def _described(value: Any) -> str:
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    layout = "" if value.layout is torch.strided and value.is_contiguous() else "not dense, "
    return f"{layout}{str(value.dtype).removeprefix('torch.')} on {value.device}"


def _read(device: str) -> str:
    return READ if device == "cpu" else READ.replace("the CPU", device)


def unsupported_reason(model: Any) -> str | None:
    """Why the C++ library cannot compute a step of this model; None if it can. For models that `classes_of` accepts."""
    return unavailable("cpu") or _unsupported_plain(model, "cpu")


def unsupported_by_triton(model: Any) -> str | None:
    """Why the Triton kernels cannot compute a step of this model, which is not on the CPU; None if they can."""
    device = inner_of(model).norm.weight.device
    return (
        unavailable("triton")
        or (_unsupported_on(device) if device.type == "cuda" else None)
        or _unsupported_plain(model, device.type)
    )


def _unsupported_on(device: torch.device) -> str | None:
    """Why the Triton kernels do not run on this GPU; None if they do."""
    chosen = choose_step_backend(None, device)
    if chosen != "triton":
        return f"the environment variable {ENVIRONMENT_VARIABLE} names {chosen}"
    if torch.version.hip is not None:
        return "the GPU is not one of NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and no bfloat16: 8.0 is needed"
    return None


def _unsupported_plain(model: Any, device: str) -> str | None:
    known, inner = classes_of(model), inner_of(model)
    if not plain(inner.norm, known.norm):
        return f"norm is not a plain {known.norm.__name__}, or has hooks"
    if not plain_tensor(inner.norm.weight, device):
        return f"norm.weight is {_described(inner.norm.weight)}, not {_read(device)}"
    for i, layer in enumerate(inner.layers):
        reason = _unsupported_layer(layer, inner, known, device)
        if reason is not None:
            return f"layers.{i}: {reason}"
    return None
