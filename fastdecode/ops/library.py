"""`torch.ops.fastdecode.*`: the operations for torch.compile, and for callers that speak to torch alone.

The functions of `fastdecode.ops` with everything flat: where those take a number or a tensor, these take a tensor or,
where it is None, the `_value` beside it; token sets and grammar tables are their tensors. Every operation runs on
whatever backend its function chooses. `largest_set`: no set has more ids; −1: the tables are read to find out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from fastdecode.ops.arguments import Sample
from fastdecode.ops.checks import check_contrast
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.token_sets import TokenSets

_PARAMETERS = (
    "Tensor? temperature=None, float temperature_value=1.0, Tensor? top_k=None, SymInt top_k_value=0, "
    "Tensor? top_p=None, float top_p_value=1.0, Tensor? min_p=None, float min_p_value=0.0, "
    "Tensor? penalty=None, float penalty_value=1.0, float contrast_alpha=0.0, SymInt contrast_k=0, "
    "Tensor? seed=None, SymInt seed_value=0"
)
_SETS = "Tensor ranges, Tensor set_offsets, SymInt largest_set"
_TABLE_NAMES = ("set_of", "tight_set_of", "room", "forced", "following", "class_ranges")
_TABLES = ", ".join(f"Tensor {name}" for name in _TABLE_NAMES) + ", SymInt vocab"
_PLACES = "Tensor(a!) mode, Tensor(b!) step, Tensor(c!) finished"
_STATE = (
    "Tensor? limit=None, Tensor(d!)? inputs=None, Tensor(e!)? lengths=None, Tensor(f!)? seen=None, "
    "Tensor(g!)? sequences=None"
)
_SAMPLE = "(Tensor token, Tensor logprob, Tensor kept, Tensor status)"

_library = torch.library.Library("fastdecode", "DEF")
_library.define(
    "sample(Tensor logits, *, Tensor? streams=None, Tensor? weights=None, Tensor? ranges=None, "
    "Tensor? set_offsets=None, SymInt largest_set=-1, Tensor? set_index=None, "
    f"{_PARAMETERS}, Tensor? seen=None, Tensor? step=None, SymInt step_value=0, Tensor? noise=None, "
    f"str? backend=None) -> {_SAMPLE}"
)
_library.define(
    f"advance(Tensor token, {_SETS}, {_TABLES}, {_PLACES}, *, {_STATE}, Tensor? streams=None, str? backend=None) -> ()"
)
_library.define(
    f"sample_advance(Tensor logits, {_SETS}, {_TABLES}, {_PLACES}, *, {_STATE}, Tensor? streams=None, "
    f"Tensor? weights=None, {_PARAMETERS}, Tensor? noise=None, str? backend=None) -> {_SAMPLE}"
)

_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "penalty", "seed")
_STATE_NAMES = ("mode", "step", "finished", "limit", "inputs", "lengths", "seen", "sequences")


def _numbers(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Takes the pairs of a tensor and a value out of `options`, and gives whichever is there."""
    found = {}
    for name in names:
        tensor, value = options.pop(name, None), options.pop(f"{name}_value", None)
        if tensor is not None or value is not None:
            found[name] = value if tensor is None else tensor
    return found


def _contrast(options: dict[str, Any]) -> tuple[float, int] | None:
    alpha, k = options.pop("contrast_alpha", 0.0), options.pop("contrast_k", 0)
    return (alpha, k) if k != 0 else None


def _token_sets(ranges: Tensor, offsets: Tensor, largest: int) -> TokenSets:
    return TokenSets.from_tensors(ranges, offsets, None if largest < 0 else largest)


def _grammar(options: dict[str, Any]) -> GrammarTables:
    sets = _token_sets(options.pop("ranges"), options.pop("set_offsets"), options.pop("largest_set"))
    tables = {name: options.pop(name) for name in _TABLE_NAMES}
    return GrammarTables.from_tensors(sets, **tables, vocab=options.pop("vocab"))


def _state(options: dict[str, Any]) -> DecodeState:
    return DecodeState(**{name: options.pop(name, None) for name in _STATE_NAMES})


