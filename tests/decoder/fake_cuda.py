"""Stands in for the parts of torch.cuda that a capture uses. Its operations follow the mode for waits as torch's do."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastdecode.decoder.device_waits import MESSAGE


class FakeCuda:
    """``events``: what happened, in order. ``mode``: 0 nothing, 1 warn, 2 raise. ``collecting``: whether Python could
    collect garbage in the capture.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode, self.events, self.told = 0, [], False
        self.collecting: bool | None = None
        cuda = self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                cuda.events.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def stream(which: Stream) -> Iterator[None]:
            yield

        @contextmanager
        def graph(made: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            cuda.events.append("begin")
            cuda.collecting = gc.isenabled()
            yield
            cuda.events.append("end")

        main = Stream("main")
        replaced = {
            "Stream": Stream,
            "stream": stream,
            "current_stream": lambda: main,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: cuda.events.append("replay")),
            "graph": graph,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def set_mode(self, mode: int | str) -> None:
        if not self.told:
            self.told = True
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def wait(self) -> None:
        """An operation that waits for the device."""
        if self.mode == 2:
            raise RuntimeError(f"{MESSAGE}\nException raised from warn_or_error_on_sync")
        if self.mode == 1:
            warnings.warn(f"{MESSAGE} (Triggered internally at CUDAFunctions.cpp:151.)", UserWarning, stacklevel=2)
        self.events.append("waited")
