"""Fixtures of these tests."""

import pytest
from traces import Traces

from fastdecode.decoder import Decoder
from fastdecode.decoder import decoder as decoder_module
from fastdecode.decoder.cuda_graph import CapturedSteps
from fastdecode.decoder.triton_step import TritonStep


@pytest.fixture(autouse=True)
def prompts_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders are compared bit for bit after prompts that torch computed for both, whatever the processor."""
    monkeypatch.setattr(decoder_module, "torch_multiplies_slowly", lambda dtype: False)


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
