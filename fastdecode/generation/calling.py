"""What a custom generation loop is not told: the options of the call of ``model.generate`` that it runs for."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformers import GenerationConfig, GenerationMixin


def calling_generate() -> dict[str, Any]:
    """The options given to the ``GenerationMixin.generate`` that calls `custom_generate`; empty for another caller.

    Before the call transformers drops ``streamer`` and ``assistant_model``, and adds defaults. Without this function
    they would be ignored silently, and a default would look like a choice of the user.
    """
    target = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(2)
    while frame.f_code is not target:
        if frame.f_back is None:
            return {}
        frame = frame.f_back
    names = ("streamer", "assistant_model", "negative_prompt_ids", "synced_gpus")
    call = {**frame.f_locals.get("kwargs", {}), **{name: frame.f_locals.get(name) for name in names}}
    outer = frame.f_back.f_locals if frame.f_back is not None else {}  # of torch.no_grad, which wraps generate
    args, kwargs = outer.get("args", ()), outer.get("kwargs", {})
    given = kwargs.get("generation_config", args[2] if len(args) > 2 else None)
    return {**call, "generation_config": given} if isinstance(given, GenerationConfig) else call
