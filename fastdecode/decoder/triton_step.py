"""A decode step as a sequence of `fastdecode.ops` operations. It is used on a GPU, where each operation is a kernel.

Matrices are read from the model's own memory. Norms and biases are copied to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.family import Sizes, epsilon_of, head_norms
from fastdecode.decoder.quantised import matrix_of


class StepRows(Protocol):
    """The part of a cache that a step needs: see `StreamCache`."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    page_table: Tensor


class StepLayer(NamedTuple):
    """The weights of a layer. ``head_norms``: keyword arguments of `fastdecode.ops.rope_append`."""

    qkv: list[ops.Matrix]
    out: ops.Matrix
    gate_up: list[ops.Matrix]
    down: ops.Matrix
    norm_attention: Tensor
    norm_mlp: Tensor
    head_norms: dict[str, Tensor]


FEW_ROWS = 16
"""Up to this many rows our own kernel multiplies; with more rows cuBLAS is faster, and is used."""

HALVES = (torch.bfloat16, torch.float16)


def many_rows(x: Tensor, matrices: Sequence[ops.Matrix], product: Callable[..., Tensor] = torch.mm) -> Tensor:
    """`fastdecode.ops.joint_linear` in torch: rounds x to the weights' dtype, and sums in float32."""
    parts = []
    for weight, bias, _ in matrices:
        part = product(x.to(weight.data.dtype), weight.data.t(), out_dtype=torch.float32)
        parts.append(part if bias is None else part + bias)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


class TritonStep:
    """A step of a model whose modules are plain. ``backend``: of `fastdecode.ops`; None: the default of the device.

    Takes and returns what `CpuStep` does. It reads matrices in place, so a change of their values takes effect. Make a
    new `TritonStep` after replacing a matrix (``model.to``).
    """

    def __init__(self, inner: Any, swin: bool, backend: str | None = None) -> None:
        first = inner.layers[0]
        self.swin, self.backend, self.sizes = swin, backend, Sizes.of(first)
        self.epsilon, self.norm = inner.norm.variance_epsilon, _float(inner.norm.weight)
        norms = head_norms(first.self_attn)
        self.head_epsilon = 1.0 if norms is None else epsilon_of(norms[0])
        self.layers = [self._layer(layer) for layer in inner.layers]

    def _layer(self, layer: Any) -> StepLayer:
        attention, mlp = layer.self_attn, layer.mlp
        norms: dict[str, Tensor] = {}
        counts = {"q_norm": self.sizes.heads, "k_norm": self.sizes.kv_heads}
        for (name, heads), norm in zip(counts.items(), head_norms(attention) or (None, None), strict=True):
            for part, key in (("weight", name), ("bias", f"{name}_bias")):
                value = getattr(norm, part, None)
                if value is not None:
                    norms[key] = _float(value).expand(heads, self.sizes.head_dim).contiguous()
        return StepLayer(
            qkv=[matrix_of(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)],
            out=matrix_of(attention.o_proj),
            gate_up=[matrix_of(m) for m in (mlp.gate_proj, mlp.up_proj)],
            down=matrix_of(mlp.down_proj),
            norm_attention=_float(layer.input_layernorm.weight),
            norm_mlp=_float(layer.post_attention_layernorm.weight),
            head_norms=norms,
        )

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that are read from the model's memory, and the copied ones."""
        read, copied = [], [self.norm]
        for layer in self.layers:
            for matrix in (*layer.qkv, layer.out, *layer.gate_up, layer.down):
                read += [part for part in (matrix.weight.data, matrix.scale) if part is not None]
                copied += [] if matrix.bias is None else [matrix.bias]
            copied += [layer.norm_attention, layer.norm_mlp, *layer.head_norms.values()]
        return read, copied

    @torch.inference_mode()
    def stand_in_for(self, other: TritonStep) -> bool:
        """If both read the same matrices, copy the norms and biases of ``other`` and return True; else return False."""
        (read, mine), (its_read, its) = self._tensors(), other._tensors()
        if (self.swin, self.epsilon, self.head_epsilon, self.sizes, self.backend) != (
            *(other.swin, other.epsilon, other.head_epsilon, other.sizes, other.backend),
        ) or [(t.data_ptr(), t.dtype, t.shape) for t in read] != [(t.data_ptr(), t.dtype, t.shape) for t in its_read]:
            return False
        if [t.shape for t in mine] != [t.shape for t in its]:
            return False
        torch._foreach_copy_(mine, its)
        return True

    def _multiply(self, x: Tensor, *matrices: ops.Matrix) -> Tensor:
        """The products of ``x`` (rows, k) with the matrices, side by side."""
        if x.is_cuda and len(x) > FEW_ROWS and all(m.weight.data.dtype in HALVES for m in matrices):
            return many_rows(x, matrices)
        return ops.joint_linear(x, matrices, backend=self.backend)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.rms_norm(x, weight, self.epsilon, backend=self.backend)

    def _norm_of_sum(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return ops.rms_norm(x, weight, self.epsilon, residual=residual, backend=self.backend)

    @torch.inference_mode()
    def __call__(self, cache: StepRows, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one token to every row of ``cache``. The cache must have room for it; the caller grows the cache.

        ``x`` (rows, hidden): the tokens' embeddings. ``cos`` and ``sin`` (rows, …, head_dim): from `Decoder.rope`.
        Returns the normed hidden states (rows, hidden) float32.
        """
        x, rows = x.float(), len(x)
        cos, sin = cos.view(rows, -1), sin.view(rows, -1)
        after = cache.lengths + 1
        normed = x if self.swin else self._norm(x, self.layers[0].norm_attention)
        for number, layer in enumerate(self.layers):
            attended = self._attend(cache, number, normed, cos, sin, after)
            last = number + 1 == len(self.layers)
            following = self.norm if last else self.layers[number + 1].norm_attention
            if self.swin:
                x = x + self._norm(self._multiply(attended, layer.out), layer.norm_attention)
                normed = x = x + self._norm(self._mlp(layer, x), layer.norm_mlp)
            else:
                normed, x = self._norm_of_sum(self._multiply(attended, layer.out), x, layer.norm_mlp)
                normed, x = self._norm_of_sum(self._mlp(layer, normed), x, following)
        return self._norm(x, self.norm) if self.swin else normed

    def _attend(self, cache: StepRows, number: int, normed: Tensor, cos: Tensor, sin: Tensor, after: Tensor) -> Tensor:
        """Store the new tokens' keys and values, then attend: (rows, heads * head_dim)."""
        layer, keys, values = self.layers[number], cache.keys[number], cache.values[number]
        queries = ops.rope_append(
            self._multiply(normed, *layer.qkv),
            cos,
            sin,
            keys,
            values,
            cache.page_table,
            cache.lengths,
            **layer.head_norms,
            epsilon=self.head_epsilon,
            backend=self.backend,
        )
        found = ops.attend(queries, keys, values, cache.page_table, after, self.sizes.scaling, backend=self.backend)
        return found.flatten(1)

    def _mlp(self, layer: StepLayer, x: Tensor) -> Tensor:
        gated = ops.swiglu(self._multiply(x, *layer.gate_up), backend=self.backend)
        return self._multiply(gated, layer.down)

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``matrix`` of n features; ``out`` may be a slice of
        wider rows.
        """
        out.copy_(self._multiply(hidden, matrix))
