"""Chameleon's layers over a ragged batch of streams.

A plain model in float32 on the CPU takes its steps in the C++ library (`fastdecode.decoder.fused`). Otherwise, and in
prefill, the model's own modules multiply (so adapters and quantised layers keep working, and no weight is copied); what
lies between the multiplications is written out here for one new id per row: no masks over the whole batch, no cache
objects, no output wrappers. Covers both norm orders (before each block, or Swin's after it), grouped-query attention
and biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm, ChameleonMLP, ChameleonRMSNorm

from fastdecode.decoder.fused import FusedStep, why_not
from fastdecode.decoder.plain import plain, plain_tensor
from fastdecode.kv_cache import StreamCache

FUSED_BYTES = 2**20
"""Most bytes of a layer's q, k and v weights that are copied side by side, to multiply once in place of three times."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on halves: ``x`` (..., head_dim); ``cos`` and ``sin`` broadcast to it, the first half of ``sin``
    negated (so that swapping the halves of ``x`` is all that is left to do).
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class RMSNorm:
    """A layer's RMS norm in few operations (`F.rms_norm` takes three times as long for a few rows on a CPU).

    Another module in its place, or one in less than float32, is called as it is.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = plain(module, ChameleonRMSNorm) and module.weight.dtype == torch.float32
        self.epsilon = torch.tensor(getattr(module, "variance_epsilon", 0.0), device=module.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self.plain:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            scale = torch.addcmul(self.epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
            return (x * scale).mul_(self.module.weight)
        normed: Tensor = self.module(x)
        return normed


class Linear:
    """Plain linear modules that multiply the same input, as one multiplication; others as they are, one by one.

    Weights side by side are a copy, so only small ones (`FUSED_BYTES`) are put there; the rest stay where they are.
    """

    def __init__(self, *modules: Any) -> None:
        self.modules = modules
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if not all(plain(m, nn.Linear) for m in modules) or len({m.bias is None for m in modules}) > 1:
            return
        size = sum(m.weight.numel() * m.weight.element_size() for m in modules)
        if len(modules) == 1:
            self.weight, self.bias = modules[0].weight, modules[0].bias
        elif size <= FUSED_BYTES:
            self.weight = torch.cat([m.weight.detach() for m in modules])
            self.bias = None if modules[0].bias is None else torch.cat([m.bias.detach() for m in modules])

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to (..., sum of the modules' out)."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([m(x) for m in self.modules], -1) if len(self.modules) > 1 else self.modules[0](x)


class MLP:
    """Chameleon's gated MLP; another module in its place is called as it is."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.plain = plain(module, ChameleonMLP)
        if self.plain:
            self.act = module.act_fn
            self.gate, self.up, self.down = map(Linear, (module.gate_proj, module.up_proj, module.down_proj))

    def __call__(self, x: Tensor) -> Tensor:
        if self.plain:
            return self.down(self.act(self.gate(x)) * self.up(x))
        out: Tensor = self.module(x)
        return out


class Layer:
    """One layer of the model: its own modules, and its norms of queries and keys side by side.

    Chameleon norms each head of q and k over head_dim, with weight and bias per head; ``qk_norms`` are the two, each
    (heads + kv_heads, head_dim), small copies. It is empty where the norms are not plain: they are called as they are.
    """

    def __init__(self, module: Any, heads: int, kv_heads: int, head_dim: int) -> None:
        attention = module.self_attn
        self.qkv = Linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.mlp, self.scaling = Linear(attention.o_proj), MLP(module.mlp), attention.scaling
        self.norm_attention, self.norm_mlp = RMSNorm(module.input_layernorm), RMSNorm(module.post_attention_layernorm)
        self.q_norm, self.k_norm, self.heads = attention.q_norm, attention.k_norm, (heads, kv_heads)
        self.qk_norms: list[Tensor] = []
        if all(plain(norm, ChameleonLayerNorm) for norm in (self.q_norm, self.k_norm)):
            pairs = ((self.q_norm, heads), (self.k_norm, kv_heads))
            for name in ("weight", "bias"):
                parts = [getattr(norm, name).detach().expand(n, head_dim) for norm, n in pairs]
                self.qk_norms.append(torch.cat(parts))

    def norm_heads(self, both: Tensor) -> Tensor:
        """Queries and keys (..., heads + kv_heads, head_dim), each head normed."""
        if not self.qk_norms:
            q, k = both.split(self.heads, -2)
            return torch.cat((self.q_norm(q), self.k_norm(k)), -2)
        weight, bias = self.qk_norms
        return torch.addcmul(bias, F.layer_norm(both, both.shape[-1:], eps=1e-5), weight)


