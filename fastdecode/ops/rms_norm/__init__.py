"""`rms_norm`: the RMS norm of rows, or of rows plus a residual."""

from fastdecode.ops.rms_norm.operation import rms_norm

__all__ = ["rms_norm"]
