"""A step in few launches, by Triton: five for a layer, or seven where norms follow the products.

    product of queries, keys and values (norm before it folded in)
    attention, which rotates, appends and joins its own stretches
    output product, with the sum
    product of gate and up (norm folded in), with the activation
    down product, with the sum

It needs matrices that `fastdecode.triton_kernels.step_product` multiplies: of bfloat16, bytes or half bytes. Each
kernel writes the input of the next product as parts, see `fastdecode.triton_kernels.parts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdecode.ops.backends import record_backend
from fastdecode.ops.linear.triton import read_by_products
from fastdecode.ops.pages import Pages
from fastdecode.ops.rope_append import HeadNorm


class FusedLayer(NamedTuple):
    """The matrices as the kernels read them, and the norms of a layer; see `TritonStep`."""

    qkv: list[Any]
    out: list[Any]
    gate_up: list[Any]
    down: list[Any]
    norm_attention: Tensor
    norm_mlp: Tensor
    q_norm: HeadNorm
    k_norm: HeadNorm


def fused_layer(layer: Any) -> FusedLayer | None:
    """None if its matrices cannot be read so. ``layer``: a `StepLayer`."""
    found = [read_by_products(matrices) for matrices in (layer.qkv, [layer.out], layer.gate_up, [layer.down])]
    qkv, out, gate_up, down = found
    if qkv is None or out is None or gate_up is None or down is None:
        return None
    norms = (
        HeadNorm(layer.head_norms.get(name), layer.head_norms.get(f"{name}_bias")) for name in ("q_norm", "k_norm")
    )
    return FusedLayer(qkv, out, gate_up, down, layer.norm_attention, layer.norm_mlp, *norms)


class FusedStep:
    """The layers of a `TritonStep`. ``activation``: the number of the C interface."""

    def __init__(self, layers: list[FusedLayer], scaling: float, epsilon: float, head_epsilon: float, activation: int):
        self.layers, self.scaling, self.activation = layers, scaling, activation
        self.epsilon, self.head_epsilon = epsilon, head_epsilon

    def before_norms(self, cache: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Layers that norm what they multiply. Takes what `TritonStep` does; returns the sum after the last layer."""
        from fastdecode.triton_kernels.epilogue import Added, Gated, RowNorm
        from fastdecode.triton_kernels.residual import launch_residual
        from fastdecode.triton_kernels.step_product import launch_product, new_squares, parts_for

        rows, run = len(x), _Attention(self, cache, cos, sin)
        parts = parts_for(rows, self.layers[0].qkv)
        total, squares = launch_residual(x, following=self.layers[0].norm_attention, parts=parts, begins=True)
        for number, layer in enumerate(self.layers):
            assert squares is not None
            attended = run(number, parts, RowNorm(squares, self.epsilon))
            squares, parts = new_squares(rows, layer.out[0], x.device), parts_for(rows, layer.gate_up)
            total = _sum(attended, layer.out, Added(total, squares, layer.norm_mlp, parts))
            gated = Gated(self.activation, parts_for(rows, layer.down))
            launch_product(parts, rows, layer.gate_up, None, RowNorm(squares, self.epsilon), gated)
            if number + 1 == len(self.layers):
                return _sum(gated.parts, layer.down, Added(total))
            following = self.layers[number + 1]
            squares, parts = new_squares(rows, layer.down[0], x.device), parts_for(rows, following.qkv)
            total = _sum(gated.parts, layer.down, Added(total, squares, following.norm_attention, parts))
        return total

    def after_norms(self, cache: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As `before_norms`, for layers that norm what they add."""
        from fastdecode.triton_kernels.epilogue import Added, Gated
        from fastdecode.triton_kernels.residual import launch_residual
        from fastdecode.triton_kernels.step_product import launch_product, new_squares, parts_for

        rows, run = len(x), _Attention(self, cache, cos, sin)
        parts = parts_for(rows, self.layers[0].qkv)
        total, _ = launch_residual(x, parts=parts, begins=True)
        for number, layer in enumerate(self.layers):
            squares = new_squares(rows, layer.out[0], x.device)
            product = _product(run(number, parts), layer.out, Added(squares=squares), rows)
            parts = parts_for(rows, layer.gate_up)
            total, _ = launch_residual(total, (product, squares, layer.norm_attention, self.epsilon), parts=parts)
            gated = Gated(self.activation, parts_for(rows, layer.down))
            launch_product(parts, rows, layer.gate_up, None, None, gated)
            squares = new_squares(rows, layer.down[0], x.device)
            product = _product(gated.parts, layer.down, Added(squares=squares), rows)
            last = number + 1 == len(self.layers)
            following = None if last else parts_for(rows, self.layers[number + 1].qkv)
            total, _ = launch_residual(total, (product, squares, layer.norm_mlp, self.epsilon), parts=following)
            parts = parts if following is None else following
        return total


class _Attention:
    """Products of queries, keys and values, and attention of one step."""

    def __init__(self, step: FusedStep, cache: Any, cos: Tensor, sin: Tensor) -> None:
        from fastdecode.triton_kernels.attend import new_counters

        self.step, self.cache, self.turns = step, cache, (cos, sin)
        self.arrived = new_counters(len(cos), cache.keys[0].shape[1], cos.device)

    def __call__(self, number: int, parts: Any, norm: Any = None) -> Any:
        """The parts of the output product's input in layer ``number``."""
        from fastdecode.triton_kernels.attend import Appended, launch_attend
        from fastdecode.triton_kernels.step_product import features_of, launch_product, parts_for

        record_backend("triton")
        layer, cache, (cos, sin), rows = self.step.layers[number], self.cache, self.turns, len(self.turns[0])
        features = sum(map(features_of, layer.qkv))
        qkv = torch.empty(rows, features, dtype=torch.float32, device=cos.device)
        launch_product(parts, rows, layer.qkv, qkv, norm)
        attended = parts_for(rows, layer.out)
        pages = Pages(cache.keys[number], cache.values[number], cache.page_table, cache.lengths)
        appended = Appended(cos, sin, layer.q_norm, layer.k_norm, self.step.head_epsilon)
        launch_attend(qkv, pages, self.step.scaling, appended=appended, parts=attended, arrived=self.arrived)
        return attended


def _product(parts: Any, matrices: list[Any], after: Any, rows: int) -> Tensor:
    from fastdecode.triton_kernels.step_product import features_of, launch_product

    out = torch.empty(rows, features_of(matrices[0]), dtype=torch.float32, device=parts.data.device)
    launch_product(parts, rows, matrices, out, None, after)
    return out


def _sum(parts: Any, matrices: list[Any], after: Any) -> Tensor:
    return _product(parts, matrices, after, len(after.residual))


def head_product(hidden: Tensor, matrix: list[Any], out: Tensor) -> None:
    """``out`` (rows, n), which may be a slice of wider rows, is written in place."""
    from fastdecode.triton_kernels.residual import launch_residual
    from fastdecode.triton_kernels.step_product import launch_product, parts_for

    record_backend("triton")
    parts = parts_for(len(hidden), matrix)
    launch_residual(hidden.contiguous(), parts=parts)
    launch_product(parts, len(hidden), matrix, out)
