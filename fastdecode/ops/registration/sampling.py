"""`torch.ops.fastdecode.sample`, `advance` and `sample_advance`.

Their arguments are those of the functions in `fastdecode.ops`, flattened as `fastdecode.ops.sample.traced` and
`fastdecode.ops.advance.traced` do it. `largest_set`: no token set has more tokens; −1: the tables are read to find out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.advance import advance, sample_advance
from fastdecode.ops.advance.traced import OPTIONAL_STATE_NAMES, PLACE_NAMES, TABLE_NAMES
from fastdecode.ops.arguments import Sample
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.registration.library import register
from fastdecode.ops.sample import sample
from fastdecode.ops.sample.traced import NUMBERS
from fastdecode.ops.token_sets import TokenSets
from fastdecode.ops.tracing import plain

_PARAMETERS = (
    "Tensor? temperature=None, float temperature_value=1.0, Tensor? top_k=None, SymInt top_k_value=0, "
    "Tensor? top_p=None, float top_p_value=1.0, Tensor? min_p=None, float min_p_value=0.0, "
    "Tensor? penalty=None, float penalty_value=1.0, float contrast_alpha=0.0, SymInt contrast_k=0, "
    "Tensor? seed=None, SymInt seed_value=0"
)
_SETS = "Tensor ranges, Tensor set_offsets, SymInt largest_set"
_TABLES = ", ".join(f"Tensor {name}" for name in TABLE_NAMES) + ", SymInt vocab"
_PLACES = "Tensor(a!) mode, Tensor(b!) step, Tensor(c!) finished"
_STATE = (
    "Tensor? limit=None, Tensor(d!)? inputs=None, Tensor(e!)? lengths=None, Tensor(f!)? seen=None, "
    "Tensor(g!)? sequences=None"
)
_SAMPLE = "(Tensor token, Tensor logprob, Tensor kept, Tensor status)"

_SAMPLE_SCHEMA = (
    "(Tensor logits, *, Tensor? streams=None, Tensor? weights=None, Tensor? ranges=None, "
    "Tensor? set_offsets=None, SymInt largest_set=-1, Tensor? set_index=None, "
    f"{_PARAMETERS}, Tensor? seen=None, Tensor? step=None, SymInt step_value=0, Tensor? noise=None, "
    f"str? backend=None) -> {_SAMPLE}"
)
_ADVANCE_SCHEMA = (
    f"(Tensor token, {_SETS}, {_TABLES}, {_PLACES}, *, {_STATE}, Tensor? streams=None, str? backend=None) -> ()"
)
_SAMPLE_ADVANCE_SCHEMA = (
    f"(Tensor logits, {_SETS}, {_TABLES}, {_PLACES}, *, {_STATE}, Tensor? streams=None, "
    f"Tensor? weights=None, {_PARAMETERS}, Tensor? noise=None, str? backend=None) -> {_SAMPLE}"
)


def _take_numbers(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Removes each tensor and its `_value` from `options`, and returns by name the tensor, or else the value."""
    found = {}
    for name in names:
        tensor, value = options.pop(name, None), options.pop(f"{name}_value", None)
        if tensor is not None or value is not None:
            found[name] = value if tensor is None else tensor
    return found


def _take_contrast(options: dict[str, Any]) -> tuple[float, int] | None:
    alpha, k = options.pop("contrast_alpha", 0.0), options.pop("contrast_k", 0)
    return (alpha, k) if k != 0 or alpha != 0.0 else None


def _token_sets(ranges: Tensor, offsets: Tensor, largest: int) -> TokenSets:
    return TokenSets.from_tensors(ranges, offsets, None if largest < 0 else largest)


def _take_grammar(options: dict[str, Any]) -> GrammarTables:
    sets = _token_sets(options.pop("ranges"), options.pop("set_offsets"), options.pop("largest_set"))
    tables = {name: options.pop(name) for name in TABLE_NAMES}
    return GrammarTables.from_tensors(sets, **tables, vocab=options.pop("vocab"))


def _take_state(options: dict[str, Any]) -> DecodeState:
    return DecodeState(**{name: options.pop(name, None) for name in (*PLACE_NAMES, *OPTIONAL_STATE_NAMES)})


def _named(positional: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """All arguments after the first, by name."""
    names = ("ranges", "set_offsets", "largest_set", *TABLE_NAMES, "vocab", *PLACE_NAMES)
    return {**dict(zip(names, positional, strict=True)), **options}


def _sample(logits: Tensor, **options: Any) -> Sample:
    ranges, offsets = options.pop("ranges", None), options.pop("set_offsets", None)
    largest = options.pop("largest_set", -1)
    if (ranges is None) != (offsets is None):
        raise ValueError("ranges, set_offsets: must be given together")
    return sample(
        plain(logits),
        allowed=None if ranges is None or offsets is None else _token_sets(ranges, offsets, largest),
        contrast=_take_contrast(options),
        **_take_numbers(options, NUMBERS),
        **options,
    )


def _advance(token: Tensor, *positional: Any, **options: Any) -> None:
    options = _named(positional, options)
    advance(plain(token), _take_grammar(options), _take_state(options), **options)


def _sample_advance(logits: Tensor, *positional: Any, **options: Any) -> Sample:
    options = _named(positional, options)
    tables, state = _take_grammar(options), _take_state(options)
    contrast, numbers = _take_contrast(options), _take_numbers(options, NUMBERS)
    return sample_advance(plain(logits), tables, state, contrast=contrast, **numbers, **options)


def _new_sample(logits: Tensor, streams: Tensor | None) -> Sample:
    groups = logits.shape[0] if streams is None else streams.shape[0]
    return Sample(
        logits.new_empty(groups, dtype=torch.int64),
        logits.new_empty(groups, dtype=torch.float32),
        logits.new_empty(groups, dtype=torch.int32),
        logits.new_empty(groups, dtype=torch.int32),
    )


def _fake_sample(logits: Tensor, *positional: Any, streams: Tensor | None = None, **options: Any) -> Sample:
    return _new_sample(logits, streams)


def _fake_advance(token: Tensor, *positional: Any, **options: Any) -> None:
    return None


register("sample", _SAMPLE_SCHEMA, _sample, _fake_sample)
register("advance", _ADVANCE_SCHEMA, _advance, _fake_advance)
register("sample_advance", _SAMPLE_ADVANCE_SCHEMA, _sample_advance, _fake_sample)
