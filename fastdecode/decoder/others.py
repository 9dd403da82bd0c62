"""Models whose layers fastdecode does not know: what their own ``forward`` needs, found out by calling it once.

That is any decoder-only model of transformers that writes text and keeps nothing but keys and values.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from fastdecode.decoder.alterations import device_of
from fastdecode.decoder.classes import NESTS, known_classes, text_config
from fastdecode.decoder.places import PLACED_MODELS
from fastdecode.kv.aligned_cache import LayerSizes

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers' versions call the cache among the arguments of a forward."""

PICTURES_AND_SOUND = ("pixel_values", "input_features", "input_values", "images", "audio_features")
PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""The layers of a cache of transformers that keep keys and values, or nothing."""

OWN_INPUTS = ("phi3", "phimoe")
"""Types of models whose ``prepare_inputs_for_generation`` is one of their own, which changes nothing within the context
that fastdecode takes (`long_rope_context`).
"""

CUT_BY_CACHE = ("moshi",)
"""Types of models whose windows are made by transformers' cache, which drops keys: their own masks show all tokens."""

ADVICE = "use transformers' own generate for it"


@dataclass(frozen=True)
class Traits:
    """What a model's forward takes and gives its cache.

    cache_name       what it calls the cache
    layers           by ``layer_idx``, of the layers that keep keys and values
    takes_positions  whether it takes position_ids
    outputs          the number of logits: the first tokens of the vocabulary
    """

    cache_name: str
    layers: dict[int, LayerSizes]
    takes_positions: bool
    outputs: int

    @property
    def kv_heads(self) -> int:
        return max(sizes.kv_heads for sizes in self.layers.values())

    @property
    def head_dim(self) -> int:
        return max(max(sizes.key_dim, sizes.value_dim) for sizes in self.layers.values())


_found: WeakKeyDictionary[Any, tuple[Any, Traits]] = WeakKeyDictionary()


def check_supported(model: Any) -> None:
    """TypeError for a model that no decoder decodes: one that does not write text, and, of those whose layers
    fastdecode does not know, one that `traits_of` refuses.
    """
    if known_classes(model) is not None:
        return
    if not is_writer(model):
        raise TypeError(
            "fastdecode decodes models of transformers that write text from left to right (…ForCausalLM), and pictures "
            f"with ChameleonForConditionalGeneration and {', '.join(n.model.__name__ for n in NESTS)}; "
            f"got {type(model).__name__}"
        )
    traits_of(model)


def traits_of(model: Any) -> Traits:
    """Those of a model whose layers fastdecode does not know. The first time its forward is called, with a few tokens.
    TypeError, one sentence, for a model that cannot be decoded.
    """
    config = text_config(model)
    kind = (type(model), model.training, getattr(config, "num_hidden_layers", None), config.vocab_size)
    known = _found.get(model)
    if known is None or known[0] != kind:
        if not isinstance(model, PLACED_MODELS):
            check_kind(model)
        known = _found[model] = (kind, _tried(model))
    return known[1]


def is_writer(model: Any) -> bool:
    """Whether ``model`` is of a class of transformers that has a ``generate`` for tokens."""
    return isinstance(model, PreTrainedModel) and isinstance(model, GenerationMixin) and bool(model.can_generate())


def arguments_of(kind: type) -> set[str]:
    """The names of the arguments of a model's forward, those included that it may pass on to its base class."""
    found: set[str] = set()
    for one in kind.__mro__:
        if "forward" in vars(one):
            parameters = inspect.signature(vars(one)["forward"]).parameters
            found |= set(parameters)
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return found


def check_kind(model: Any) -> None:
    """TypeError, one sentence, if the class or config of ``model``, which is a `is_writer`, says that it cannot be
    decoded by calls of its forward over rows of different lengths.
    """
    name, taken = type(model).__name__, arguments_of(type(model))
    if model.config.is_encoder_decoder:
        raise TypeError(
            f"{name} has an encoder and a decoder, and fastdecode decodes models that are a decoder alone: {ADVICE}"
        )
    strange = [part for part in PICTURES_AND_SOUND if part in taken]
    if strange:
        raise TypeError(
            f"{name} takes {strange[0]} beside tokens, and fastdecode decodes models that it does not know only where "
            f"they take text alone: {ADVICE}, or give fastdecode the model of its language"
        )
    state = _other_state(model)
    if state is not None:
        raise TypeError(f"{name} keeps {state}, and fastdecode has memory for keys and values alone: {ADVICE}")
    if model.config.model_type in CUT_BY_CACHE:
        raise TypeError(
            f"{name} sees a window of keys that its cache cuts and its mask does not show, which fastdecode's cache "
            f"does not do: {ADVICE}"
        )
    missing = next((part for part in ("input_ids", "attention_mask") if part not in taken), None)
    if missing is None and not any(part in taken for part in CACHE_NAMES):
        missing = "cache of keys and values"
    if missing is not None:
        raise TypeError(f"the forward of {name} takes no {missing}, which fastdecode gives it: {ADVICE}")
    prepares = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    if prepares and model.config.model_type not in OWN_INPUTS:
        raise TypeError(
            f"{name} has a prepare_inputs_for_generation of its own, which fastdecode does not call: {ADVICE}"
        )


