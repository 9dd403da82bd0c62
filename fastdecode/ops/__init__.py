"""One function per operation, each in a folder of its own: it checks its arguments, chooses a backend, calls it.

Where an operation takes a tensor on the CPU it also takes a numpy array, or an object of any library with DLPack
(``__dlpack__``), and reads it without a copy. Results are tensors; ``.numpy()`` gives their memory as an array. What is
written in place (the tensors of a `DecodeState`, pages of keys and values, `seen` of `set_seen_`) must be a tensor or a
numpy array that is not read-only. In a graph (torch.compile, torch.export) everything must be tensors.

The folders have the names of their functions. `fastdecode.ops.sample` is the function: the imports below put it in the
place of the folder, whatever was imported first.
"""

import fastdecode.ops.registration  # noqa: F401, registers torch.ops.fastdecode
from fastdecode.ops.advance import advance, sample_advance
from fastdecode.ops.arguments import (
    STATUS_EMPTY_SET,
    STATUS_FINISHED,
    STATUS_INVALID_LOGITS,
    STATUS_OK,
    Sample,
)
from fastdecode.ops.attend import attend
from fastdecode.ops.backends import available_backends, last_backend, unavailable
from fastdecode.ops.decode_state import DecodeState
from fastdecode.ops.embed import embed
from fastdecode.ops.grammar_tables import GrammarTables
from fastdecode.ops.int4_rows import Int4Rows
from fastdecode.ops.linear import Matrix, joint_linear, linear
from fastdecode.ops.quantise import quantise
from fastdecode.ops.rms_norm import rms_norm
from fastdecode.ops.rope_append import rope_append
from fastdecode.ops.sample import sample
from fastdecode.ops.seen import seen_bits, set_seen_
from fastdecode.ops.small_tensor import SmallTensor
from fastdecode.ops.small_weights import SmallWeights, round_to_int8
from fastdecode.ops.swiglu import swiglu
from fastdecode.ops.token_sets import TokenSets

__all__ = [
    "STATUS_EMPTY_SET",
    "STATUS_FINISHED",
    "STATUS_INVALID_LOGITS",
    "STATUS_OK",
    "DecodeState",
    "GrammarTables",
    "Int4Rows",
    "Matrix",
    "Sample",
    "SmallTensor",
    "SmallWeights",
    "TokenSets",
    "advance",
    "attend",
    "available_backends",
    "embed",
    "joint_linear",
    "last_backend",
    "linear",
    "quantise",
    "rms_norm",
    "rope_append",
    "round_to_int8",
    "sample",
    "sample_advance",
    "seen_bits",
    "set_seen_",
    "swiglu",
    "unavailable",
]
