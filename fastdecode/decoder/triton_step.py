"""A decode step as a sequence of `fastdecode.ops` operations. It is used on a GPU, where each operation is a kernel.

Matrices are read from the model's own memory. Norms and biases are copied to float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.activations import activation_of
from fastdecode.decoder.classes import Sizes, epsilon_of, factors_of, head_norms
from fastdecode.decoder.quantised import matrix_of
from fastdecode.decoder.step_operations import Factor, StepOperations
from fastdecode.ops.pages import Pages


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


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _stored(matrix: ops.Matrix) -> list[Tensor]:
    """The tensors that a matrix is read from."""
    if isinstance(matrix.weight, ops.Int4Rows):
        return matrix.weight.tensors
    return [part for part in (matrix.weight.data, matrix.scale) if part is not None]


class TritonStep:
    """A step of a model whose modules are plain. ``backend``: of `fastdecode.ops`; None: the default of the device.

    Takes and returns what `CpuStep` does. It reads matrices in place, so a change of their values takes effect. Make a
    new `TritonStep` after replacing a matrix (``model.to``).
    """

    def __init__(self, inner: Any, swin: bool, backend: str | None = None) -> None:
        first = inner.layers[0]
        self.swin, self.backend, self.sizes = swin, backend, Sizes.of(first)
        self.epsilon, self.norm = epsilon_of(inner.norm), _float(factors_of(inner.norm))
        self.run = StepOperations(backend, self.epsilon, activation_of(first.mlp.act_fn))
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
            norm_attention=_float(factors_of(layer.input_layernorm)),
            norm_mlp=_float(factors_of(layer.post_attention_layernorm)),
            head_norms=norms,
        )

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that are read from the model's memory, and the copied ones."""
        read, copied = [], [self.norm]
        for layer in self.layers:
            for matrix in (*layer.qkv, layer.out, *layer.gate_up, layer.down):
                read += _stored(matrix)
                copied += [] if matrix.bias is None else [matrix.bias]
            copied += [layer.norm_attention, layer.norm_mlp, *layer.head_norms.values()]
        return read, copied

    def _numbers(self) -> tuple[Any, ...]:
        return self.swin, self.epsilon, self.head_epsilon, self.sizes, self.run.activation, self.backend

    @torch.inference_mode()
    def stand_in_for(self, other: TritonStep) -> bool:
        """If both read the same matrices, copy the norms and biases of ``other`` and return True; else return False."""
        (read, mine), (its_read, its) = self._tensors(), other._tensors()
        if self._numbers() != other._numbers():
            return False
        if [(t.data_ptr(), t.dtype, t.shape) for t in read] != [(t.data_ptr(), t.dtype, t.shape) for t in its_read]:
            return False
        if [t.shape for t in mine] != [t.shape for t in its]:
            return False
        torch._foreach_copy_(mine, its)
        return True

    @torch.inference_mode()
    def __call__(self, cache: StepRows, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one token to every row of ``cache``. The cache must have room for it; the caller grows the cache.

        ``x`` (rows, hidden): the tokens' embeddings. ``cos`` and ``sin`` (rows, …, head_dim): from `Decoder.rope`.
        Returns the normed hidden states (rows, hidden) float32.
        """
        x, rows = x.float(), len(x)
        cos, sin = cos.view(rows, -1), sin.view(rows, -1)
        after = cache.lengths + 1
        run, first = self.run, self.layers[0]
        normed = Factor(x) if self.swin else run.norm(x, first.norm_attention, first.qkv)
        for number, layer in enumerate(self.layers):
            attended = self._attend(cache, number, normed, cos, sin, after)
            last = number + 1 == len(self.layers)
            if self.swin:
                x = x + run.norm(run.multiply(attended, layer.out), layer.norm_attention).x
                x = x + run.norm(self._mlp(layer, Factor(x)), layer.norm_mlp).x
                normed = Factor(x)
            else:
                normed, x = run.norm_of_sum(run.multiply(attended, layer.out), x, layer.norm_mlp, layer.gate_up)
                following = self.norm if last else self.layers[number + 1].norm_attention
                matrices = [] if last else self.layers[number + 1].qkv
                normed, x = run.norm_of_sum(self._mlp(layer, normed), x, following, matrices)
        return run.norm(x, self.norm).x if self.swin else normed.x

    def _attend(self, cache: StepRows, number: int, normed: Factor, cos: Tensor, sin: Tensor, after: Tensor) -> Factor:
        """Store the new tokens' keys and values, then attend: (rows, heads * head_dim)."""
        layer, keys, values = self.layers[number], cache.keys[number], cache.values[number]
        queries = ops.rope_append(
            self.run.multiply(normed, *layer.qkv),
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
        pages = Pages(keys, values, cache.page_table, after)
        return self.run.attend(queries, pages, self.sizes.scaling, layer.out)

    def _mlp(self, layer: StepLayer, x: Factor) -> Tensor:
        gated = self.run.swiglu(self.run.multiply(x, *layer.gate_up), layer.down)
        return self.run.multiply(gated, layer.down)

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``matrix`` of n features; ``out`` may be a slice of
        wider rows.
        """
        out.copy_(self.run.multiply(Factor(hidden), matrix))
