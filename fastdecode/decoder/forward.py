"""Decodes a model by calling its own ``forward``: slower than `Decoder`, and right for whatever was done to the model.

A step is one call over all rows, with our pages as the ``Cache``. Hooks, replaced forwards, adapters, offloaded weights
and any dtype or attention of the model take part, as in transformers' own ``generate``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

from fastdecode.decoder.alterations import device_of, top_altered
from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.base import PREFILL_IDS, BaseDecoder, Filling, padded_ids, parts
from fastdecode.decoder.classes import CHAMELEON, Sizes, classes_of, inner_of, window_of
from fastdecode.decoder.own_tokens import OwnParts
from fastdecode.decoder.vectors import Vectors, embedded
from fastdecode.kv.aligned_cache import AlignedCall
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.ragged_cache import RaggedCache, RaggedCall

Call = RaggedCall | AlignedCall


class _Ready(NamedTuple):
    """The result of `ForwardDecoder.step` for the next token of a row, computed with its prompt.

    ``keys`` and ``values``: (layers, kv_heads, head_dim).
    """

    token: int
    length: int
    output: Tensor
    keys: Tensor
    values: Tensor


class _UnmaskedImages(TorchFunctionMode):
    """While a Chameleon's forward runs, it does not forbid image tokens in the rows that draw.

    The forward ends with ``logits[:, :, image_tokens] = finfo.min``. That assignment alone is changed, in this thread
    alone. ``draws`` (rows,) bool.
    """

    def __init__(self, image_tokens: list[int], draws: Tensor) -> None:
        super().__init__()
        self.image_tokens, self.draws = image_tokens, draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__ and isinstance(args[1], tuple) and args[1][-1] is self.image_tokens:
            logits, where, value = args
            kept = logits[self.draws.to(logits.device)].clone()
            func(logits, where, value)
            logits[self.draws.to(logits.device)] = kept
            return None
        return func(*args, **(kwargs or {}))


def check_callable(model: Any) -> Callable[[Tensor], Tensor]:
    """A function that makes, of what is seen (bool), the mask that the model's attention takes. ValueError for an
    attention implementation that takes none, and for gradient checkpointing in training mode.
    """
    inner = inner_of(model)
    mask_of = _mask_kind(inner.config._attn_implementation, inner.embed_tokens.weight.dtype)
    check_training((inner, *inner.layers))
    return mask_of


def check_training(modules: Iterable[Any]) -> None:
    """ValueError for gradient checkpointing in training mode."""
    if any(m.training and getattr(m, "gradient_checkpointing", False) for m in modules):
        raise ValueError("the model is in training mode with gradient checkpointing, which keeps no cache: call eval()")


class ForwardDecoder(BaseDecoder):
    """Prefill and decode steps by the model's own forward, whatever its hooks and forwards are at each call.

    ``reason``: why, for `explain`. Where the top-level module is not altered, the language model inside it and then
    ``lm_head`` are called; else the whole model, with image logits in rows that draw. Image tokens with embeddings and
    a head of their own go through the modules that the model has for them.

    Prompts are computed together with the token that follows, if it is known, as transformers does. Rows of a call are
    padded on the left. A hook therefore sees ``(rows, tokens, …)`` with the newest token of each row last. Which rows
    are computed together, and in how many parts, is not what transformers' loop would choose.

    ValueError for an attention implementation that takes no mask, and for gradient checkpointing in training mode.
    TypeError for a model that `classes_of` does not accept.
    """

    def __init__(self, model: Any, deterministic: bool = False, reason: str = "that was asked for") -> None:
        self.classes = classes_of(model)
        self.model, self.deterministic, self.forward_reason = model, deterministic, reason
        inner = self.inner = inner_of(model)
        self.mask_of = check_callable(model)
        sizes = Sizes.of(inner.layers[0])
        self.layer_count, self.kv_heads, self.head_dim = len(inner.layers), sizes.kv_heads, sizes.head_dim
        self.numbers = [
            getattr(getattr(layer, "self_attn", None), "layer_idx", i) for i, layer in enumerate(inner.layers)
        ]
        self.device = device_of(model)
        self.whole = top_altered(model)
        self.keeps_last = self.whole and model._supports_logits_to_keep()
        self.most_ids = PREFILL_IDS if self.keeps_last or not self.whole else PREFILL_IDS // 8
        self.autocast = Autocast.now(self.device)
        parameters = chain(inner.embed_tokens.parameters(), inner.layers.parameters())
        self.dtype = widest(parameters, self.autocast)
        self.window = window_of(inner.config)
        self.own = OwnParts.of(model)
        self.cache_name = (
            "cache" if "cache" in inspect.signature(self.classes.inner.forward).parameters else "past_key_values"
        )
        self._ready: dict[Any, _Ready] = {}

    # --- prefill ------------------------------------------------------------------------------------------------

    def _fill(self, work: Filling) -> None:
        cache, rows, known, prompts, upcoming, vectors = work
        whole = [list(prompt) for prompt in prompts]
        if upcoming is not None:
            for tokens, found, next_token in zip(whole, known, upcoming.tokens, strict=True):
                if found < len(tokens):
                    tokens.append(next_token)
        ids = padded_ids(whole)
        for part in parts(known, list(map(len, whole)), self.most_ids):
            starts, counts = (torch.tensor(column, device="cpu")[:, None] for column in part[1:])
            offsets = torch.arange(max(part.counts), device="cpu") - (max(part.counts) - counts)
            positions = starts + offsets.clamp(min=0)
            chosen = ids[torch.tensor(part.prompts, device="cpu")[:, None], positions]
            numbers = [rows.start + i for i in part.prompts]
            draws = None if upcoming is None else [upcoming.draws[i] for i in part.prompts]
            output, call = self._forward(cache, numbers, chosen, positions, offsets >= 0, draws, vectors=vectors)
            for place, i in enumerate(part.prompts):
                if part.starts[place] + part.counts[place] > len(prompts[i]):
                    self._keep(cache, rows.start + i, whole[i][-1], output[place], call, place)

    def _keep(self, cache: StreamCache, row: int, token: int, output: Tensor, call: Call, place: int) -> None:
        """Keep what `step` would compute for the next token of ``row``."""
        shape = (self.layer_count, self.kv_heads, self.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        for layer, (key, value) in call.newest.items():
            for kept, new in ((keys[layer], key[place]), (values[layer], value[place])):
                kept[: new.shape[0], : new.shape[1]] = new
        self._ready[cache.identity(row)] = _Ready(token, cache.length(row), output.clone(), keys, values)

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, cache: StreamCache, tokens: Tensor, draws: Sequence[bool] | None = None) -> Tensor:
        """Returns the last hidden states (rows, hidden), or the logits (rows, vocab) if the model is called whole."""
        cache.make_room()
        given = tokens.tolist()
        ready = self._take_ready(cache, given)
        computed = [row for row in range(cache.rows) if row not in ready]
        outputs = [found.output for found in ready.values()]
        if computed:
            ids = torch.tensor([[given[row]] for row in computed], device="cpu")
            positions = torch.tensor([[cache.length(row)] for row in computed], device="cpu")
            chosen = None if draws is None else [draws[row] for row in computed]
            outputs += list(self._forward(cache, computed, ids, positions, torch.ones_like(ids) > 0, chosen, 1)[0])
        cache.grow()
        order = sorted(range(cache.rows), key=[*ready, *computed].__getitem__)
        return torch.stack([outputs[place] for place in order])

    def _take_ready(self, cache: StreamCache, tokens: list[int]) -> dict[int, _Ready]:
        """By row: what was computed with its prompt. Its keys and values are stored now."""
        kept, self._ready = self._ready, {}
        found = {}
        for row, token in enumerate(tokens if kept else []):
            of_row = kept.get(cache.identity(row))
            if of_row is not None and (of_row.token, of_row.length) == (token, cache.length(row)):
                found[row] = of_row
        with torch.inference_mode():
            for row, of_row in found.items():
                place, slot = divmod(of_row.length, cache.pool.page_slots)
                page = cache.pages(row)[place]
                for layer in range(self.layer_count):
                    cache.keys[layer][page, :, slot] = of_row.keys[layer]
                    cache.values[layer][page, :, slot] = of_row.values[layer]
        return found

    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Logits (rows, vocab) float32 of what `step` returned, whatever the ``spans``."""
        if not self.whole:
            with torch.inference_mode(False), torch.no_grad():
                logits: Tensor = self.model.lm_head(hidden[:, None])[:, 0]
                hidden = logits if self.own is None else self._with_own(logits, hidden)
        return hidden.to(self.device, torch.float32)

    def _with_own(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """The logits of the language model's tokens, and behind them those of the model's own image tokens."""
        assert self.own is not None
        x = hidden
        for part in self.own.head:
            x = part.module(x)
        return torch.cat((logits, x.to(logits.device, logits.dtype)), -1)

    # --- the forward --------------------------------------------------------------------------------------------

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
    ) -> tuple[Tensor, Call]:
        """The output for the last column of ``ids`` (rows, new) int64, which come at ``positions`` and are padding
        where ``real`` is False. Those before ``more`` tokens behind the end of their row are stored. ``vectors``: those
        whose numbers are among ``ids``.
        """
        with torch.inference_mode(False), torch.no_grad():
            ids, positions, real, stored, pages = self._where(cache, rows, ids, positions, real, more)
            call = RaggedCall(positions, real, stored, pages, cache.pool.page_slots)
            inputs: dict[str, Any] = {
                "input_ids": ids,
                "attention_mask": self._mask(positions, call.width),
                "position_ids": positions,
                self.cache_name: RaggedCache(cache, call, self.numbers),
                "use_cache": True,
            }
            if self.own is not None or vectors:
                inputs["inputs_embeds"] = embedded(inputs.pop("input_ids"), vectors or {}, self._embeddings)
            output = self._call_whole(inputs, draws) if self.whole else self.inner(**inputs)[0][:, -1]
        if not call.newest:
            raise RuntimeError(
                f"the forward of this {type(self.model).__name__} puts no keys into the cache it is given"
            )
        return output, call

    def _where(
        self, cache: StreamCache, rows: list[int], ids: Tensor, positions: Tensor, real: Tensor, more: int
    ) -> Iterator[Tensor]:
        """Arguments of `_forward` on the model's device: ids, positions, real; which tokens are stored (rows, new)
        bool, and the pages (rows, n) int64 of the rows.
        """
        lengths = torch.tensor([cache.length(row) + more for row in rows], device="cpu")[:, None]
        for one in (ids, positions, real, real & (positions < lengths)):
            yield one.clone().to(self.device)
        yield cache.page_table[torch.tensor(rows, device=self.device)].long()

    def _embeddings(self, tokens: Tensor) -> Tensor:
        embed = self.inner.embed_tokens
        if self.own is None:
            return cast(Tensor, embed(tokens))
        return self.own.embeddings(tokens, embed, lambda part, x: part(x))

    def _call_whole(self, inputs: dict[str, Any], draws: Sequence[bool] | None) -> Tensor:
        if self.keeps_last:
            inputs["logits_to_keep"] = 1
        kept: list[Tensor] = []
        handle = None
        if self.own is not None:  # the whole model returns no logits of these tokens
            handle = self.inner.register_forward_hook(lambda module, args, output: kept.append(output[0][:, -1]))
        try:
            with nullcontext() if self.classes is not CHAMELEON else self._unmasked(len(inputs["input_ids"]), draws):
                logits: Tensor = self.model(**inputs, return_dict=True).logits[:, -1]
        finally:
            if handle is not None:
                handle.remove()
        return self._with_own(logits, kept[-1]) if kept else logits

    def _unmasked(self, rows: int, draws: Sequence[bool] | None) -> _UnmaskedImages:
        images = self.model.model.vocabulary_mapping.image_tokens
        return _UnmaskedImages(images, torch.tensor([True] * rows if draws is None else draws, device="cpu"))

    def _mask(self, positions: Tensor, width: int) -> Any:
        """What each of ``positions`` (rows, new) sees of ``width`` keys: (rows, 1, new, width) as the model's attention
        takes it, or one for each kind of layer.
        """
        keys = torch.arange(width, device=self.device)
        seen = (keys <= positions[..., None])[:, None]
        if self.window is None:
            return self.mask_of(seen)
        near = seen & (keys > positions[:, None, :, None] - self.window)
        if getattr(self.inner.config, "layer_types", None) is None:
            return self.mask_of(near)
        return {"full_attention": self.mask_of(seen), "sliding_attention": self.mask_of(near)}


def _as_it_is(seen: Tensor) -> Tensor:
    return seen


def _mask_kind(kind: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Makes of what is seen (bool) the mask that an attention implementation takes. ValueError if it takes none."""
    function = ALL_MASK_ATTENTION_FUNCTIONS.get(kind)
    if function is sdpa_mask:
        return _as_it_is
    if function is not eager_mask:
        raise ValueError(
            "the model must be decoded by its own forward, over rows of different lengths, for which "
            f"attn_implementation={kind!r} cannot be used: call model.set_attn_implementation('sdpa') or 'eager'"
        )
    return lambda seen: torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def widest(parameters: Iterable[Tensor], autocast: Autocast) -> torch.dtype:
    """A dtype that holds every key and value of a model with these ``parameters``."""
    found = autocast.dtype
    for parameter in parameters:
        if parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1:
            found = parameter.dtype if found is None else torch.promote_types(found, parameter.dtype)
    return found or torch.float32
