"""Models inside wrappers: what `torch.compile` and PEFT return computes the same as the model within.

A compiled model is the same function. PEFT's adapters that live in the layers (LoRA, IA3, …) are modules of the model
within, which the decoders call.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fastdecode.decoder.plain import altered, hooked

IN_LAYERS = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "LN_TUNING", "VBLORA"),
    *("BONE", "RANDLORA", "SHIRA", "MISS", "C3A", "ROAD", "WAVEFT", "DELORA", "GRALORA", "OSF", "TRAINABLE_TOKENS"),
)
"""PEFT's kinds of adapters that change modules of the model within, and nothing around it."""


def unwrapped(model: Any) -> Any:
    """The model that ``model`` wraps, through `torch.compile` and PEFT; ``model`` itself where it wraps none.

    ``ValueError`` for adapters of PEFT that change the prompt or need a pass of their own, and for hooks on a wrapper.
    """
    while True:
        compiled = _compiled(model)
        inside = _adapted(model) if compiled is None else compiled
        if inside is None:
            return model
        if hooked(model) or (compiled is None and altered(model)):  # torch.compile gives its wrapper a forward
            raise ValueError(
                f"the {type(model).__name__} around the model has hooks, or a forward of its own, which fastdecode "
                f"does not call; put them on the {type(inside).__name__} within it"
            )
        model = inside


def share_generation_config(wrapper: Any, model: Any) -> None:
    """Give ``model`` the generation_config that was set on the ``wrapper`` around it, as PEFT's own generate does."""
    config = getattr(wrapper, "generation_config", None)
    if config is not None:
        model.generation_config = config


def is_compiled(model: Any) -> bool:
    """Whether ``model`` went through `torch.compile` or ``model.compile()``, or wraps one that did."""
    while model is not None:
        if _compiled(model) is not None or getattr(model, "_compiled_call_impl", None) is not None:
            return True
        model = _adapted(model)
    return False


def _compiled(model: Any) -> Any:
    return model.__dict__.get("_modules", {}).get("_orig_mod") if isinstance(model, nn.Module) else None


def _of_peft(model: Any, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.partition(".")[0] == "peft" for c in type(model).__mro__)


def _adapted(model: Any) -> Any:
    if _of_peft(model, "BaseTuner"):
        return model.model
    if not _of_peft(model, "PeftModel"):
        return None
    for name in getattr(model, "active_adapters", None) or []:
        config = model.peft_config.get(name)
        kind = str(getattr(getattr(config, "peft_type", None), "value", "unknown"))
        if getattr(config, "alora_invocation_tokens", None):
            kind = "activated LoRA"
        if kind not in IN_LAYERS:
            raise ValueError(
                f"the PEFT adapter {name!r} is of kind {kind}, which changes more than the modules of the model; "
                "fastdecode decodes those that do not, such as LoRA and IA3: call the PeftModel's own generate"
            )
    return model.base_model
