"""`embed`: rows of an embedding."""

from fastdecode.ops.embed.operation import embed

__all__ = ["embed"]
