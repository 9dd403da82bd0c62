"""What changes a model's computation in a way that only its own forward follows.

The fast decoders read the weights, or call the linear modules, norms and MLPs of a layer. They do not call the modules
around those: a layer, its ``self_attn``, the language model that holds them and the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn, overrides
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.utils import _python_dispatch as python_dispatch
from torch.utils._device import DeviceContext
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastdecode.decoder.autocast import Autocast
from fastdecode.decoder.classes import DECODED, NESTS, Classes, classes_of, inner_of, known_classes, window_of
from fastdecode.decoder.own_tokens import OwnParts
from fastdecode.decoder.plain import DTYPES

Place = tuple[str, Any, tuple[type[nn.Module], ...]]

_FORWARDS = {
    c: c.forward
    for classes in (*(f.all for f in DECODED), *((n.model, *n.between) for n in NESTS), (nn.Linear, nn.Embedding))
    for c in classes
}
"""The functions that the classes had when this file was imported: one may be replaced on the class."""

_CALLED = ("apply_rotary_pos_emb", "rotate_half", "repeat_kv", "eager_attention_forward")
_TORCH = ("linear", "embedding", "silu", "gelu", "scaled_dot_product_attention")
_FUNCTIONS = {
    f.inner: {
        (m, name): getattr(m, name)
        for m, names in ((sys.modules[f.inner.__module__], _CALLED), (functional, _TORCH))
        for name in names
    }
    for f in DECODED
}
"""By a language model's class: the functions that the forwards of its modules call by name, as they were when this file
was imported.
"""


def global_hooks() -> bool:
    """Whether torch calls hooks for the forward of every module."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def why_altered(module: Any, *classes: type[nn.Module]) -> str | None:
    """How ``module`` differs from what its one of ``classes`` computes; None if it does not."""
    if module._forward_hooks:
        return "has a forward hook"
    if module._forward_pre_hooks:
        return "has a forward pre-hook"
    if "_hf_hook" in module.__dict__:
        return "has a hook of accelerate"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    kind = type(module)
    like = next((c for c in classes if issubclass(kind, c)), None)
    if like is None:
        return f"is {kind.__name__}, not {' or '.join(c.__name__ for c in classes)}"
    if kind.forward is not like.forward or kind.__call__ is not like.__call__:
        return f"is {kind.__name__}, whose forward is not that of {like.__name__}"
    return None


def _around_layers(model: Any, known: Classes) -> Iterator[Place]:
    """The modules that the fast decoders do not call, or whose result they keep."""
    inner, name = inner_of(model), ".".join(known.path)
    yield from _above(model, known)
    yield f"model.{name}", inner, (known.inner,)
    yield f"{name}.rotary_emb", inner.rotary_emb, (known.rotary,)
    for number, layer in enumerate(inner.layers):
        yield f"{name}.layers.{number}", layer, known.layers
        attention = getattr(layer, "self_attn", None)
        if attention is not None:
            yield f"{name}.layers.{number}.self_attn", attention, (known.attention,)


def _above(model: Any, known: Classes) -> Iterator[Place]:
    """The model itself, and the modules between it and its language model."""
    yield "the model", model, (known.model,)
    module = model
    for name, kind in zip(known.path, known.between, strict=False):
        module = getattr(module, name)
        yield f"model.{name}", module, (kind,)


def top_altered(model: Any) -> bool:
    """Whether the top-level module itself has to be called, not the language model inside and the head."""
    known = classes_of(model)
    replaced = _replaced((known.model, *known.between)) is not None
    altered = any(why_altered(module, *classes) is not None for _, module, classes in _above(model, known))
    return global_hooks() or replaced or altered


def _replaced(classes: Any) -> type[nn.Module] | None:
    """The first class whose forward another function has replaced; of a registered one, since it was first met."""
    for c in classes:
        if c.forward is not _FORWARDS.setdefault(c, c.forward) or c.forward.__module__ != c.__module__:
            return c
    return None


def needs_forward(model: Any) -> str | None:
    """Why this model can only be decoded by its own ``forward``, as what follows "because"; None if the fast decoders
    compute the same.
    """
    autocast = Autocast.now(device_of(model))
    return altered_reason(model) or (f"{autocast} is on" if autocast.on else None) or mode_of_torch()


def mode_of_torch() -> str | None:
    """The mode of torch in this thread that sees every operation, and may change it; None if there is none.
    ``with torch.device(…)`` only says where new tensors are.
    """
    modes = [m for m in overrides._get_current_function_mode_stack() if type(m) is not DeviceContext]
    modes += python_dispatch._get_current_dispatch_mode_stack()
    return f"torch is in a {type(modes[-1]).__name__}" if modes else None


def altered_reason(model: Any) -> str | None:
    """As `needs_forward`, whatever `torch.autocast` is in this thread."""
    known = known_classes(model)
    if known is None:
        return f"fastdecode does not know the layers of {type(model).__name__}"
    inner = inner_of(model)
    if global_hooks():
        return "torch has global forward hooks"
    for name, module, classes in _around_layers(model, known):
        reason = why_altered(module, *classes)
        if reason is not None:
            return f"{name} {reason}"
    replaced = _replaced((*known.all, nn.Linear, nn.Embedding))
    if replaced is not None:
        return f"{replaced.__name__}.forward was replaced"
    for (module, name), function in _FUNCTIONS[known.inner].items():
        now = getattr(module, name)
        if now is not function or (module is not functional and now.__module__ != module.__name__):
            return f"{module.__name__.rpartition('.')[2]}.{name} was replaced"
    return _unusual_attention(inner.config, inner) or _unusual_weights(model)


