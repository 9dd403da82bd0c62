"""`attend`: attention of one query per row over its pages of keys and values."""

from fastdecode.ops.attend.operation import attend

__all__ = ["attend"]
