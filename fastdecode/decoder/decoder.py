"""A model's layers over a batch of sequences of different lengths.

For a plain model on the CPU, the C++ library computes a whole step (`fastdecode.decoder.cpu_step`); on a GPU, Triton
kernels do (`fastdecode.decoder.triton_step`). Otherwise, and in prefill, the model's own linear modules are called, so
adapters and quantised layers keep working and no weight is copied. This file implements the operations between them. It
supports both norm orders (before attention and MLP, or after them as in Swin), grouped-query attention and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.chameleon.modeling_chameleon import ChameleonSwinDecoderLayer

from fastdecode import ops
from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.base import PREFILL_IDS, BaseDecoder, Filling, padded_ids, parts
from fastdecode.decoder.classes import EMBEDDINGS, Sizes, inner_of, scale_of
from fastdecode.decoder.cpu_step import CpuStep
from fastdecode.decoder.cuda_graph import CapturedSteps, cuda_graph
from fastdecode.decoder.layers import Layer, RMSNorm
from fastdecode.decoder.own_tokens import OwnParts
from fastdecode.decoder.plain import plain, plain_linear, plain_tensor
from fastdecode.decoder.quantised import matrix_of, of_small, small_of, unsupported_small, unsupported_stored
from fastdecode.decoder.support import unsupported_by_triton, unsupported_reason
from fastdecode.decoder.triton_step import StepRows, TritonStep
from fastdecode.decoder.vectors import embedded
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.ops.backends import core
from fastdecode.ops.embed.cpu import embed_cpu

PREFILL_STEP_IDS = 128
"""The maximum number of tokens in one pass of prefill by the C++ step: enough to make good use of each read of the
weights.
"""


def torch_multiplies_slowly(dtype: torch.dtype) -> bool:
    """Whether torch's matrix products of ``dtype`` are slower than the C++ step's on this processor, also of many rows:
    those of 16 bits, where it cannot multiply bfloat16 (a fourth as fast with AVX2).
    """
    return dtype.itemsize == 2 and core().cpu_isa() != "avx512bf16"


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on halves of ``x`` (..., head_dim). ``cos`` and ``sin`` broadcast to ``x``. The first half of
    ``sin`` is negated, so the function only has to swap the halves of ``x``.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _padded(x: Tensor, there: Tensor) -> Tensor:
    """Pad ``x`` (tokens, heads, head_dim) to (rows, heads, width, head_dim). Its tokens go where ``there`` (rows,
    width) is True; the rest is zero.
    """
    padded = x.new_zeros(*there.shape, *x.shape[1:])
    padded[there] = x
    return padded.transpose(1, 2)


class Decoder(BaseDecoder):
    """Prefill and decode steps by kernels, or by the modules of the layers.

    It does not call a layer, its ``self_attn``, the language model or the model: only for a model of which
    `needs_forward` returns None does it compute what they do; `decoder_for` chooses. TypeError for a model that
    `classes_of` does not accept.
    """

    def __init__(self, model: Any, deterministic: bool = False) -> None:
        self.model, self.deterministic = model, deterministic
        inner = self.inner = inner_of(model)
        sizes = Sizes.of(inner.layers[0])
        self.heads, self.kv_heads, self.head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
        self.grouped = self.heads != self.kv_heads
        self.embed, self.norm, self.head = inner.embed_tokens, RMSNorm(inner.norm), model.lm_head
        self.layers = [Layer(layer, sizes) for layer in inner.layers]
        self.layer_count = len(self.layers)
        self.swin = isinstance(inner.layers[0], ChameleonSwinDecoderLayer)
        self.device, self.dtype = inner.embed_tokens.weight.device, inner.embed_tokens.weight.dtype
        self.autocast = Autocast(self.device.type, None)
        self._rope: Tensor | None = None
        kind: str = inner.rotary_emb.rope_type
        self.rope_depends_on_length = "dynamic" in kind or kind == "longrope"
        self.logits_buffer: Tensor | None = None
        self._own = OwnParts.of(model)
        self._plain_embed = plain(self.embed, *EMBEDDINGS)
        self._plain_head = plain_linear(self.head) and self.head.bias is None
        self._small_matrix: ops.Matrix | None = None
        self._parts_of_head: dict[tuple[int, int], ops.Matrix] = {}
        self._place_of_head = 0
        self._fast_step: CpuStep | TritonStep | None = None
        if unsupported_reason(model) is None:
            self._fast_step = CpuStep(inner, self.swin, self.dtype)
            if self._small_head(unsupported_small):
                self._small_matrix = ops.Matrix(small_of(self.head.weight))
        elif self.device.type == "cuda" and unsupported_by_triton(model) is None:
            self._take_steps_by(TritonStep(inner, self.swin))
            if self.uncaptured_reason is None:
                self.captured = CapturedSteps(self, cuda_graph)

    @property
    def uses_cpu_step(self) -> bool:
        return isinstance(self._fast_step, CpuStep)

    @property
    def prefills_in_steps(self) -> bool:
        """Whether prompts too are computed by the C++ step."""
        return self.deterministic or (self.uses_cpu_step and torch_multiplies_slowly(self.dtype))

    @property
    def uses_triton_step(self) -> bool:
        return isinstance(self._fast_step, TritonStep)

    def rope(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin for `rotate`, each ``(*positions.shape, 1, head_dim)``, from the model's own rotary embedding.
        ``longest``: the maximum of ``positions``. float32 for a C++ or Triton step, else the model's dtype.
        """
        flat, shape = positions.reshape(-1), (*positions.shape, 1, self.head_dim)
        if self.rope_depends_on_length:
            both = self._rope_table(flat)
        else:
            both = self.rope_tables(longest).index_select(1, flat)
        return both[0].view(shape), both[1].view(shape)

    @property
    def uncaptured_reason(self) -> str | None:
        """Why Triton steps cannot be captured; None if they can."""
        if self.rope_depends_on_length:
            return "the rotation of a token depends on how many tokens there are"
        if not self._plain_embed:
            return "embed_tokens is not a plain embedding, or has hooks"
        if not self._plain_head and self._small_matrix is None:
            return "lm_head is not a plain nn.Linear without a bias, or has hooks"
        if self._own is not None and not self._own.plain:
            return "the head of image tokens, or what makes their embeddings, has hooks or unusual modules"
        return None

    def _take_steps_by(self, step: TritonStep) -> None:
        self._fast_step = step
        if self._small_head(lambda weight: unsupported_stored(weight, self.device.type)):
            self._small_matrix = matrix_of(self.head)

    def _small_head(self, unsupported: Callable[[Any], str | None]) -> bool:
        """Whether the head is of small weights that the step reads."""
        weight = getattr(self.head, "weight", None)
        plain_head = plain(self.head, nn.Linear) and self.head.bias is None and of_small(weight)
        return plain_head and unsupported(weight) is None

    def rope_tables(self, longest: int) -> Tensor:
        """cos and sin (2, positions, head_dim) for at least the positions 0 to ``longest``."""
        if self._rope is None or self._rope.shape[1] <= longest:
            self._rope = self._rope_table(torch.arange(max(512, 2 * longest), device=self.device))
        return self._rope

    def _rope_table(self, positions: Tensor) -> Tensor:
        dtype = self.dtype if self._fast_step is None else torch.float32
        like = torch.empty(0, dtype=dtype, device=self.device)
        cos, sin = self.inner.rotary_emb(like, position_ids=positions.view(1, -1))
        half = self.head_dim // 2
        return torch.stack((cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)))

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
    def _fill(self, work: Filling) -> None:
        fill = self._prefill_in_steps if self.prefills_in_steps else self._prefill_in_chunks
        fill(work)

    def _prefill_in_chunks(self, work: Filling) -> None:
        """Prefill by the model's own modules, one range of positions of all rows at a time."""
        ids = padded_ids(work.prompts).to(self.device)
        for part in parts(work.known, list(map(len, work.prompts)), PREFILL_IDS):
            self._prefill_chunk(work, ids, *part)

    def _prefill_chunk(
        self, work: Filling, ids: Tensor, prompts: list[int], starts: list[int], counts: list[int]
    ) -> None:
        """Prefill the tokens [starts, starts + counts) of some ``prompts`` (numbers). ``ids``: all prompts."""
        cache, first = work.cache, work.rows.start
        width = max(counts)
        chosen, begin, count = (torch.tensor(part, device=self.device) for part in (prompts, starts, counts))
        offsets = torch.arange(width, device=self.device)
        there = offsets < count[:, None]
        positions = (begin[:, None] + offsets).where(there, begin[:, None])
        longest = max(s + n for s, n in zip(starts, counts, strict=True))
        own = positions[there]  # matrix products use only real tokens; only attention is padded
        cos, sin = (t.to(self.dtype) for t in self.rope(own[None], longest))
        x = embedded(ids[chosen[:, None], positions][there][None], work.vectors, self._embeddings)
        slots = cache.pool.page_slots
        pages = cache.page_table[first + chosen].long()[:, : -(-longest // slots)]
        at = (positions // slots).expand_as(positions)
        place, slot = pages.gather(1, at)[there], (positions % slots)[there]
        fresh = not any(starts)
        seen = torch.arange(pages.shape[1] * slots, device=self.device)
        mask = None if fresh else (seen <= positions[..., None]).unsqueeze(1)
        blank = None if fresh else (seen >= (begin + count)[:, None])[:, None, :, None]
        for i, layer in enumerate(self.layers):
            normed = x if self.swin else layer.norm_attention(x)
            q, k, v = self._project(layer, normed, cos, sin)
            cache.keys[i][place, :, slot], cache.values[i][place, :, slot] = k[0], v[0]
            if i == len(self.layers) - 1:
                break
            q = _padded(q[0], there)
            k, v = (
                self._stored(cache, i, pages, blank)
                if blank is not None
                else (_padded(k[0], there), _padded(v[0], there))
            )
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=fresh, scale=layer.scaling, enable_gqa=self.grouped
            )
            x = self._finish(layer, x, attended.transpose(1, 2)[there].reshape(1, len(own), -1))

    def _stored(self, cache: StreamCache, layer: int, pages: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, kv_heads, slots, head_dim) of ``pages`` (rows, n), zero where ``blank``. Those slots
        were never written and may hold NaN, and zero times NaN is NaN.
        """
        found = []
        for stored in (cache.keys[layer], cache.values[layer]):
            taken = stored[pages].transpose(1, 2).flatten(2, 3)
            found.append(taken.masked_fill_(blank, 0.0))
        return found[0], found[1]

    def _prefill_in_steps(self, work: Filling) -> None:
        """Prefill by the C++ step, where the sums of a token depend only on its own row. Tokens are computed in order
        of position, so shared keys and values are stored before another row needs them.
        """
        if not isinstance(self._fast_step, CpuStep):
            raise RuntimeError(f"there is no C++ step of this model: {unsupported_reason(self.model)}")
        cache, rows, known, prompts = work[:4]
        wanted = sorted((p, rows.start + i) for i, prompt in enumerate(prompts) for p in range(known[i], len(prompt)))
        for begin in range(0, len(wanted), PREFILL_STEP_IDS):
            part = wanted[begin : begin + PREFILL_STEP_IDS]
            ids = torch.tensor([prompts[row - rows.start][p] for p, row in part], device=self.device)
            positions, numbers = (torch.tensor(column, device=self.device) for column in zip(*part, strict=True))
            cos, sin = self.rope(positions, part[-1][0])
            x = embedded(ids, work.vectors, self._embeddings).clone()
            self._fast_step.prefill(cache, numbers, positions, x, cos, sin)

    @torch.inference_mode()
    def step(self, cache: StreamCache, tokens: Tensor, draws: Sequence[bool] | None = None) -> Tensor:
        """Feed one token to every row: ``tokens`` (rows,) int64. Returns normed hidden states (rows, hidden), in
        float32 from a C++ or Triton step. ``PoolExhausted``, before any change, if there are too few pages.
        """
        cache.make_room()
        cos, sin = self.rope(cache.lengths, cache.longest)
        x = self._embedded(tokens)
        if self._fast_step is not None:
            x = self._fast_step(cache, x if self._plain_embed else x.clone(), cos, sin)
            cache.grow()
            return x
        slots = cache.pool.page_slots
        pages = cache.page_table.long()
        place = pages.gather(1, (cache.lengths // slots)[:, None])[:, 0]
        slot = cache.lengths % slots
        hidden = torch.arange(pages.shape[1] * slots, device=self.device) > cache.lengths[:, None]
        mask, blank = ~hidden[:, None, None], hidden[:, None, :, None]
        for i, layer in enumerate(self.layers):
            normed = x if self.swin else layer.norm_attention(x)
            q, k, v = self._project(layer, normed, cos, sin)
            cache.keys[i][place, :, slot], cache.values[i][place, :, slot] = k, v
            keys, values = self._stored(cache, i, pages, blank)
            attended = F.scaled_dot_product_attention(
                q.unsqueeze(2), keys, values, attn_mask=mask, scale=layer.scaling, enable_gqa=self.grouped
            )
            x = self._finish(layer, x, attended.reshape(len(x), -1))
        cache.grow()
        return self.norm(x)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """The tokens' embeddings, which the caller may overwrite if they are of a plain module."""
        if self._own is not None:
            return self._embeddings(tokens)
        weight, plain_embed = self.embed.weight, self._plain_embed and self.embed.max_norm is None
        if self.uses_cpu_step and plain_embed and tokens.dtype == torch.int64 and tokens.dim() == 1 and tokens.is_cpu:
            small, scale = isinstance(weight, ops.SmallTensor), scale_of(self.embed)
            if small or plain_tensor(weight):
                found = embed_cpu(tokens.contiguous(), weight.small if small else weight)
                if small or scale is not None:  # as the module rounds
                    found = found.to(self.dtype)
                return found if scale is None else found * scale
        return self._embeddings(tokens)

    def _embeddings(self, tokens: Tensor) -> Tensor:
        """Embeddings (…, hidden) of ``tokens`` (…) int64 by the model's own modules, in the model's dtype."""
        if self._own is None:
            return cast(Tensor, self.embed(tokens))
        return self._own.embeddings(tokens, self.embed, self._product).to(self.dtype)

    def layers_of_step(self, rows: StepRows, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The device part of a Triton `step`. It does not grow the cache."""
        assert isinstance(self._fast_step, TritonStep)
        return self._fast_step(rows, self._embeddings(tokens), cos, sin)

    def beside_layers(self) -> list[tuple[nn.Module, int, torch.dtype]]:
        """The other modules that `layers_of_step` and `logits` read, with address and dtype of their weights."""
        rotary = self.inner.rotary_emb
        head = self._small_matrix or ops.Matrix(self.head.weight)
        read = [(self.embed, self.embed.weight), (self.head, head.weight.data), (rotary, rotary.inv_freq)]
        read += [(self.embed, buffer) for buffer in self.embed.buffers()]
        read += [] if self._own is None else [(m, p) for m in self._own.modules for p in m.parameters(recurse=False)]
        return [(module, tensor.data_ptr(), tensor.dtype) for module, tensor in read]

    def stand_in_for(self, other: Decoder) -> bool:
        """Whether this decoder can take the steps of ``other``. If so, it copies its norms and biases."""
        mine, its = self._fast_step, other._fast_step
        if not isinstance(mine, TritonStep) or not isinstance(its, TritonStep):
            return False
        return self is other or mine.stand_in_for(its)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Logits (rows, vocab), in float32 with a C++ or Triton step, else in the model's dtype. With ``spans``, only
        tokens in their [lo, hi) are computed; the rest of the result is undefined and must not be read. The next call
        may overwrite the result.
        """
        if self._own is not None:
            return self._own.logits(hidden, spans, self._text_logits, self._product)
        return self._text_logits(hidden, spans)

    def _text_logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None) -> Tensor:
        """As `logits`, of the tokens of ``lm_head``."""
        matrix = self._small_matrix
        if matrix is None and not self._plain_head:
            whole: Tensor = self.head(hidden.to(self.dtype))
            return whole
        weight: Tensor = self.head.weight
        fused = self._fast_step if matrix is not None or plain_tensor(weight, self.device.type) else None
        if fused is None:
            hidden = hidden.to(weight.dtype)
            if spans is None:
                return F.linear(hidden, weight)
        vocab = weight.shape[0]
        dtype = torch.float32 if fused is not None else hidden.dtype
        if self.logits_buffer is None or self.logits_buffer.shape[0] < len(hidden) or self.logits_buffer.dtype != dtype:
            self.logits_buffer = torch.empty((len(hidden), vocab), dtype=dtype, device=hidden.device)
        out = self.logits_buffer[: len(hidden)]
        for lo, hi in spans or ((0, vocab),):
            if fused is not None:
                fused.head(self._part_of_head(lo, hi), hidden, out[:, lo:hi])
            else:
                out[:, lo:hi] = F.linear(hidden, weight[lo:hi])
        return out

    def _product(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a linear module beside the layers makes of ``x`` (…, in): (…, out). The C++ step's product gives the
        same bits whatever rows are beside.
        """
        part: Any = module
        if self.uses_cpu_step and plain_linear(part) and plain_tensor(part.weight):
            flat = x.to(torch.float32).reshape(-1, x.shape[-1])
            bias = None if part.bias is None else part.bias.float()
            return ops.linear(flat, part.weight, bias, backend="cpu").view(*x.shape[:-1], -1)
        dtypes = [parameter.dtype for parameter in part.parameters()]
        return cast(Tensor, part(x.to(dtypes[0]) if dtypes and x.is_floating_point() else x))

    def _part_of_head(self, lo: int, hi: int) -> ops.Matrix:
        """The features [lo, hi) of the head, which are kept as long as its weights are where they are."""
        whole = self._small_matrix
        place = self.head.weight.data_ptr() if whole is None else 0  # small weights never change
        if place != self._place_of_head:
            self._parts_of_head, self._place_of_head = {}, place
        part = self._parts_of_head.get((lo, hi))
        if part is None:
            part = ops.Matrix(self.head.weight[lo:hi]) if whole is None else whole.rows(lo, hi)
            self._parts_of_head[lo, hi] = part
        return part
