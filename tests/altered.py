"""Ways to alter a model so that only its own forward still computes what it does, by name; each returns the model."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _negated(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0] * -1, *output[1:])
    return output * -1


def layer_hook(model: Any) -> Any:
    model.model.layers[1].register_forward_hook(_negated)
    return model


def attention_hook(model: Any) -> Any:
    model.model.layers[1].self_attn.register_forward_hook(_negated)
    return model


def pre_hook(model: Any) -> Any:
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] * -2, *args[1:]))
    return model


def last_token_hook(model: Any) -> Any:
    """Adds to the newest token of each row only, as hooks that steer a model do."""
    generator = torch.Generator().manual_seed(1)
    vector = 3 * torch.randn(model.model.embed_tokens.weight.shape[1], generator=generator)

    def steer(module: Any, args: Any, output: Any) -> Any:
        whole = (output[0] if isinstance(output, tuple) else output).clone()
        whole[:, -1] += vector.to(whole.dtype)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    model.model.layers[0].register_forward_hook(steer)
    return model


def skipped_layer(model: Any) -> Any:
    tuples = type(model).__name__.startswith("Chameleon")
    model.model.layers[1].forward = lambda hidden_states, *args, **kwargs: (hidden_states,) if tuples else hidden_states
    return model


def replaced_forward(model: Any) -> Any:
    attention = model.model.layers[1].self_attn
    own = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out, *rest = own(*args, **kwargs)
        return (out * -1, *rest)

    attention.forward = forward
    return model


def rotary_hook(model: Any) -> Any:
    model.model.rotary_emb.register_forward_hook(lambda module, args, output: (output[1], output[0]))
    return model


def inner_hook(model: Any) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state.flip(-1)

    model.model.register_forward_hook(hook)
    return model


def _biased(logits: Any) -> Any:
    """Other logits, where they are not those of tokens that the forward forbids."""
    bias = torch.linspace(-9, 9, logits.shape[-1])[torch.arange(logits.shape[-1]) * 7 % logits.shape[-1]]
    return torch.where(logits > -1e30, logits + bias.to(logits.dtype), logits)


def model_hook(model: Any) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        output.logits = _biased(output.logits)

    model.register_forward_hook(hook)
    return model


def model_pre_hook(model: Any) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"input_ids": (kwargs["input_ids"] * 3) % module.config.vocab_size}

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def subclass(model: Any) -> Any:
    class Other(type(model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = _biased(output.logits)
            return output

    model.__class__ = Other
    return model


def replaced_model_forward(model: Any) -> Any:
    own = model.forward

    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        output = own(input_ids=input_ids, **kwargs)
        output.logits = _biased(output.logits)
        return output

    model.forward = types.MethodType(forward, model)
    return model


def layer_subclass(model: Any) -> Any:
    layer = model.model.layers[0]

    class Other(type(layer)):
        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states * 3, *args, **kwargs)

    layer.__class__ = Other
    return model


ALTERATIONS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in (
        layer_hook,
        attention_hook,
        pre_hook,
        last_token_hook,
        skipped_layer,
        replaced_forward,
        rotary_hook,
        inner_hook,
        model_hook,
        model_pre_hook,
        subclass,
        replaced_model_forward,
        layer_subclass,
    )
}


@contextlib.contextmanager
def global_hook() -> Any:
    def hook(module: Any, args: Any, output: Any) -> Any:
        return output.roll(1, -1) if type(module) is nn.SiLU or type(module).__name__ == "SiLUActivation" else None

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
