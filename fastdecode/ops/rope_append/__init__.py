"""`rope_append`: norms and rotates new queries and keys, and stores the keys and values in pages."""

from fastdecode.ops.rope_append.head_norm import HeadNorm
from fastdecode.ops.rope_append.operation import rope_append

__all__ = ["HeadNorm", "rope_append"]
