"""A whole decode step on the CPU in one call of the C++ library, for models that `unsupported_reason` accepts.

Matrices are read from the model's own memory, in float32, bfloat16 or float16. Norms and biases that are not float32
are copied to float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.decoder.family import Sizes, epsilon_of, head_norms
from fastdecode.decoder.plain import DTYPES
from fastdecode.decoder.support import linears, norms_of
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.ops.backends import core


class CpuStep:
    """`Decoder`'s step for a model for which `unsupported_reason` returns None.

    A change of a matrix in place takes effect. A matrix that is replaced (``model.to``) does not, nor does a change
    of a norm or bias that is not float32: make a new `CpuStep` for them. ``ValueError`` if the environment variable
    FASTDECODE_CPU_ISA names no instruction set of this machine.
    """

    def __init__(self, inner: Any, swin: bool) -> None:
        core().cpu_isa()  # raises if FASTDECODE_CPU_ISA cannot be had
        self._step, self._linear = core().decode_step, core().linear
        self._kept: list[Tensor] = []  # whose memory the addresses are
        first = inner.layers[0]
        sizes, norms = Sizes.of(first), head_norms(first.self_attn)
        rows = [self._row(layer, sizes) for layer in inner.layers]
        self._addresses = torch.tensor(rows, device="cpu")
        self._hidden, self.dtype = sizes.hidden, first.self_attn.q_proj.weight.dtype
        self._constants = (
            *(len(rows), sizes.hidden, sizes.inner, sizes.heads, sizes.kv_heads, sizes.head_dim),
            *(DTYPES[self.dtype], swin, inner.norm.variance_epsilon),
            *(1.0 if norms is None else epsilon_of(norms[0]), sizes.scaling),
            self._float_address(inner.norm.weight),
        )

    def _row(self, layer: Any, sizes: Sizes) -> list[int]:
        """The addresses of ``fastdecode_layer``; those of keys and values are of each step."""
        modules = [module for _, module, _ in linears(layer, sizes)]
        row = [self._address(m.weight) for m in modules]
        row += [self._float_address(m.bias) for m in modules]
        row += [self._float_address(norm.weight) for norm in norms_of(layer)]
        for norm, count in zip(head_norms(layer.self_attn) or (None, None), (sizes.heads, sizes.kv_heads), strict=True):
            for part in (getattr(norm, "weight", None), getattr(norm, "bias", None)):
                row.append(0 if part is None else self._float_address(part.expand(count, sizes.head_dim)))
        return [*row, 0, 0]

    def _address(self, tensor: Tensor) -> int:
        """Of the memory that ``tensor`` has now, which is kept even if the tensor is given another."""
        self._kept.append(tensor.detach())
        return self._kept[-1].data_ptr()

    def _float_address(self, tensor: Tensor | None) -> int:
        """Of the tensor, or of a dense float32 copy; 0 for none."""
        return 0 if tensor is None else self._address(tensor.detach().float().contiguous())

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one token to every row of ``cache``. The cache has room for it; the caller grows the cache.

        ``x`` (rows, hidden) are the tokens' embeddings, which may be overwritten; ``cos`` and ``sin`` (rows, head_dim)
        as `Decoder.rope` has them. Returns the normed hidden states (rows, hidden) float32.
        """
        return self._run(cache, cache.page_table, cache.lengths, x, cos, sin, chained=False)

    def prefill(self, cache: StreamCache, rows: Tensor, positions: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Store the keys and values of n tokens, at ``positions`` of ``rows`` (both (n,) int64), which have pages for
        them.

        A token attends to those before it in its row, stored or of this call. A row's tokens must come in order.
        """
        self._run(cache, cache.page_table[rows], positions, x, cos, sin, chained=True)

    def _run(
        self,
        cache: StreamCache,
        page_table: Tensor,
        lengths: Tensor,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        chained: bool,
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
                page_table.data_ptr(),
                page_table.stride(0),
                page_table.shape[1],
                chained,
                len(lengths),
                lengths.data_ptr(),
                cos.data_ptr(),
                sin.data_ptr(),
                x.data_ptr(),
            )
        )
        return x

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times a matrix of n features, a `plain_tensor`; ``out`` is
        float32 and may be part of wider rows.
        """
        weight = matrix.weight
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