def _named(positional: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The positional arguments behind the first, by name, with the others."""
    names = ("ranges", "set_offsets", "largest_set", *_TABLE_NAMES, "vocab", "mode", "step", "finished")
    return {**dict(zip(names, positional, strict=True)), **options}


def _sample(logits: Tensor, **options: Any) -> Sample:
    from fastdecode.ops.sample import sample

    ranges, offsets = options.pop("ranges", None), options.pop("set_offsets", None)
    largest = options.pop("largest_set", -1)
    if (ranges is None) != (offsets is None):
        raise ValueError("ranges, set_offsets: must be given together")
    return sample(
        logits.as_subclass(Tensor),  # here the operation runs: it is not to become one again
        allowed=None if ranges is None or offsets is None else _token_sets(ranges, offsets, largest),
        contrast=_contrast(options),
        **_numbers(options, (*_NUMBERS, "step")),
        **options,
    )


def _advance(token: Tensor, *positional: Any, **options: Any) -> None:
    from fastdecode.ops.advance import advance

    options = _named(positional, options)
    advance(token.as_subclass(Tensor), _grammar(options), _state(options), **options)


def _sample_advance(logits: Tensor, *positional: Any, **options: Any) -> Sample:
    from fastdecode.ops.advance import sample_advance

    options = _named(positional, options)
    tables, state = _grammar(options), _state(options)
    logits = logits.as_subclass(Tensor)
    return sample_advance(logits, tables, state, contrast=_contrast(options), **_numbers(options, _NUMBERS), **options)


def is_traced(tensor: Any) -> bool:
    """Whether a call is to become an operation of a graph: under a tracer, or on tensors that stand for others."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _len_torch_dispatch_stack() > 0
        or (type(tensor) is not Tensor and isinstance(tensor, Tensor) and not isinstance(tensor, torch.nn.Parameter))
    )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """What `_numbers` undoes; a number per group must be a tensor of one dimension."""
    flat = {}
    for name, value in options.items():
        if name in (*_NUMBERS, "step") and not isinstance(value, Tensor):
            flat[f"{name}_value"] = value
        elif name == "contrast":
            if value is not None:
                flat["contrast_alpha"], flat["contrast_k"] = check_contrast(value)
        else:
            flat[name] = value
    return flat


def _flat_sets(sets: TokenSets) -> tuple[Tensor, Tensor, int]:
    return sets.ranges, sets.offsets, sets.largest


def call_sample(logits: Tensor, *, allowed: TokenSets | None, **options: Any) -> Sample:
    """`fastdecode.ops.sample` as one operation of a compiled graph; ``allowed`` compiled beforehand."""
    if allowed is not None:
        options["ranges"], options["set_offsets"], options["largest_set"] = _flat_sets(allowed)
    return Sample(*torch.ops.fastdecode.sample(logits, **_flat(options)))


def _flat_grammar(tables: GrammarTables, state: DecodeState) -> tuple[tuple[Any, ...], dict[str, Any]]:
    named = {name: getattr(state, name) for name in _STATE_NAMES}
    places = [named.pop(name) for name in ("mode", "step", "finished")]
    flat = [getattr(tables, name) for name in _TABLE_NAMES]
    return (*_flat_sets(tables.sets), *flat, tables.vocab, *places), named


def call_advance(token: Tensor, tables: GrammarTables, state: DecodeState, **options: Any) -> None:
    """`fastdecode.ops.advance` as one operation of a compiled graph."""
    positional, named = _flat_grammar(tables, state)
    torch.ops.fastdecode.advance(token, *positional, **named, **options)


def call_sample_advance(logits: Tensor, tables: GrammarTables, state: DecodeState, **options: Any) -> Sample:
    """`fastdecode.ops.sample_advance` as one operation of a compiled graph."""
    positional, named = _flat_grammar(tables, state)
    return Sample(*torch.ops.fastdecode.sample_advance(logits, *positional, **named, **_flat(options)))


def _sampled(logits: Tensor, streams: Tensor | None) -> Sample:
    groups = logits.shape[0] if streams is None else streams.shape[0]
    return Sample(
        logits.new_empty(groups, dtype=torch.int64),
        logits.new_empty(groups, dtype=torch.float32),
        logits.new_empty(groups, dtype=torch.int32),
        logits.new_empty(groups, dtype=torch.int32),
    )


def _fake_sample(logits: Tensor, *positional: Any, streams: Tensor | None = None, **options: Any) -> Sample:
    return _sampled(logits, streams)


def _fake_advance(token: Tensor, *positional: Any, **options: Any) -> None:
    return None


for _name, _run, _fake in (
    ("sample", _sample, _fake_sample),
    ("advance", _advance, _fake_advance),
    ("sample_advance", _sample_advance, _fake_sample),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdecode::{_name}", _fake, lib=_library)
