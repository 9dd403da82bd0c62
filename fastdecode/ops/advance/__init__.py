"""`advance`: one token appended to every group; `sample_advance`: sampled by the grammar, then appended."""

from fastdecode.ops.advance.operation import advance, sample_advance

__all__ = ["advance", "sample_advance"]
