"""Registers `torch.ops.fastdecode.*`: the operations for torch.compile, and for programs that use torch alone.

Each registered operation calls its function in `fastdecode.ops`, so this room is above all operations.
"""

from fastdecode.ops.registration import decode_step, sampling

__all__ = ["decode_step", "sampling"]
