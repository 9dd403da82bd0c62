"""`embed`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.arrays import Array
from fastdecode.ops.backends import choose_step_backend, record_backend
from fastdecode.ops.checks import check_stored, check_token_vector
from fastdecode.ops.embed.cpu import embed_cpu
from fastdecode.ops.embed.reference import embed_reference
from fastdecode.ops.embed.triton import embed_triton
from fastdecode.ops.small_weights import SmallWeights
from fastdecode.ops.tracing import is_traced

_RUN = {"reference": embed_reference, "cpu": embed_cpu, "triton": embed_triton}


def embed(tokens: Array, weight: Array | SmallWeights, *, backend: str | None = None) -> Tensor:
    """weight[tokens] as (rows, hidden) float32; no gradients.

        tokens   (rows,) int64, each in [0, vocab)
        weight   (vocab, hidden) float32 | bfloat16 | float16, dense; or `SmallWeights`
        backend  "reference" | "cpu" | "triton"; None picks by device. triton has no `SmallWeights`

    Raises ValueError naming the argument, and for a token outside the vocabulary its index. On a GPU the triton backend
    does not wait to read the tokens: the row of such a token is NaN.
    """
    if isinstance(weight, SmallWeights):
        return _of_small_weights(tokens, weight, backend)
    if is_traced(tokens):
        traced: Tensor = torch.ops.fastdecode.embed(tokens, weight, backend=backend)
        return traced
    tokens = check_token_vector("tokens", tokens, "rows")
    weight = check_stored("weight", weight, "vocab, hidden", tokens.device, "tokens")
    if weight.shape[1] == 0:
        raise ValueError(f"weight.shape = {tuple(weight.shape)}: must be (vocab, hidden)")
    backend = choose_step_backend(backend, tokens.device)
    record_backend(backend)
    return _RUN[backend](tokens, weight)


def _of_small_weights(tokens: Array, weight: SmallWeights, backend: str | None) -> Tensor:
    tokens = check_token_vector("tokens", tokens, "rows")
    if weight.data.device != tokens.device:
        raise ValueError(f"weight.device = {weight.data.device}: must be {tokens.device}, as for tokens")
    chosen = choose_step_backend(backend, tokens.device)
    if chosen == "triton":
        if backend is not None:
            raise ValueError(f"backend = {backend!r}: has no SmallWeights; must be cpu or reference")
        chosen = "reference"
    record_backend(chosen)
    return embed_cpu(tokens, weight) if chosen == "cpu" else embed_reference(tokens, weight)
