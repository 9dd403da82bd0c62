"""The modules of a layer as the PyTorch step calls them: linear modules, norms and MLPs in few operations each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm

from fastdecode.decoder.classes import DECODED, QK_EPSILON, Sizes, epsilon_of, factors_of, head_norms
from fastdecode.decoder.plain import plain, plain_linear

RMS_NORMS, MLPS = tuple(f.norm for f in DECODED), tuple(f.mlp for f in DECODED)

FUSED_BYTES = 2**20
"""Up to so many bytes of a layer's q, k and v weights are copied side by side: one product then replaces three."""


class RMSNorm:
    """A layer's RMS norm in few operations (`F.rms_norm` takes three times as long for a few rows on a CPU).

    A module of another class, or with weights below float32, is called itself.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = plain(module, *RMS_NORMS) and module.weight.dtype == torch.float32
        if self.plain:
            self.epsilon = torch.tensor(epsilon_of(module), dtype=torch.float32, device=module.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self.plain:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            scale = torch.addcmul(self.epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
            return (x * scale).mul_(factors_of(self.module))
        normed: Tensor = self.module(x)
        return normed


class Linear:
    """Linear modules with the same input. Small plain ones are computed as one product; others one by one.

    One product needs a copy of the weights side by side, so only weights up to `FUSED_BYTES` are copied.
    """

    def __init__(self, *modules: Any) -> None:
        self.modules = modules
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if not all(map(plain_linear, modules)) or len({m.bias is None for m in modules}) > 1:
            return
        size = sum(m.weight.numel() * m.weight.element_size() for m in modules)
        if len(modules) == 1:
            self.weight, self.bias = modules[0].weight, modules[0].bias
        elif size <= FUSED_BYTES:
            self.weight = torch.cat([m.weight.detach() for m in modules])
            self.bias = None if modules[0].bias is None else torch.cat([m.bias.detach() for m in modules])

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to (..., sum of the modules' output features)."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([m(x) for m in self.modules], -1) if len(self.modules) > 1 else self.modules[0](x)


class MLP:
    """A gated MLP; a module of another class is called itself."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = plain(module, *MLPS)
        if self.plain:
            self.act = module.act_fn
            self.gate, self.up, self.down = map(Linear, (module.gate_proj, module.up_proj, module.down_proj))

    def __call__(self, x: Tensor) -> Tensor:
        if self.plain:
            return self.down(self.act(self.gate(x)) * self.up(x))
        out: Tensor = self.module(x)
        return out


class Layer:
    """One layer of the model: its modules, and its norms of queries and keys side by side.

    Chameleon normalises each head of q and k over head_dim, with weight and bias per head. ``qk_norms`` holds copies of
    both, each (heads + kv_heads, head_dim). It is empty without norms, and for other norms: these are called.
    """

    def __init__(self, module: Any, sizes: Sizes) -> None:
        attention = module.self_attn
        self.qkv = Linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.mlp, self.scaling = Linear(attention.o_proj), MLP(module.mlp), attention.scaling
        self.norm_attention, self.norm_mlp = RMSNorm(module.input_layernorm), RMSNorm(module.post_attention_layernorm)
        self.heads, self.norms = (sizes.heads, sizes.kv_heads), head_norms(attention)
        self.qk_norms: list[Tensor] = []
        if self.norms is not None and all(plain(norm, ChameleonLayerNorm) for norm in self.norms):
            for name in ("weight", "bias"):
                pairs = zip(self.norms, self.heads, strict=True)
                parts = [getattr(norm, name).detach().expand(n, sizes.head_dim) for norm, n in pairs]
                self.qk_norms.append(torch.cat(parts))

    def norm_heads(self, both: Tensor) -> Tensor:
        """Queries and keys (..., heads + kv_heads, head_dim), each head normed."""
        if self.qk_norms:
            weight, bias = self.qk_norms
            return torch.addcmul(bias, F.layer_norm(both, both.shape[-1:], eps=QK_EPSILON), weight)
        if self.norms is None:
            return both
        parts = zip(self.norms, both.split(self.heads, -2), strict=True)
        return torch.cat([norm(part) for norm, part in parts], -2)
