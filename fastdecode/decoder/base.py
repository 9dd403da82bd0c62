"""What all decoders share: the memory of keys and values, and the order in which prompts are prefilled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.cuda_graph import CapturedSteps
from fastdecode.decoder.vectors import Vectors
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PAGE_SLOTS, PagePool

PREFILL_IDS = 4096
"""The maximum number of tokens, of all rows together, in one pass of prefill. It bounds the memory of prefill."""


class Part(NamedTuple):
    """The tokens [starts, starts + counts) of some prompts (their numbers), for one pass of prefill."""

    prompts: list[int]
    starts: list[int]
    counts: list[int]


class Upcoming(NamedTuple):
    """What is fed to the first `step` after a prefill: a token for each prompt, and whether its row then draws, that
    is, may sample image tokens.
    """

    tokens: Sequence[int]
    draws: Sequence[bool]


class Filling(NamedTuple):
    """What a prefill has to compute and store: of each of ``prompts`` the tokens behind the ``known`` first ones.

    ``rows``: the prompts' rows of ``cache``. ``upcoming``: what follows each prompt, if that is known. ``vectors``:
    those whose numbers stand in the prompts.
    """

    cache: StreamCache
    rows: slice
    known: list[int]
    prompts: Sequence[Sequence[int]]
    upcoming: Upcoming | None = None
    vectors: Vectors = MappingProxyType({})


class BaseDecoder(ABC):
    """Prefill and decode steps of one model. It holds no sequences. Use it in one thread at a time.

    ``device`` and ``dtype``: of the pages. ``captured``: captured steps, or None. ``forward_reason``: why the model's
    own forward is called; None where it is not. ``autocast``: what `torch.autocast` was when the decoder was made; its
    steps are run so.
    """

    model: Any
    deterministic: bool
    device: torch.device
    dtype: torch.dtype
    layer_count: int
    kv_heads: int
    head_dim: int
    autocast: Autocast
    captured: CapturedSteps | None = None
    forward_reason: str | None = None

    @property
    def uses_cpu_step(self) -> bool:
        """Whether a step is one call of the C++ library."""
        return False

    @property
    def prefills_in_steps(self) -> bool:
        """Whether prompts too are computed by the C++ library."""
        return False

    @property
    def uses_triton_step(self) -> bool:
        """Whether a step consists of kernels of `fastdecode.ops`."""
        return False

    def new_pool(self, pages: int | None = None, page_slots: int = PAGE_SLOTS) -> PagePool:
        """A pool of pages for this model's keys and values, at most ``pages`` of them."""
        sizes = (self.layer_count, self.kv_heads, self.head_dim)
        return PagePool(*sizes, self.dtype, self.device, pages=pages, page_slots=page_slots)

    def new_cache(self, pool: PagePool | None = None, retain: int | None = 0) -> StreamCache:
        """An empty cache that takes its pages from ``pool``, or from a new pool. ``retain``: see `StreamCache`.
        ``ValueError`` if the pool is for another model.
        """
        if pool is None:
            return StreamCache(self.new_pool(), retain)
        layers, (kv_heads, head_dim) = len(pool.keys), (pool.keys[0].shape[1], pool.keys[0].shape[3])
        have = (layers, kv_heads, head_dim, pool.keys[0].dtype, pool.keys[0].device)
        need = (self.layer_count, self.kv_heads, self.head_dim, self.dtype, self.device)
        if have != need:
            what = "layers, heads of keys, head_dim, dtype and device"
            raise ValueError(f"the KV pool has {what} {have}; this model needs {need}")
        return StreamCache(pool, retain)

    def context(self) -> AbstractContextManager[Any]:
        """Run prefill, steps and `logits` in this: `torch.autocast` is then what it was when the decoder was made."""
        return nullcontext() if Autocast.now(self.device) == self.autocast else self.autocast.context()

    def prefill(
        self,
        cache: StreamCache,
        prompts: Sequence[Sequence[int]],
        upcoming: Upcoming | None = None,
        vectors: Vectors | None = None,
    ) -> slice:
        """Append one row per prompt to ``cache`` and store its keys and values. Prompts may be empty. Returns the rows.

        A beginning that several prompts share is computed once, or not at all if the cache has it. At most
        `PREFILL_IDS` tokens are computed at a time. No hidden state is returned: feed the token after the prompt to
        `step`. ``upcoming``: these tokens, if they are known. ``vectors``: those whose numbers stand in the prompts.
        After an error the rows are removed again.
        ``PoolExhausted`` if there are too few pages.
        """
        rows, known = cache.add(prompts)
        try:
            self._fill(Filling(cache, rows, known, prompts, upcoming, vectors or {}))
        except BaseException:
            for row in reversed(range(rows.start, rows.stop)):
                cache.remove(row, retain=False)
            raise
        return rows

    @abstractmethod
    def _fill(self, work: Filling) -> None:
        """Compute and store what `prefill` has to."""

    @abstractmethod
    def step(self, cache: StreamCache, tokens: Tensor, draws: Sequence[bool] | None = None) -> Tensor:
        """Feed one token to every row: ``tokens`` (rows,) int64. Returns what `logits` takes. ``draws``: which rows may
        sample image tokens; None: all. ``PoolExhausted``, before any change, if there are too few pages.
        """

    @abstractmethod
    def logits(self, hidden: Tensor, spans: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Logits (rows, vocab) of a step. With ``spans``, only those of tokens in their [lo, hi) need be right."""


def padded_ids(prompts: Sequence[Sequence[int]]) -> Tensor:
    """Prompts as (prompts, longest) int64 on the CPU, zero behind the end of each."""
    ids = torch.zeros((len(prompts), max(map(len, prompts), default=0)), dtype=torch.long, device="cpu")
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long, device="cpu")
    return ids


def parts(known: list[int], lengths: list[int], most: int) -> Iterator[Part]:
    """The passes of a prefill: in each a range of positions of all prompts that reach it, at most ``most`` tokens
    together. So keys and values that prompts share are stored before, or in, the pass that attends to them.
    """
    begin = min((k for k, n in zip(known, lengths, strict=True) if k < n), default=0)
    end_of_all = max((n for k, n in zip(known, lengths, strict=True) if k < n), default=0)
    while begin < end_of_all:
        inside = [i for i, n in enumerate(lengths) if known[i] < n and n > begin]
        end = min(end_of_all, begin + max(1, most // max(1, len(inside))))
        starts = [max(begin, known[i]) for i in inside]
        counts = [min(end, lengths[i]) - start for i, start in zip(inside, starts, strict=True)]
        chosen = [(i, s, n) for i, s, n in zip(inside, starts, counts, strict=True) if n > 0]
        if chosen:
            yield Part(*map(list, zip(*chosen, strict=True)))
        begin = end
