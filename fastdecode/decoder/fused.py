"""A whole decode step in one call of the C++ library, where the model is plain enough: float32 on the CPU.

The model's own weights are read where they lie; only the small norms of queries and keys are put side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.chameleon.modeling_chameleon import ChameleonMLP, ChameleonRMSNorm

from fastdecode.kv_cache import StreamCache
from fastdecode.ops.backends import core, unavailable

if TYPE_CHECKING:
    from fastdecode.decoder.chameleon import Layer

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


def hooked(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _linears(module: Any) -> list[Any]:
    """The seven linear modules of a layer, in the order of `LINEAR`."""
    attention, mlp = module.self_attn, module.mlp
    inside = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *inside]


def plain_matrix(weight: Tensor) -> bool:
    """Whether the C++ library can read ``weight``: dense float32 on the CPU."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def why_not(inner: nn.Module) -> str | None:
    """Why a Chameleon's layers (``model.model``) cannot be run as one; None if they can."""
    reason = unavailable("cpu")
    if reason is not None:
        return reason
    layers: Any = inner.layers
    norms: list[tuple[str, Any]] = [("norm", inner.norm)]
    for i, layer in enumerate(layers):
        names = ("input_layernorm", "post_attention_layernorm")
        norms += [(f"layers.{i}.{name}", getattr(layer, name)) for name in names]
        mlp = layer.mlp
        if type(mlp) is not ChameleonMLP or hooked(mlp):
            return f"layers.{i}.mlp is not Chameleon's own, or has hooks"
        if type(mlp.act_fn) not in (nn.SiLU, SiLUActivation):
            return f"layers.{i}.mlp.act_fn is {type(mlp.act_fn).__name__}, not SiLU"
        for name, linear in zip(LINEAR, _linears(layer), strict=True):
            if type(linear) is not nn.Linear or hooked(linear):
                return f"layers.{i}'s {name} projection is not a plain nn.Linear, or has hooks"
    for name, norm in norms:
        if type(norm) is not ChameleonRMSNorm or hooked(norm):
            return f"{name} is not Chameleon's RMS norm, or has hooks"
    if len({norm.variance_epsilon for _, norm in norms}) > 1:
        return "its norms differ in their epsilon"
    for name, weight in inner.named_parameters():
        if name.startswith(("embed_tokens", "layers", "norm")) and not plain_matrix(weight):
            what = "" if weight.is_contiguous() else "not contiguous, "
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"{name} is {what}{dtype} on {weight.device}, not dense float32 on the CPU"
    return None


class FusedStep:
    """`ChameleonDecoder`'s step for a model of which `why_not` says nothing.

    ``ValueError`` if the environment variable FASTDECODE_CPU_ISA names no instruction set of this machine.
    """

    def __init__(self, inner: Any, layers: Sequence[Layer], swin: bool) -> None:
        core().cpu_isa()  # raises if FASTDECODE_CPU_ISA cannot be had
        self._step, self._linear = core().decode_step, core().linear
        attention = inner.layers[0].self_attn
        self._kept: list[Tensor] = []  # the addresses below are theirs
        rows = []
        for module, layer in zip(inner.layers, layers, strict=True):
            linears = _linears(module)
            norms = (module.input_layernorm.weight, module.post_attention_layernorm.weight)
            tensors = [
                *(m.weight for m in linears),
                *(m.bias for m in linears),
                *norms,
                layer.weight.contiguous(),
                layer.bias.contiguous(),
            ]
            self._kept += [t for t in tensors if t is not None]
            rows.append([0 if t is None else t.data_ptr() for t in tensors] + [0, 0])
        self._addresses = torch.tensor(rows)
        self._norm = inner.norm.weight
        self._shape = (
            len(rows),
            inner.layers[0].self_attn.q_proj.in_features,
            inner.layers[0].mlp.gate_proj.out_features,
            attention.num_heads,
            attention.num_key_value_heads,
            attention.head_dim,
            swin,
            inner.norm.variance_epsilon,
            attention.scaling,
        )

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one id to every row of ``cache``, which has room for it but does not grow here.

        ``x`` (rows, hidden) float32 embeddings, overwritten by the normed hidden states and returned; ``cos`` and
        ``sin`` (rows, head_dim) as `ChameleonDecoder.rope` has them.
        """
        stored = [[k.data_ptr(), v.data_ptr()] for k, v in zip(cache.keys, cache.values, strict=True)]
        self._addresses[:, -2:] = torch.tensor(stored)
        self._step(
            self._addresses.data_ptr(),
            *self._shape,
            self._norm.data_ptr(),
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
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``weight`` (n, hidden), all float32; ``out`` may be part
        of wider rows.
        """
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
