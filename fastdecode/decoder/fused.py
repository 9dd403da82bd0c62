"""A whole decode step in one call of the C++ library, where the model is plain enough, and on the CPU.

The model's own matrices are read where they lie, in float32, bfloat16 or float16. What is small is copied to float32
where it is not that: norms and biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonLayerNorm,
    ChameleonMLP,
    ChameleonRMSNorm,
)

from fastdecode.decoder.plain import DTYPES, altered, plain, plain_tensor
from fastdecode.kv_cache import StreamCache
from fastdecode.ops.backends import core, unavailable

Size = tuple[int, ...]

QK_EPSILON = 1e-5
"""Of Chameleon's layer norms of queries and keys, which do not say it."""

READ = "dense float32, bfloat16 or float16 on the CPU"


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
    dtype = inner.layers[0].self_attn.q_proj.weight.dtype
    for name, module, size in _linears(layer, inner):
        if not plain(module, nn.Linear):
            return f"{name} is not a plain nn.Linear, or has hooks"
        if plain_tensor(module.weight) and module.weight.dtype != dtype:
            return f"{name}.weight is {_described(module.weight)}, not {str(dtype).removeprefix('torch.')} as the first"
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
            return f"{name} is {_described(tensor)}, not {READ}"
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
        return f"norm.weight is {_described(inner.norm.weight)}, not {READ}"
    for i, layer in enumerate(inner.layers):
        reason = _why_not_layer(layer, inner)
        if reason is not None:
            return f"layers.{i}: {reason}"
    return None


class FusedStep:
    """`ChameleonDecoder`'s step for a model of which `why_not` says nothing.

    Matrices that are changed in place are seen; those that are replaced (``model.to``) are not, until another one is
    made, nor are changes of norms and biases that are not float32. ``ValueError`` if the environment variable
    FASTDECODE_CPU_ISA names no instruction set of this machine.
    """

    def __init__(self, inner: Any, swin: bool) -> None:
        core().cpu_isa()  # raises if FASTDECODE_CPU_ISA cannot be had
        self._step, self._linear = core().decode_step, core().linear
        self._kept: list[Tensor] = []  # whose memory the addresses are
        rows = [self._row(layer, inner) for layer in inner.layers]
        self._addresses = torch.tensor(rows, device="cpu")
        hidden, width, heads, kv_heads, head_dim, scaling = _sizes(inner)
        self._hidden, self.dtype = hidden, inner.layers[0].self_attn.q_proj.weight.dtype
        self._constants = (
            *(len(rows), hidden, width, heads, kv_heads, head_dim),
            *(DTYPES[self.dtype], swin, inner.norm.variance_epsilon, QK_EPSILON, scaling),
            self._float_address(inner.norm.weight),
        )

    def _row(self, layer: Any, inner: Any) -> list[int]:
        """The addresses of ``fastdecode_layer``; those of keys and values are of each step."""
        modules = [module for _, module, _ in _linears(layer, inner)]
        _, _, heads, kv_heads, head_dim, _ = _sizes(inner)
        row = [self._address(m.weight) for m in modules]
        row += [self._float_address(m.bias) for m in modules]
        row += [self._float_address(norm.weight) for norm in _norms(layer)]
        for norm, count in ((layer.self_attn.q_norm, heads), (layer.self_attn.k_norm, kv_heads)):
            row += [self._float_address(part.expand(count, head_dim)) for part in (norm.weight, norm.bias)]
        return [*row, 0, 0]

    def _address(self, tensor: Tensor) -> int:
        """Of the memory that ``tensor`` has now, which is kept even if the tensor is given another."""
        self._kept.append(tensor.detach())
        return self._kept[-1].data_ptr()

    def _float_address(self, tensor: Tensor | None) -> int:
        """Of the tensor, or of a dense float32 copy; 0 for none."""
        return 0 if tensor is None else self._address(tensor.detach().float().contiguous())

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one id to every row of ``cache``, which has room for it but does not grow here.

        ``x`` (rows, hidden) are the ids' embeddings, which may be overwritten; ``cos`` and ``sin`` (rows, head_dim)
        as `ChameleonDecoder.rope` has them. Returns the normed hidden states (rows, hidden) float32.
        """
        return self._run(cache, cache.table, cache.lengths, x, cos, sin, chained=False)

    def prefill(self, cache: StreamCache, rows: Tensor, positions: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Store the keys and values of ids of rows that have pages for them: ``rows``, ``positions`` (n,) int64.

        An id sees those before it in its row: stored ones, and others of this call. A row's ids must come in order.
        """
        self._run(cache, cache.table[rows], positions, x, cos, sin, chained=True)

    def _run(
        self, cache: StreamCache, table: Tensor, lengths: Tensor, x: Tensor, cos: Tensor, sin: Tensor, *, chained: bool
    ) -> Tensor:
        x = x.to(torch.float32).contiguous()
        if x.shape != (len(lengths), self._hidden):
            raise ValueError(f"embeddings are {tuple(x.shape)}; they must be ({len(lengths)}, {self._hidden})")
        addresses = self._addresses.clone()  # of this call: another thread may be in a step of its own
        stored = [[k.data_ptr(), v.data_ptr()] for k, v in zip(cache.keys, cache.values, strict=True)]
        addresses[:, -2:] = torch.tensor(stored, device="cpu")
        self._step(
            (
                addresses.data_ptr(),
                *self._constants,
                torch.get_num_threads(),
                len(cache.keys[0]),
                cache.keys[0].shape[2],
                table.data_ptr(),
                table.stride(0),
                table.shape[1],
                chained,
                len(lengths),
                lengths.data_ptr(),
                cos.data_ptr(),
                sin.data_ptr(),
                x.data_ptr(),
            )
        )
        return x

    def head(self, weight: Tensor, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``weight`` (n, hidden), a `plain_tensor`; ``out`` is
        float32 and may be part of wider rows.
        """
        hidden = hidden.to(torch.float32).contiguous()
        self._linear(
            weight.data_ptr(),
            DTYPES[weight.dtype],
            0,
            hidden.data_ptr(),
            *hidden.shape,
            len(weight),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
