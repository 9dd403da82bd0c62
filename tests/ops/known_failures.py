"""What the tests of other samplers' failures share."""

import math

import torch

from fastdecode.ops import Sample

INF = math.inf
FAMILY_WISE = 1e-6
"""Chance that a statistical test here fails though nothing is wrong; seeds are fixed."""


def i32(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def one(got: Sample, g: int) -> Sample:
    """What one group got."""
    return Sample(*(field[g : g + 1] for field in got))


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
