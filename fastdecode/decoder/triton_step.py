"""A decode step by Triton, for GPUs: fused (`fused_step`) where its kernels read the matrices, and for up to 16 rows of
bfloat16; else as a sequence of `fastdecode.ops` operations, each of them a kernel.

Matrices are read from the model's own memory. Norms and biases are copied to float32.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.activations import activation_of
from fastdecode.decoder.classes import Sizes, epsilon_of, factors_of, head_norms
from fastdecode.decoder.fused_step import FusedStep, fused_layer, head_product
from fastdecode.decoder.quantised import matrix_of
from fastdecode.decoder.step_operations import FEW_ROWS, HALVES, StepOperations, by_torch
from fastdecode.ops.backends import choose_step_backend
from fastdecode.ops.linear.triton import read_by_products
from fastdecode.ops.pages import Pages
from fastdecode.ops.swiglu.activations import ACTIVATIONS


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
        matrices = [m for layer in self.layers for m in (*layer.qkv, layer.out, *layer.gate_up, layer.down)]
        self._has_halves = any(m.weight.data.dtype in HALVES for m in matrices)  # cuBLAS multiplies many rows with them
        self._fused_step: FusedStep | Literal[False] | None = None

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
        rows = len(x)
        cos, sin = cos.view(rows, -1), sin.view(rows, -1)
        fused = self._fused(x)
        if fused is not None:
            layers = fused.after_norms if self.swin else fused.before_norms
            return self.run.norm(layers(cache, x.contiguous(), cos, sin), self.norm)
        x, after = x.float(), cache.lengths + 1
        run, first = self.run, self.layers[0]
        normed = x if self.swin else run.norm(x, first.norm_attention)
        for number, layer in enumerate(self.layers):
            attended = self._attend(cache, number, normed, cos, sin, after)
            if self.swin:
                x = x + run.norm(run.multiply(attended, layer.out), layer.norm_attention)
                x = x + run.norm(self._mlp(layer, x), layer.norm_mlp)
                normed = x
            else:
                last = number + 1 == len(self.layers)
                following = self.norm if last else self.layers[number + 1].norm_attention
                normed, x = run.norm_of_sum(run.multiply(attended, layer.out), x, layer.norm_mlp)
                normed, x = run.norm_of_sum(self._mlp(layer, normed), x, following)
        return run.norm(x, self.norm) if self.swin else normed

    def _fused(self, x: Tensor) -> FusedStep | None:
        """The fused step for rows ``x``; None where operations follow each other."""
        if choose_step_backend(self.backend, x.device) != "triton":
            return None
        if self._fused_step is None:
            layers = [fused_layer(layer) for layer in self.layers]
            found = [layer for layer in layers if layer is not None]
            numbers = (self.sizes.scaling, self.epsilon, self.head_epsilon, ACTIVATIONS[self.run.activation])
            self._fused_step = FusedStep(found, *numbers) if len(found) == len(layers) else False
        if self._fused_step is False or (self._has_halves and x.is_cuda and len(x) > FEW_ROWS):
            return None
        return self._fused_step

    def _attend(self, cache: StepRows, number: int, normed: Tensor, cos: Tensor, sin: Tensor, after: Tensor) -> Tensor:
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
        return self.run.attend(queries, Pages(keys, values, cache.page_table, after), self.sizes.scaling)

    def _mlp(self, layer: StepLayer, x: Tensor) -> Tensor:
        return self.run.multiply(self.run.swiglu(self.run.multiply(x, *layer.gate_up)), layer.down)

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``matrix`` of n features; ``out`` may be a slice of
        wider rows.
        """
        by_products = choose_step_backend(self.backend, hidden.device) == "triton" and not by_torch(hidden, [matrix])
        read = read_by_products([matrix]) if by_products else None
        if read is None:
            out.copy_(self.run.multiply(hidden, matrix))
        elif len(hidden):
            head_product(hidden, read, out)
