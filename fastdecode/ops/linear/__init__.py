"""`linear`: a linear layer for few rows; `joint_linear`: several linear layers of one input."""

from fastdecode.ops.linear.matrix import Matrix
from fastdecode.ops.linear.operation import joint_linear, linear

__all__ = ["Matrix", "joint_linear", "linear"]