def _other_state(model: Any) -> str | None:
    """What a model keeps of a sequence besides keys and values; None if it keeps nothing else."""
    if getattr(model, "_is_stateful", False):
        return "a state of the sequence besides keys and values"
    try:
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    except Exception as error:
        return f"a cache that transformers does not make from its config alone ({type(error).__name__}: {error})"
    strange = next((type(layer).__name__ for layer in layers if type(layer).__name__ not in PLAIN_LAYERS), None)
    return None if strange is None else f"a {strange} for a layer"


def long_rope_context(config: Any) -> int | None:
    """The length from which a model turns its tokens by other angles than before, those before included; None if there
    is none. Whoever decodes beyond it has to compute all keys again.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    several = [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]
    for rope in several:
        if rope.get("rope_type") == "longrope":
            own = rope.get("original_max_position_embeddings")
            return own or getattr(config, "original_max_position_embeddings", None)
    return None


class _Recorder(Cache):
    """Records what every layer gives its cache, for one call of a forward."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.found: dict[int, LayerSizes] = {}
        self.problem: str | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        shapes = tuple(key_states.shape), tuple(value_states.shape)
        if layer_idx in self.found:
            self.problem = f"its layer {layer_idx} gives the cache keys twice in one call"
        elif len(shapes[0]) != 4 or len(shapes[1]) != 4 or shapes[0][:3] != shapes[1][:3]:
            self.problem = f"its layer {layer_idx} gives the cache keys of {shapes[0]} and values of {shapes[1]}"
        else:
            self.found[layer_idx] = LayerSizes(shapes[0][1], shapes[0][3], shapes[1][3])
        return key_states, value_states

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


TRIED = (3, 5, 4, 6, 7)
"""Tokens of the call that tries a forward, for vocabularies of any size modulo that."""


def _tried(model: Any) -> Traits:
    """Two rows: some tokens, and the first two of them after padding. The logits of the second token must be equal."""
    name, taken = type(model).__name__, arguments_of(type(model))
    device, most = device_of(model), int(text_config(model).vocab_size)
    first = [token % most for token in TRIED]
    ids = torch.tensor([first, [0, 0, 0, *first[:2]]], device=device)
    mask = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]], device=device)
    recorder = _Recorder()
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True, "return_dict": True}
    cache_name = next(part for part in CACHE_NAMES if part in taken)
    if "position_ids" in taken:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):  # dropout draws
            logits = model(**given, **{cache_name: recorder}).logits
    except Exception as error:
        if model.get_input_embeddings().weight.is_meta:
            raise TypeError(
                f"the weights of this {name} are on the meta device, without values: load them first"
            ) from error
        raise TypeError(
            f"a call of the forward of {name} with a cache and rows of different lengths fails "
            f"({type(error).__name__}: {error}): {ADVICE}"
        ) from error
    problem = recorder.problem
    if not recorder.found:
        problem = "it puts no keys into the cache that it is given"
    elif not model.training and not _equal(logits[0, 1], logits[1, 4], model):
        problem = "what it says of a token depends on later tokens, or on padding before it"
    if problem is not None:
        raise TypeError(f"fastdecode cannot decode {name}, because {problem}: {ADVICE}")
    return Traits(cache_name, dict(sorted(recorder.found.items())), "position_ids" in taken, int(logits.shape[-1]))


def _equal(one: Tensor, other: Tensor, model: Any) -> bool:
    """Whether logits (vocab,) are equal but for rounding. NaN is left to those who sample."""
    tolerance = 0.1 if any(p.dtype.itemsize < 4 for p in (one, *model.parameters())) else 1e-3
    one, other = one.double(), other.double()
    if not (one.isfinite().all() and other.isfinite().all()):
        return True
    spread = (one - one.mean()).abs().max()
    return bool((one - other).abs().max() <= tolerance * spread)
