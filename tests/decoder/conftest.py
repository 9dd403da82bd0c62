"""Fixtures of these tests."""

import pytest
from traces import Traces

from fastdecode.decoder import Decoder
from fastdecode.decoder.captured import CapturedSteps
from fastdecode.decoder.operations import OperationStep


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Decoders made from now on capture."""
    found, init = Traces(), Decoder.__init__

    def capturing(self, model, deterministic=False):
        init(self, model, deterministic)
        self._take_steps_by(OperationStep(model.model, self.swin))
        self.captured = CapturedSteps(self, found.capture)

    monkeypatch.setattr(Decoder, "__init__", capturing)
    return found
