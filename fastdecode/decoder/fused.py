"""A whole decode step in one call of the C++ library, where the model is plain enough: float32 on the CPU.

The model's own weights are read where they lie; only the small norms of queries and keys are put side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonLayerNorm,
    ChameleonMLP,
    ChameleonRMSNorm,
)

from fastdecode.decoder.plain import altered, plain, plain_tensor
from fastdecode.kv_cache import StreamCache
from fastdecode.ops.backends import core, unavailable

Size = tuple[int, ...]


def _sizes(inner: Any) -> tuple[int, int, int, int, int, float]:
    """hidden, inner, heads, kv_heads, head_dim and scaling, as the first layer has them."""
    attention, mlp = inner.layers[0].self_attn, inner.layers[0].mlp
    heads = (attention.num_heads, attention.num_key_value_heads, attention.head_dim)
    return attention.q_proj.in_features, mlp.gate_proj.out_features, *heads, attention.scaling


def _linears(layer: Any, inner: Any) -> Iterator[tuple[str, Any, Size]]:
    """Name, module and shape of weight of a layer's linear modules, in the order of ``fastdecode_layer``."""
    hidden, width, heads, kv_heads, head_dim, _ = _sizes(inner)
    queries, keys = heads * head_dim, kv_heads * head_dim
    yield "self_attn.q_proj", layer.self_attn.q_proj, (queries, hidden)
    yield "self_attn.k_proj", layer.self_attn.k_proj, (keys, hidden)
    yield "self_attn.v_proj", layer.self_attn.v_proj, (keys, hidden)
    yield "self_attn.o_proj", layer.self_attn.o_proj, (hidden, queries)
    yield "mlp.gate_proj", layer.mlp.gate_proj, (width, hidden)
    yield "mlp.up_proj", layer.mlp.up_proj, (width, hidden)
    yield "mlp.down_proj", layer.mlp.down_proj, (hidden, width)


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _why_not_layer(layer: Any, inner: Any) -> str | None:
    hidden, _, heads, kv_heads, head_dim, scaling = _sizes(inner)
    attention, mlp = layer.self_attn, layer.mlp
    if altered(attention):
        return "self_attn has hooks, or a forward of its own"
    if not plain(mlp, ChameleonMLP):
        return "mlp is not Chameleon's own, or has hooks"
    if not plain(mlp.act_fn, nn.SiLU, SiLUActivation):
        return f"mlp.act_fn is {type(mlp.act_fn).__name__}, not SiLU, or has hooks"
    tensors: list[tuple[str, Any, Size]] = []
    for name, module, size in _linears(layer, inner):
        if not plain(module, nn.Linear):
            return f"{name} is not a plain nn.Linear, or has hooks"
        tensors.append((f"{name}.weight", module.weight, size))
        if module.bias is not None:
            tensors.append((f"{name}.bias", module.bias, size[:1]))
    for name, count in (("q_norm", heads), ("k_norm", kv_heads)):
        norm = getattr(attention, name)
        if not plain(norm, ChameleonLayerNorm):
            return f"self_attn.{name} is not Chameleon's layer norm, or has hooks"
        if norm.weight.shape[-1] != head_dim or norm.weight.numel() not in (head_dim, count * head_dim):
            return f"self_attn.{name} has weights of {tuple(norm.weight.shape)}"
    for norm in _norms(layer):
        if not plain(norm, ChameleonRMSNorm) or norm.variance_epsilon != inner.norm.variance_epsilon:
            return "its norms are not Chameleon's RMS norm with the epsilon of the last one, or have hooks"
        tensors.append(("a norm's weight", norm.weight, (hidden,)))
    for name, tensor, size in tensors:
        if not plain_tensor(tensor):
            return f"{name} is {_described(tensor)}, not dense float32 on the CPU"
        if tensor.shape != size:
            return f"{name} is {tuple(tensor.shape)}, not {size} as the first layer's"
    own = (attention.num_heads, attention.num_key_value_heads, attention.head_dim, attention.scaling)
    if own != (heads, kv_heads, head_dim, scaling):
        return "its heads or their scaling are not those of the first layer"
    return None


