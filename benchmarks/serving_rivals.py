"""Illustrated documents with transformers' layers and caches, one at a time, in a loop written by hand.

transformers has no loop for them: its guidance processor guides every token, and its ``generate`` cannot change the
rows of a batch when a picture begins. This loop does the minimum that such a document needs:

  - text in one row, its logits masked by one addition; no guidance, so no other row
  - at the begin of a picture the streams of the guidance in one batch, padded on the left, and read in one pass; then
    one pass of that batch per image token, only the image ids' rows of the head, and one draw of the mixed logits
  - at its end one pass that reads the picture into the cache of the text

What it does not do: share keys and values between rows or requests (the full row is read again for every picture, one
pass), compile, or batch requests. Streams are planned by `fastdecode.Guidance`, which costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from fastdecode import Guidance
from fastdecode.models.families import vocabulary_of


class DocumentWriter:
    """Writes documents with text and guided pictures, as mode "interleaved-text-image" does; text is greedy.

    ``temperature`` 0 draws pictures greedily, too. ``static``: over a `StaticCache` rather than a `DynamicCache`.
    """

    def __init__(
        self,
        model: Any,
        guidance: Guidance,
        ends: Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        static: bool = False,
    ) -> None:
        self.model, self.guidance, self.ends = model, guidance, frozenset(ends)
        self.temperature, self.top_p, self.static = temperature, top_p, static
        self.vocabulary = v = vocabulary_of(model)
        self.image_ids = torch.tensor(sorted(v.image_ids))
        self.image_head = model.lm_head.weight[self.image_ids].contiguous()
        never = {*v.image_ids, v.end_image, v.placeholder, *({v.pad, v.bos} - self.ends)}
        self.mask = torch.zeros(v.size)
        self.mask[sorted(i for i in never if i is not None)] = -torch.inf
        self.slots = torch.arange(v.context)

    @torch.inference_mode()
    def write(self, prompt: Sequence[int], new: int) -> list[int]:
        """At most ``new`` tokens after ``prompt``."""
        v, tokens = self.vocabulary, list(prompt)
        limit = min(len(tokens) + new, v.context)
        cache = self._cache(limit)
        unread = tokens[:]
        while len(tokens) < limit:
            hidden = self._hidden(cache, torch.tensor([unread]), len(tokens) - len(unread))
            scores = self.model.lm_head(hidden)[0] + self.mask
            if limit - len(tokens) < v.image_length + 2:
                scores[v.begin_image] = -torch.inf
            unread = [int(scores.argmax())]
            if unread[0] == v.begin_image:
                begun = [*tokens, v.begin_image]
                unread += [*self._picture(begun, len(prompt)), v.end_image]
            tokens += unread
            if unread[0] in self.ends:
                break
        return tokens[len(prompt) :]

    def _cache(self, length: int) -> Any:
        if self.static:
            return StaticCache(config=self.model.config, max_cache_len=length)
        return DynamicCache(config=self.model.config)

    def _picture(self, begun: list[int], prompt_length: int) -> list[int]:
        v = self.vocabulary
        others, weights = self.guidance.plan(begun, prompt_length, len(begun) - 1, v)
        streams = [begun, *map(list, others)]
        longest = max(map(len, streams))
        padding = torch.tensor([longest - len(stream) for stream in streams])
        ids = torch.tensor([[v.pad or 0] * (longest - len(stream)) + stream for stream in streams])
        mix = torch.tensor(weights)
        capacity = longest + v.image_length
        cache = self._cache(capacity)
        drawn: list[int] = []
        place = 0
        while True:
            hidden = self._hidden(cache, ids, place, padding, capacity)
            drawn.append(int(self.image_ids[self._draw(mix @ F.linear(hidden, self.image_head))]))
            if len(drawn) == v.image_length:
                return drawn
            place += ids.shape[1]
            ids = torch.full((len(streams), 1), drawn[-1])

    def _hidden(self, cache: Any, ids: Tensor, place: int, padding: Tensor | None = None, capacity: int = 0) -> Tensor:
        """(rows, hidden) of the last of ``ids`` (rows, n), which lie at ``place`` and behind."""
        count = ids.shape[1]
        places = self.slots[place : place + count]
        mask = None
        if padding is not None:
            width = capacity if self.static else place + count
            there = (self.slots[:width] <= places[:, None]) & (self.slots[:width] >= padding[:, None, None])
            mask = (there | (self.slots[:width] == places[:, None]))[:, None]  # padding attends to itself, not to NaN
        shift = 0 if padding is None else padding[:, None]
        found: Tensor = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(places[None] - shift).clamp(min=0).expand(len(ids), -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return found

    def _draw(self, scores: Tensor) -> int:
        if self.temperature == 0.0:
            return int(scores.argmax())
        probabilities = (scores / self.temperature).softmax(0)
        if self.top_p < 1.0:
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered >= self.top_p] = 0.0
            return int(order[ordered.multinomial(1)])
        return int(probabilities.multinomial(1))
