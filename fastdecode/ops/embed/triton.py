"""`embed` through its Triton kernel, which is imported, and compiled, when it is first used."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.embed.checks import check_tokens


def embed_triton(tokens: Tensor, weight: Tensor) -> Tensor:
    """Raises ValueError for a bad token on the CPU; on a GPU its row is NaN."""
    from fastdecode.triton_kernels.embed import launch_embed

    if tokens.device.type == "cpu":
        check_tokens(tokens, len(weight))
    out: Tensor = launch_embed(tokens, weight)
    return out
