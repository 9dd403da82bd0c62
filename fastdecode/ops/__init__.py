"""One function per operation: checks its arguments, chooses a backend, calls it."""

from fastdecode.ops.arguments import (
    STATUS_EMPTY_SET,
    STATUS_INVALID_LOGITS,
    STATUS_OK,
    Sample,
)
from fastdecode.ops.backends import available_backends, last_backend, unavailable
from fastdecode.ops.sample import sample
from fastdecode.ops.seen import seen_bits, set_seen_
from fastdecode.ops.token_sets import TokenSets

__all__ = [
    "STATUS_EMPTY_SET",
    "STATUS_INVALID_LOGITS",
    "STATUS_OK",
    "Sample",
    "TokenSets",
    "available_backends",
    "last_backend",
    "sample",
    "seen_bits",
    "set_seen_",
    "unavailable",
]