class ChameleonDecoder:
    """Prefill and decode steps of one model; holds no state of any sequence. For one thread at a time.

    Calls a layer's modules, not the layer nor its ``self_attn``: hooks on these two have no effect.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        inner = model.model
        attention = inner.layers[0].self_attn
        self.heads, self.kv_heads = attention.num_heads, attention.num_key_value_heads
        self.head_dim, self.grouped = attention.head_dim, self.heads != self.kv_heads
        self.embed, self.norm, self.head = inner.embed_tokens, RMSNorm(inner.norm), model.lm_head
        self.layers = [Layer(layer, self.heads, self.kv_heads, self.head_dim) for layer in inner.layers]
        self.swin = bool(model.config.swin_norm)
        self.device, self.dtype = inner.embed_tokens.weight.device, inner.embed_tokens.weight.dtype
        self._rope: tuple[Tensor, Tensor] | None = None
        self._logits: Tensor | None = None
        self._fused: FusedStep | None = None
        if why_not(inner) is None:
            self._fused = FusedStep(inner, [layer.qk_norms for layer in self.layers], self.swin)
        self._plain_head = plain(self.head, nn.Linear) and self.head.bias is None
        self._plain_embed = plain(self.embed, nn.Embedding)

    @property
    def fused(self) -> bool:
        """Whether a step is one call of the C++ library."""
        return self._fused is not None

    def new_cache(self) -> StreamCache:
        return StreamCache(len(self.layers), self.kv_heads, self.head_dim, self.dtype, self.device)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for `rotate`, each ``(*positions.shape, 1, head_dim)``, by the model's own rotary embedding."""
        rotary = self.model.model.rotary_emb
        if "dynamic" in rotary.rope_type or rotary.rope_type == "longrope":  # its table depends on the longest position
            cos, sin = self._rope_table(positions.view(-1))
            shape = (*positions.shape, 1, self.head_dim)
            return cos.view(shape), sin.view(shape)
        longest = int(positions.max())
        if self._rope is None or self._rope[0].shape[0] <= longest:
            self._rope = self._rope_table(torch.arange(max(512, 2 * longest), device=self.device))
        cos, sin = self._rope
        return cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)

    def _rope_table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        cos, sin = self.model.model.rotary_emb(like, position_ids=positions.view(1, -1))
        half = self.head_dim // 2
        return cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def _project(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (..., heads, head_dim), k and v (..., kv_heads, head_dim), normed and rotated; ``x`` (..., hidden)."""
        qkv = layer.qkv(x).unflatten(-1, (-1, self.head_dim))
        both, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), -2)
        q, k = rotate(layer.norm_heads(both), cos, sin).split((self.heads, self.kv_heads), -2)
        return q, k, v

    def _finish(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a layer: output projection, residual, MLP, residual, in the layer's norm order."""
        if self.swin:
            x = x + layer.norm_attention(layer.out(attended))
            return x + layer.norm_mlp(layer.mlp(x))
        x = x + layer.out(attended)
        return x + layer.mlp(layer.norm_mlp(x))

    @torch.inference_mode()
    def prefill(self, cache: StreamCache, prompts: Sequence[Sequence[int]]) -> slice:
        """Append one row per prompt and fill its keys and values. Prompts may be empty; returns the rows.

        The prompts' last hidden states are not computed: the id that follows a prompt goes through `step`.
        """
        lengths = torch.tensor([len(p) for p in prompts], dtype=torch.long, device=self.device)
        rows = cache.add(lengths)
        width = max(map(len, prompts), default=0)
        if width == 0:
            return rows
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        cos, sin = self.rope(torch.arange(width, device=self.device))
        x = self.embed(ids.to(self.device))
        for i, layer in enumerate(self.layers):
            normed = x if self.swin else layer.norm_attention(x)
            q, k, v = (t.transpose(1, 2) for t in self._project(layer, normed, cos, sin))
            cache.keys[i][rows, :, :width], cache.values[i][rows, :, :width] = k, v
            if i == len(self.layers) - 1:
                break
            attended = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=layer.scaling, enable_gqa=self.grouped
            )
            x = self._finish(layer, x, attended.transpose(1, 2).reshape(*x.shape[:2], -1))
        return rows

    @torch.inference_mode()
    def step(self, cache: StreamCache, tokens: Tensor) -> Tensor:
        """Feed one id to every live row: ``tokens`` (rows,) int64. Returns normed hidden states (rows, hidden)."""
        cache.reserve(cache.rows, cache.longest + 1)
        cos, sin = self.rope(cache.lengths)
        if self._fused is not None:
            x = self.embed(tokens)
            x = self._fused(cache, x if self._plain_embed else x.clone(), cos, sin)
            cache.grow()
            return x
        places, mask = cache.places(), self._mask(cache)
        x = self.embed(tokens)
        for i, layer in enumerate(self.layers):
            normed = x if self.swin else layer.norm_attention(x)
            q, k, v = self._project(layer, normed, cos, sin)
            keys, values = cache.write(i, places, k, v)
            x = self._finish(layer, x, self._attend(q, keys, values, mask, layer.scaling))
        cache.grow()
        return self.norm(x)

    def _mask(self, cache: StreamCache) -> Tensor | None:
        """What `_attend` adds or selects by so that a row sees its own ids only; None for a single row."""
        if cache.rows == 1:
            return None
        seen = torch.arange(cache.longest + 1, device=self.device) <= cache.lengths[:, None]
        if self.dtype != torch.float32:
            return seen[:, None, None]
        hidden = torch.zeros(seen.shape, device=self.device).masked_fill_(~seen, -torch.inf)
        return hidden.repeat_interleave(self.kv_heads, 0).unsqueeze(1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Attention of one new id per row: ``q`` (rows, heads, head_dim), ``keys`` and ``values`` (rows, kv_heads,
        window, head_dim), to (rows, hidden). In float32 by three plain products, which is quickest for few rows.
        """
        rows = len(q)
        if self.dtype != torch.float32:
            attended = F.scaled_dot_product_attention(
                q.unsqueeze(2), keys, values, attn_mask=mask, scale=scale, enable_gqa=self.grouped
            )
            return attended.reshape(rows, -1)
        queries = q.reshape(rows * self.kv_heads, -1, self.head_dim)
        keys = keys.flatten(0, 1).transpose(1, 2)
        scores = torch.bmm(queries * scale, keys) if mask is None else torch.baddbmm(mask, queries, keys, alpha=scale)
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(rows, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, span: tuple[int, int] | None = None) -> Tensor:
        """Logits (rows, vocab) in the model's dtype; with ``span`` only ids in [lo, hi) are computed, and the rest of
        the result is old: read it through sets inside ``span`` only. The next call may overwrite the result.
        """
        if not self._plain_head:
            whole: Tensor = self.head(hidden)
            return whole
        weight = self.head.weight
        fused = self._fused if plain_tensor(weight) else None
        if span is None and fused is None:
            return F.linear(hidden, weight)
        vocab = weight.shape[0]
        if self._logits is None or self._logits.shape[0] < len(hidden) or self._logits.dtype != hidden.dtype:
            self._logits = torch.empty((len(hidden), vocab), dtype=hidden.dtype, device=hidden.device)
        out, (lo, hi) = self._logits[: len(hidden)], span or (0, vocab)
        if fused is not None:
            fused.head(weight[lo:hi], hidden, out[:, lo:hi])
        else:
            out[:, lo:hi] = F.linear(hidden, weight[lo:hi])
        return out