def _described(value: Any) -> str:
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    layout = "" if value.layout is torch.strided and value.is_contiguous() else "not dense, "
    return f"{layout}{str(value.dtype).removeprefix('torch.')} on {value.device}"


def why_not(inner: Any) -> str | None:
    """Why a Chameleon's layers (``model.model``) cannot be run as one; None if they can."""
    reason = unavailable("cpu")
    if reason is not None:
        return reason
    if not plain(inner.norm, ChameleonRMSNorm):
        return "norm is not Chameleon's RMS norm, or has hooks"
    if not plain_tensor(inner.norm.weight):
        return f"norm.weight is {_described(inner.norm.weight)}, not dense float32 on the CPU"
    for i, layer in enumerate(inner.layers):
        reason = _why_not_layer(layer, inner)
        if reason is not None:
            return f"layers.{i}: {reason}"
    return None


class FusedStep:
    """`ChameleonDecoder`'s step for a model of which `why_not` says nothing.

    ``qk_norms``: of each layer, weight and bias (heads + kv_heads, head_dim) of its norms of queries and keys.
    Weights that are changed in place are seen; weights that are replaced (``model.to``) are not, until another one is
    made. ``ValueError`` if the environment variable FASTDECODE_CPU_ISA names no instruction set of this machine.
    """

    def __init__(self, inner: Any, qk_norms: Sequence[Sequence[Tensor]], swin: bool) -> None:
        core().cpu_isa()  # raises if FASTDECODE_CPU_ISA cannot be had
        self._step, self._linear = core().decode_step, core().linear
        self._kept: list[Tensor] = []  # whose memory the addresses are
        rows = []
        for layer, (weight, bias) in zip(inner.layers, qk_norms, strict=True):
            modules = [module for _, module, _ in _linears(layer, inner)]
            row = [self._address(m.weight) for m in modules]
            row += [self._address(m.bias) for m in modules]
            row += [self._address(norm.weight) for norm in _norms(layer)]
            row += [self._address(weight.contiguous()), self._address(bias.contiguous())]
            rows.append([*row, 0, 0])
        self._addresses = torch.tensor(rows, device="cpu")
        hidden, width, heads, kv_heads, head_dim, scaling = _sizes(inner)
        sizes = (len(rows), hidden, width, heads, kv_heads, head_dim)
        self._hidden = hidden
        self._constants = (*sizes, swin, inner.norm.variance_epsilon, scaling, self._address(inner.norm.weight))

    def _address(self, tensor: Tensor | None) -> int:
        """Of the memory that ``tensor`` has now, which is kept even if the tensor is given another."""
        if tensor is None:
            return 0
        self._kept.append(tensor.detach())
        return self._kept[-1].data_ptr()

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one id to every row of ``cache``, which has room for it but does not grow here.

        ``x`` (rows, hidden) are the ids' embeddings, which may be overwritten; ``cos`` and ``sin`` (rows, head_dim)
        as `ChameleonDecoder.rope` has them. Returns the normed hidden states (rows, hidden) float32.
        """
        x = x.to(torch.float32).contiguous()
        if x.shape != (cache.rows, self._hidden):
            raise ValueError(f"embeddings are {tuple(x.shape)}; they must be ({cache.rows}, {self._hidden})")
        addresses = self._addresses.clone()  # of this call: another thread may be in a step of its own
        stored = [[k.data_ptr(), v.data_ptr()] for k, v in zip(cache.keys, cache.values, strict=True)]
        addresses[:, -2:] = torch.tensor(stored, device="cpu")
        self._step(
            addresses.data_ptr(),
            *self._constants,
            cache.rows,
            cache.slots,
            cache.lengths.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            x.data_ptr(),
            torch.get_num_threads(),
        )
        return x

    def head(self, weight: Tensor, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``weight`` (n, hidden), a `plain_tensor`; ``out`` is
        float32 and may be part of wider rows.
        """
        hidden = hidden.to(torch.float32).contiguous()
        self._linear(
            weight.data_ptr(),
            0,
            hidden.data_ptr(),
            *hidden.shape,
            len(weight),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
