"""`sample`: one token per group from its streams' logits."""

from fastdecode.ops.sample.operation import sample

__all__ = ["sample"]
