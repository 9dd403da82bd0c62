"""A whole decode step on the CPU in one call of the C++ library, for models that `unsupported_reason` accepts.

Matrices are read from the model's own memory, in float32, bfloat16 or float16. Norms and biases that are not float32
are copied to float32, and so are norms with an offset (`factors_of`).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.activations import activation_of
from fastdecode.decoder.classes import Sizes, epsilon_of, factors_of, head_norms
from fastdecode.decoder.plain import DTYPES
from fastdecode.decoder.quantised import of_small, small_of
from fastdecode.decoder.support import linears, norms_of
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.ops.backends import core
from fastdecode.ops.pointers import stored
from fastdecode.ops.swiglu.activations import ACTIVATIONS

MOST_KEPT = 4
"""Steps whose layers a pool remembers."""


def _fields(how: list[list[int]]) -> Tensor:
    """``fastdecode_weights`` of the matrices of a layer: type and group are halves of one number of 64 bits."""
    rows = [[type | group << 32, scale, offset, first] for type, group, scale, offset, first in how]
    return torch.tensor(rows, device="cpu")


@dataclass
class _Layers:
    """``addresses``: of the layers of ``step``, and of the keys and values of a pool."""

    step: weakref.ref[CpuStep]
    addresses: Tensor


class CpuStep:
    """`Decoder`'s step for a model for which `unsupported_reason` returns None.

    ``dtype``: of keys and values, and of matrices that are not small. It reads matrices in place, so a change of their
    values takes effect. Make a new `CpuStep` after replacing a matrix (``model.to``), or after changing a norm or bias
    that is not float32 or has an offset. ``ValueError`` if the environment variable FASTDECODE_CPU_ISA names an
    instruction set that this machine lacks.
    """

    def __init__(self, inner: Any, swin: bool, dtype: torch.dtype) -> None:
        core().cpu_isa()  # raises if this machine lacks FASTDECODE_CPU_ISA
        self._step, self._linear = core().decode_step, core().linear
        self._kept: list[Tensor] = []  # tensors that own the memory at the addresses
        first = inner.layers[0]
        sizes, norms = Sizes.of(first), head_norms(first.self_attn)
        rows = [self._row(layer, sizes) for layer in inner.layers]
        self._addresses = torch.tensor(rows, device="cpu")
        self._hidden, self.dtype = sizes.hidden, dtype
        self._constants = (
            *(len(rows), sizes.hidden, sizes.inner, sizes.heads, sizes.kv_heads, sizes.head_dim),
            *(DTYPES[self.dtype], swin, ACTIVATIONS[activation_of(first.mlp.act_fn)], epsilon_of(inner.norm)),
            *(1.0 if norms is None else epsilon_of(norms[0]), sizes.scaling),
            self._float_address(factors_of(inner.norm)),
        )

    def _row(self, layer: Any, sizes: Sizes) -> list[int]:
        """The addresses of one ``fastdecode_layer``; those of keys and values are 0, and set at each step."""
        modules = [module for _, module, _ in linears(layer, sizes)]
        how = [self._stored(m.weight) for m in modules]
        row = [address for address, *_ in how]
        row += [self._float_address(m.bias) for m in modules]
        row += [self._float_address(factors_of(norm)) for norm in norms_of(layer)]
        for norm, count in zip(head_norms(layer.self_attn) or (None, None), (sizes.heads, sizes.kv_heads), strict=True):
            for part in (getattr(norm, "weight", None), getattr(norm, "bias", None)):
                row.append(0 if part is None else self._float_address(part.expand(count, sizes.head_dim)))
        return [*row, 0, 0, self._address(_fields([fields for _, *fields in how]))]

    def _stored(self, weight: Tensor) -> tuple[int, int, int, int, int, int]:
        """As `stored`, for a module's weight."""
        if not of_small(weight):
            self._address(weight)
            return stored(weight)
        small = small_of(weight)
        self._kept += [part for part in (small.data, small.scale, small.offset) if part is not None]
        return stored(small)

    def _address(self, tensor: Tensor) -> int:
        """The address of the memory of ``tensor``; it stays allocated even if the tensor gets other memory."""
        self._kept.append(tensor.detach())
        return self._kept[-1].data_ptr()

    def _float_address(self, tensor: Tensor | None) -> int:
        """The address of the tensor if it is dense float32, else of a dense float32 copy; 0 for None."""
        return 0 if tensor is None else self._address(tensor.detach().float().contiguous())

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one token to every row of ``cache``. The cache must have room for it; the caller grows the cache.

        ``x`` (rows, hidden): the tokens' embeddings; they may be overwritten. ``cos`` and ``sin`` (rows, head_dim):
        from `Decoder.rope`. Returns the normed hidden states (rows, hidden) float32.
        """
        return self._run(cache, cache.page_table, cache.lengths, x, cos, sin, prefill=False)

    def prefill(self, cache: StreamCache, rows: Tensor, positions: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Store the keys and values of n tokens at ``positions`` of ``rows`` (both (n,) int64), which must have pages.

        A token attends to earlier tokens of its row, stored or in this call. The tokens of a row must be in order.
        """
        self._run(cache, cache.page_table[rows], positions, x, cos, sin, prefill=True)

    def _run(
        self,
        cache: StreamCache,
        page_table: Tensor,
        lengths: Tensor,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        prefill: bool,
    ) -> Tensor:
        x = x.to(torch.float32).contiguous()
        if x.shape != (len(lengths), self._hidden):
            raise ValueError(f"embeddings are {tuple(x.shape)}; they must be ({len(lengths)}, {self._hidden})")
        layers = self._layers_with(cache)  # a name for it, since the pool may drop it meanwhile
        self._step(
            (
                layers.data_ptr(),
                *self._constants,
                torch.get_num_threads(),
                len(cache.keys[0]),
                cache.keys[0].shape[2],
                page_table.data_ptr(),
                page_table.stride(0),
                page_table.shape[1],
                *(prefill, prefill),  # chained, and without hidden states
                len(lengths),
                lengths.data_ptr(),
                cos.data_ptr(),
                sin.data_ptr(),
                x.data_ptr(),
            )
        )
        return x

    def _layers_with(self, cache: StreamCache) -> Tensor:
        """The layers' addresses with those of keys and values. The pool keeps them until it replaces its tensors."""
        captured = cache.pool.captured
        for known in captured:
            if isinstance(known, _Layers) and known.step() is self:
                return known.addresses
        addresses = self._addresses.clone()
        places = [[k.data_ptr(), v.data_ptr()] for k, v in zip(cache.keys, cache.values, strict=True)]
        addresses[:, -3:-1] = torch.tensor(places, device="cpu")
        captured[:] = [_Layers(weakref.ref(self), addresses), *captured[: MOST_KEPT - 1]]
        return addresses

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times ``matrix``, a `plain_tensor` or `SmallWeights` of n
        features. ``out`` is float32 and may be a slice of wider rows.
        """
        weight = matrix.weight
        assert not isinstance(weight, ops.Int4Rows), "the CPU's kernels do not read it"
        hidden = hidden.to(torch.float32).contiguous()
        self._linear(
            *stored(weight),
            0,
            hidden.data_ptr(),
            *hidden.shape,
            len(weight),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
