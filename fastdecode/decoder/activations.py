"""Which activation a module computes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation, GELUTanh, SiLUActivation

from fastdecode.decoder.plain import plain


def activation_of(module: Any) -> str:
    """The name in `fastdecode.ops.swiglu` of what ``module`` computes; "" for anything else, or with hooks."""
    if plain(module, nn.SiLU, SiLUActivation):
        return "silu"
    if plain(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if plain(module, GELUTanh) and _by_tanh(module):
        return "gelu_tanh"
    if plain(module, GELUActivation) and module.act in (functional.gelu, module._gelu_python):
        return "gelu"
    return ""


def _by_tanh(module: Any) -> bool:
    """Whether the function that the module holds is the one that its class gave it."""
    act = module.act
    if act == module._gelu_tanh_python:
        return True
    return isinstance(act, partial) and (act.func, act.args, act.keywords) == (
        functional.gelu,
        (),
        {"approximate": "tanh"},
    )