def _unusual_attention(config: Any, inner: Any) -> str | None:
    kind = config._attn_implementation
    if kind != "eager":
        function = ALL_ATTENTION_FUNCTIONS.get(kind)
        if getattr(function, "__module__", "").partition(".")[0] != "transformers":
            return f"attn_implementation={kind!r} is not one of transformers' own"
    window = window_of(config)
    if window is not None:
        return f"its layers see the last {window} tokens only"
    if inner.training and config.attention_dropout:
        return "it is in training mode, with dropout"
    if len(inner.layers) != config.num_hidden_layers:
        return f"it has {len(inner.layers)} layers, and config.num_hidden_layers is {config.num_hidden_layers}"
    if len({type(layer) for layer in inner.layers}) > 1:
        return "its layers are of several classes"
    numbers = [layer.self_attn.layer_idx for layer in inner.layers]
    if len(set(numbers)) != len(numbers):
        return "a layer is used twice"
    return None


def device_of(model: Any) -> torch.device:
    """Where a model's embeddings are computed: where they are, or where accelerate brings them for the time."""
    embed = model.get_input_embeddings() if known_classes(model) is None else inner_of(model).embed_tokens
    weight = next(embed.parameters(), None)
    if weight is not None and weight.device.type != "meta":
        return weight.device
    where = getattr(getattr(embed, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if where is None else where)


def _own_modules(model: Any) -> list[nn.Module]:
    """The modules of image tokens that have embeddings and a head of their own."""
    own = OwnParts.of(model)
    return [] if own is None else [part.module for part in (*own.embed, *own.head)]


def _unusual_weights(model: Any) -> str | None:
    """Several devices, or a dtype that the fast decoders do not read."""
    devices, dtypes = {}, {}
    inner = inner_of(model)
    for module in (inner.embed_tokens, inner.layers, inner.norm, model.lm_head, *_own_modules(model)):
        for parameter in module.parameters():
            devices[parameter.device] = dtypes[parameter.dtype] = True
    if len(devices) > 1:
        return f"its weights are on {', '.join(sorted(map(str, devices)))}"
    floating = [dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1]
    strange = next((dtype for dtype in floating if dtype not in DTYPES), None)
    return None if strange is None else f"its weights are {str(strange).removeprefix('torch.')}"


def check_inputs(model: Any) -> None:
    """ValueError if the model's class prepares the inputs of its forward in a way of its own, or if a module is not
    there whose sizes are read, or if tokens see later ones.
    """
    use = "use transformers' generate for it (fastdecode.disable(model) brings it back)"
    inner = inner_of(model)
    if not isinstance(getattr(inner.embed_tokens, "weight", None), torch.Tensor):
        raise ValueError(f"model.embed_tokens is a {type(inner.embed_tokens).__name__}, which has no weight: {use}")
    for number, layer in enumerate(inner.layers):
        if not isinstance(getattr(layer, "self_attn", None), nn.Module):
            raise ValueError(
                f"model.layers.{number} is a {type(layer).__name__}, which has no self_attn whose keys and values "
                f"fastdecode could keep: {use}"
            )
        if getattr(layer.self_attn, "is_causal", True) is not True:
            raise ValueError(
                f"model.layers.{number}.self_attn.is_causal is {layer.self_attn.is_causal!r}: fastdecode decodes "
                f"tokens that see only earlier ones; set it to True, or {use}"
            )
    like: Any = classes_of(model).model
    if type(model).prepare_inputs_for_generation is not like.prepare_inputs_for_generation:
        raise ValueError(
            f"{type(model).__name__} has a prepare_inputs_for_generation of its own, which fastdecode does not call: "
            f"{use}"
        )


class Fingerprint:
    """Tells whether a model computes something else than when this was made: other modules, hooks or forwards, PEFT's
    active adapters. With ``weights``, also whether a parameter got other memory, or was written to in place (a write to
    its ``.data`` is not seen). What hooks do is not looked at.
    """

    def __init__(self, model: Any, weights: bool) -> None:
        self.model, self.weights = model, weights
        self.reason, self.parts = altered_reason(model), self._parts()

    def _parts(self) -> list[Any]:
        if known_classes(self.model) is None:
            return self._of_modules((), self.model.modules())
        inner = inner_of(self.model)
        below = [inner.embed_tokens, inner.layers, inner.norm, inner.rotary_emb, self.model.lm_head]
        below += _own_modules(self.model)
        around = [module for _, module, _ in _above(self.model, classes_of(self.model))]
        return self._of_modules((*around, inner), chain.from_iterable(part.modules() for part in below))

    def _of_modules(self, around: tuple[Any, ...], below: Iterable[Any]) -> list[Any]:
        """``around``: modules whose own weights are not looked at."""
        found: list[Any] = [*torch_module._global_forward_hooks, *torch_module._global_forward_pre_hooks]
        for module in chain(around, below):
            own = module.__dict__
            found += (id(module), own.get("_active_adapter"), own.get("_disable_adapters"))
            if module._forward_hooks or module._forward_pre_hooks or "forward" in own:
                found += (*module._forward_hooks, None, *module._forward_pre_hooks, id(own.get("forward")))
            if self.weights and module not in around:
                found += (_memory_of(p) for p in own["_parameters"].values())
        return found

    def change(self) -> str | None:
        """What has changed since; None if nothing has."""
        reason = altered_reason(self.model)
        if reason != self.reason:
            return reason or f"no longer: {self.reason}"
        return None if self._parts() == self.parts else "its modules, their hooks, adapters or weights are others"


def _memory_of(parameter: torch.Tensor | None) -> tuple[int, int]:
    """Where a parameter is, and how often it was written to in place (0 for an inference tensor, which does not count).

    Decoders copy small weights, and an engine retains keys and values, so that new values would be mixed with old ones.
    """
    if parameter is None:
        return 0, 0
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version
