"""The check of the tokens' values, which the C library makes itself, in the same words."""

from __future__ import annotations

from torch import Tensor


def check_tokens(tokens: Tensor, vocab: int) -> None:
    """Raises ValueError naming the first token outside the vocabulary. Reads device memory."""
    for r, token in enumerate(tokens.tolist()):
        if not 0 <= token < vocab:
            raise ValueError(f"tokens[{r}] = {token}: must be a token in [0, {vocab})")
