"""What a custom generation loop is not told: the options of the call of ``model.generate`` that it runs for."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

from transformers import GenerationConfig, GenerationMixin


def calling_generate() -> dict[str, Any]:
    """The options given to the ``GenerationMixin.generate`` that calls `custom_generate`; empty for another caller.

    Before the call transformers drops ``streamer`` and ``assistant_model``, and adds defaults. Without this function
    they would be ignored silently, and a default would look like a choice of the user.
    """
    frame = _frame_of_generate(sys._getframe(2))
    if frame is None:
        return {}
    names = ("streamer", "assistant_model", "negative_prompt_ids", "synced_gpus")
    call = {**frame.f_locals.get("kwargs", {}), **{name: frame.f_locals.get(name) for name in names}}
    outer = frame.f_back.f_locals if frame.f_back is not None else {}  # of torch.no_grad, which wraps generate
    args, kwargs = outer.get("args", ()), outer.get("kwargs", {})
    given = kwargs.get("generation_config", args[2] if len(args) > 2 else None)
    return {**call, "generation_config": given} if isinstance(given, GenerationConfig) else call


def calling_own_generate(model: Any) -> dict[str, Any] | None:
    """The arguments by name that the caller gave to the ``generate`` of the model's own class, which then called that
    of GenerationMixin and so `custom_generate`; None if no such method did. ``inputs`` is the prompt.

    The class may have dropped or replaced any of them. ``ValueError`` where they cannot be read.
    """
    frame = _frame_of_generate(sys._getframe(2))
    if frame is None:
        return None
    caller = _caller(frame, GenerationMixin.generate)
    methods = [vars(kind)["generate"] for kind in type(model).__mro__ if "generate" in vars(kind)]
    own = next((f for f in methods if caller is not None and inspect.unwrap(f).__code__ is caller.f_code), None)
    if own is None or caller is None:
        return None
    wrapper = caller.f_back
    if own is inspect.unwrap(own) or wrapper is None or wrapper.f_code is not own.__code__:
        raise ValueError(
            f"{type(model).__name__} has a generate of its own, and what you gave to it cannot be read: call "
            "fastdecode.generate(model, …) instead"
        )
    args, kwargs = wrapper.f_locals["args"], wrapper.f_locals["kwargs"]  # of torch.no_grad
    signature = inspect.signature(inspect.unwrap(own))
    given = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    return dict(list(given.items())[1:])


def _frame_of_generate(frame: FrameType | None) -> FrameType | None:
    target = inspect.unwrap(GenerationMixin.generate).__code__
    while frame is not None and frame.f_code is not target:
        frame = frame.f_back
    return frame


def _caller(frame: FrameType, function: Any) -> FrameType | None:
    """The frame that called ``function``, whose frame is ``frame``, around its decorators."""
    around = set()
    while hasattr(function, "__wrapped__"):
        around.add(function.__code__)
        function = function.__wrapped__
    caller = frame.f_back
    while caller is not None and caller.f_code in around:
        caller = caller.f_back
    return caller
