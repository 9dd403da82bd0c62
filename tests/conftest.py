"""Poisons what torch.empty returns, so that an output left unwritten cannot look plausible."""

import pytest
import torch
from hypothesis import HealthCheck, settings

_INTEGER_POISON = 0x5A
_EVERY_PROFILE = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

with torch.device("meta"):
    torch.empty(0)  # now: under the poison torch would remember our functions as those that make tensors


def _poisoned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(_INTEGER_POISON)


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoning(function):
        return lambda *args, **kwargs: _poisoned(function(*args, **kwargs))

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))


settings.register_profile("short", derandomize=True, max_examples=500, **_EVERY_PROFILE)
settings.register_profile("long", max_examples=40_000, **_EVERY_PROFILE)
settings.load_profile("short")
