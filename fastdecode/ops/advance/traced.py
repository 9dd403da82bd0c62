"""`advance` and `sample_advance` as operations of a traced graph, flattened as in `fastdecode.ops.sample.traced`.

The grammar tables and the decode state become their tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.arguments import Sample
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample.traced import flat_options, flat_sets

TABLE_NAMES = ("set_of", "tight_set_of", "room", "forced", "following", "class_ranges")
PLACE_NAMES = ("mode", "step", "finished")
"""Tensors of a DecodeState that are always there."""

OPTIONAL_STATE_NAMES = ("limit", "inputs", "lengths", "seen", "sequences")


def _flat_grammar(tables: GrammarTables, state: DecodeState) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, named) arguments."""
    flat = [getattr(tables, name) for name in TABLE_NAMES]
    places = [getattr(state, name) for name in PLACE_NAMES]
    named = {name: getattr(state, name) for name in OPTIONAL_STATE_NAMES}
    return (*flat_sets(tables.sets), *flat, tables.vocab, *places), named


def call_advance(token: Tensor, tables: GrammarTables, state: DecodeState, **options: Any) -> None:
    """`torch.ops.fastdecode.advance` with the arguments of `fastdecode.ops.advance`."""
    positional, named = _flat_grammar(tables, state)
    torch.ops.fastdecode.advance(token, *positional, **named, **options)


def call_sample_advance(logits: Tensor, tables: GrammarTables, state: DecodeState, **options: Any) -> Sample:
    """`torch.ops.fastdecode.sample_advance` with the arguments of `fastdecode.ops.sample_advance`."""
    positional, named = _flat_grammar(tables, state)
    return Sample(*torch.ops.fastdecode.sample_advance(logits, *positional, **named, **flat_options(options)))
