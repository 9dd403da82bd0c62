"""Image tokens that do not go through ``embed_tokens`` and ``lm_head``: their embeddings and logits.

They follow the language model's tokens: its token ``n + c`` is image token ``c``, where the language model has ``n``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdecode.decoder.classes import Chain, inner_of, known_classes
from fastdecode.decoder.plain import altered, plain

Product = Callable[[nn.Module, Tensor], Tensor]
"""What a module makes of x (…, in)."""

Spans = Sequence[tuple[int, int]]


@dataclass
class OwnParts:
    """The modules of `OwnTokens`. ``first``: the first image token; ``total``: all tokens."""

    first: int
    total: int
    embed: tuple[Chain, ...]
    head: tuple[Chain, ...]
    buffer: Tensor | None = None

    @classmethod
    def of(cls, model: Any) -> OwnParts | None:
        """Those of a model; None if it has none."""
        known = known_classes(model)
        own = None if known is None else known.own_tokens
        if own is None:
            return None
        first = int(inner_of(model).config.vocab_size)
        return cls(first, first + own.count(model), own.embed(model), own.head(model))

    @property
    def plain(self) -> bool:
        """Whether nothing but the weights can change what the modules compute."""
        return all(plain(chain.module, chain.kind) and not any(map(altered, chain.steps)) for chain in self._chains)

    @property
    def modules(self) -> list[nn.Module]:
        """All of them, each once."""
        return list({module: None for chain in self._chains for module in chain.module.modules()})

    @property
    def _chains(self) -> tuple[Chain, ...]:
        return (*self.embed, *self.head)

    def embeddings(self, tokens: Tensor, of_text: Callable[[Tensor], Tensor], product: Product) -> Tensor:
        """Embeddings (…, hidden) of ``tokens`` (…) int64. ``of_text``: embeddings of the language model's tokens."""
        own = tokens >= self.first
        known = not tokens.is_cuda  # on a GPU the host does not wait for the answer
        if known and not own.any():
            return of_text(tokens)
        x = _through(self.embed, tokens.clamp(min=self.first) - self.first, product)
        if known and own.all():
            return x
        return torch.where(own[..., None], x, of_text(tokens.clamp(max=self.first - 1)).to(x.dtype))

    def logits(
        self, hidden: Tensor, spans: Spans | None, of_text: Callable[[Tensor, Spans | None], Tensor], product: Product
    ) -> Tensor:
        """Logits (rows, total), as `fastdecode.decoder.Decoder.logits`. ``of_text``: those of ``lm_head``."""
        wanted = [(0, self.total)] if spans is None else spans
        text = [(low, min(high, self.first)) for low, high in wanted if low < self.first]
        found = []
        if text:
            logits = of_text(hidden, text)
            found += [(low, high, logits[:, low:high]) for low, high in text]
        if any(high > self.first for _, high in wanted):
            found.append((self.first, self.total, _through(self.head, hidden, product)))
        out = self._out(len(hidden), found[0][2] if found else hidden)
        for low, high, part in found:
            out[:, low:high] = part
        return out

    def _out(self, rows: int, like: Tensor) -> Tensor:
        if self.buffer is None or len(self.buffer) < rows or self.buffer.dtype != like.dtype:
            self.buffer = torch.empty((rows, self.total), dtype=like.dtype, device=like.device)
        return self.buffer[:rows]


def _through(chains: Sequence[Chain], x: Tensor, product: Product) -> Tensor:
    """What the modules make of x, one after another."""
    for chain in chains:
        for module in chain.steps if plain(chain.module, chain.kind) else (chain.module,):
            x = product(module, x)
    return x
