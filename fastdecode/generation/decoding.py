"""Decodes a prepared call: its decoder, its engine, and the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastdecode.decoder import BaseDecoder, decoder_for
from fastdecode.decoder.aligned import AlignedDecoder
from fastdecode.engine.core import EngineCore
from fastdecode.engine.request import Request
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.room_checks import check_deterministic, check_fits, check_pool
from fastdecode.kv.page_pool import PagePool


def progress_bar(requests: Sequence[Request]) -> Any:
    """A progress bar of the new tokens of all sequences. The requests advance it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=sum(s.limit - s.prompt_length for r in requests for s in r.sequences), unit="token")

    def moved_by(request: Request) -> Callable[[], None]:
        told = 0

        def move() -> None:
            nonlocal told
            tokens = sum(len(s.tokens) - s.prompt_length for s in request.sequences)
            bar.update(tokens - told)
            told = tokens

        return move

    for request in requests:
        request.listened, request.on_change = True, moved_by(request)
    return bar


def decoder_of(call: Prepared) -> BaseDecoder:
    """A decoder with the options of the call. ``ValueError`` if the model cannot be decoded so."""
    decoder = decoder_for(call.model, call.deterministic)
    if isinstance(decoder, AlignedDecoder) and decoder.places is not None:
        for s, sizes in zip(call.sequences, call.told_sizes or (), strict=call.told_sizes is not None):
            decoder.places.tell(s.tokens, sizes)
    check_deterministic(decoder)
    check_pool(decoder, call.pool)
    check_fits(call.sequences, call.pool)
    return decoder


def decode_all(decoder: BaseDecoder, requests: Sequence[Request], pool: PagePool | None) -> None:
    """Decode requests on a new engine. Raises the error of the first request that fails. The pages are freed however it
    ends.
    """
    engine = EngineCore(decoder, pool)
    try:
        for request in requests:
            engine.add(request)
        failed = next((r for r in requests if r.error is not None), None)
        while failed is None and engine.step():
            failed = next((r for r in requests if r.error is not None), None)
    finally:
        engine.cache.clear()
    if failed is not None and failed.error is not None:
        raise failed.error
