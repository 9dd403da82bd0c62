"""The bandwidth of the device's memory, from which every floor is computed. Every part measures it in its own run."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.gpu_timing import seconds_of

SIZE = 2**32
DRY_SIZE = 2**22
_WIDTH = 4096


def bandwidth(device: str, size: int | None = None) -> dict[str, float]:
    """Bytes per second of ``copy`` (bytes read and written) and ``read``, for buffers of ``size`` bytes that are larger
    than the caches and full of random numbers.

    ``read`` is the faster of a sum over float32 numbers and a bfloat16 matrix times one vector. ``best`` is the fastest
    of all; a floor is computed from it, since no operation can be expected to read faster.
    """
    size = size or (DRY_SIZE if device == "cpu" else SIZE)
    source = torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    copied = 2 * size / seconds_of(partial(target.copy_, source), device, calls=4).seconds
    numbers, matrix = source.view(torch.float32), source.view(-1, _WIDTH)
    vector = torch.randn(1, _WIDTH, device=device).bfloat16()
    summed = size / seconds_of(numbers.sum, device, calls=4).seconds
    multiplied = size / seconds_of(partial(F.linear, vector, matrix), device, calls=4).seconds
    read = max(summed, multiplied)
    return {"copy": copied, "sum": summed, "matrix by vector": multiplied, "read": read, "best": max(copied, read)}
