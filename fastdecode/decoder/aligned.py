"""Decodes a model whose layers fastdecode does not know, by calls of its own ``forward``, as transformers does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdecode.decoder.alterations import device_of
from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.base import PREFILL_IDS, Filling
from fastdecode.decoder.classes import text_config
from fastdecode.decoder.forward import ForwardDecoder, check_training, widest
from fastdecode.decoder.others import traits_of
from fastdecode.decoder.places import PLACED_MODELS, Places
from fastdecode.decoder.vectors import Vectors
from fastdecode.kv.aligned_cache import AlignedCache, AlignedCall
from fastdecode.kv.kv_cache import StreamCache


class AlignedDecoder(ForwardDecoder):
    """Prefill and decode steps by calls of the whole model, with a mask (rows, width) and positions that count tokens.

    Masks, windows and biases are the model's own. Memory of keys and values is that of the largest layer for all.

    TypeError for a model that `traits_of` refuses, ValueError for gradient checkpointing in training mode.
    """

    def __init__(self, model: Any, deterministic: bool = False, reason: str = "that was asked for") -> None:
        traits = self.traits = traits_of(model)
        check_training(model.modules())
        self.model, self.deterministic, self.forward_reason = model, deterministic, reason
        self.layer_count, self.kv_heads, self.head_dim = len(traits.layers), traits.kv_heads, traits.head_dim
        self.device, self.own, self.whole = device_of(model), None, True
        self.keeps_last = model._supports_logits_to_keep()
        self.most_ids = PREFILL_IDS if self.keeps_last else PREFILL_IDS // 8
        self.autocast = Autocast.now(self.device)
        self.dtype = widest(model.parameters(), self.autocast)
        self.places = Places() if isinstance(model, PLACED_MODELS) else None
        self._ready = {}

    def _fill(self, work: Filling) -> None:
        if self.places is not None:
            self.places.keep([work.cache.identity(row) for row in range(work.rows.start)])
            for row, prompt in zip(range(work.rows.start, work.rows.stop), work.prompts, strict=True):
                self.places.begin(work.cache.identity(row), prompt)
        super()._fill(work)

    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Logits (rows, vocab) float32. Tokens that the model's head does not have get -inf."""
        logits = super().logits(hidden, spans)
        missing = max(int(text_config(self.model).vocab_size), self.traits.outputs) - logits.shape[1]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits

    def _forward(
        self,
        cache: StreamCache,
        rows: list[int],
        ids: Tensor,
        positions: Tensor,
        real: Tensor,
        draws: Sequence[bool] | None,
        more: int = 0,
        vectors: Vectors | None = None,
    ) -> tuple[Tensor, AlignedCall]:
        with torch.inference_mode(False), torch.no_grad():
            ids, positions, real, stored, pages = self._where(cache, rows, ids, positions, real, more)
            call = AlignedCall(positions, real, stored, pages, cache.pool.page_slots)
            inputs: dict[str, Any] = {
                "input_ids": ids,
                "attention_mask": call.mask,
                self.traits.cache_name: AlignedCache(cache, call, self.traits.layers),
                "use_cache": True,
                "return_dict": True,
            }
            if self.traits.takes_positions:
                inputs["position_ids"] = positions
                if self.places is not None:
                    inputs["position_ids"] = self.places.positions(list(map(cache.identity, rows)), positions)
            if self.keeps_last:
                inputs["logits_to_keep"] = 1
            logits: Tensor = self.model(**inputs).logits[:, -1]
        if len(call.newest) != self.layer_count:
            raise RuntimeError(
                f"the forward of this {type(self.model).__name__} gave its cache keys of {len(call.newest)} layers, "
                f"and of {self.layer_count} at first"
            )
        return logits, call
