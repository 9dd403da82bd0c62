"""Fixtures of these tests."""

import pytest
from traces import Traces

from fastdecode.decoder import Decoder
from fastdecode.decoder.cuda_graph import CapturedSteps
from fastdecode.decoder.triton_step import TritonStep


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Decoders made from now on capture."""
    found, init = Traces(), Decoder.__init__

    def capturing(self, model, deterministic=False):
        init(self, model, deterministic)
        self._take_steps_by(TritonStep(model.model, self.swin))
        self.captured = CapturedSteps(self, found.capture)

    monkeypatch.setattr(Decoder, "__init__", capturing)
    return found
