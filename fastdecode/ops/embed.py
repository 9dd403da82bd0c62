"""`embed`: rows of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdecode.ops.backends import core, record_backend
from fastdecode.ops.library import is_traced
from fastdecode.ops.step_checks import STORED_DTYPES, check_stored, check_tokens, choose_step_backend
from fastdecode.ops.step_triton import embed_triton


def embed(tokens: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """weight[tokens] as (rows, hidden) float32; no gradients.

        tokens   (rows,) int64, each in [0, vocab)
        weight   (vocab, hidden) float32 | bfloat16 | float16, dense
        backend  "reference" | "cpu" | "triton"; None picks by device

    Raises ValueError naming the argument; of a token outside of the vocabulary, its place. On a GPU triton does not
    wait to look: the row of such a token is NaN.
    """
    if is_traced(tokens):
        traced: Tensor = torch.ops.fastdecode.embed(tokens, weight, backend=backend)
        return traced
    if not isinstance(tokens, Tensor) or tokens.dim() != 1 or tokens.dtype != torch.int64:
        what = f"{tuple(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens: must be (rows,) int64, got {what}")
    check_stored("weight", weight, "vocab, hidden", tokens.device, "tokens")
    vocab, hidden = weight.shape
    if hidden == 0:
        raise ValueError(f"weight.shape = {tuple(weight.shape)}: must be (vocab, hidden)")
    tokens = tokens.contiguous()
    backend = choose_step_backend(backend, tokens.device)
    record_backend(backend)
    if backend == "reference":
        check_tokens(tokens, vocab)
        return embed_reference(tokens, weight)
    if backend == "triton":
        return embed_triton(tokens, weight)
    out = torch.empty(len(tokens), hidden, dtype=torch.float32, device="cpu")
    core().embed(
        tokens.data_ptr(),
        len(tokens),
        weight.data_ptr(),
        STORED_DTYPES[weight.dtype],
        vocab,
        hidden,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@torch.no_grad()
def embed_reference(tokens: Tensor, weight: Tensor) -> Tensor:
    """out[r] = weight[tokens[r]]."""
    return weight[tokens].float()
