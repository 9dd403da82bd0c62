"""`swiglu`: the activation between the linear layers of a gated MLP."""

from fastdecode.ops.swiglu.operation import swiglu

__all__ = ["swiglu"]
