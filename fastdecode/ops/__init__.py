"""One function per operation: checks its arguments, chooses a backend, calls it."""

from fastdecode.ops.advance import advance, sample_advance
from fastdecode.ops.arguments import (
    STATUS_EMPTY_SET,
    STATUS_FINISHED,
    STATUS_INVALID_LOGITS,
    STATUS_OK,
    Sample,
)
from fastdecode.ops.backends import available_backends, last_backend, unavailable
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.sample import sample
from fastdecode.ops.seen import seen_bits, set_seen_
from fastdecode.ops.token_sets import TokenSets

__all__ = [
    "STATUS_EMPTY_SET",
    "STATUS_FINISHED",
    "STATUS_INVALID_LOGITS",
    "STATUS_OK",
    "DecodeState",
    "GrammarTables",
    "Sample",
    "TokenSets",
    "advance",
    "available_backends",
    "last_backend",
    "sample",
    "sample_advance",
    "seen_bits",
    "set_seen_",
    "unavailable",
]
