"""`sample` as one operation of a traced graph: its arguments, flattened for `torch.ops.fastdecode.sample`.

An operation of torch takes tensors and numbers, each of one type. So what may be a number or a tensor becomes two
arguments, the tensor and, for where it is None, `_value`; token sets become their tensors.
`fastdecode.ops.registration.sampling` turns them back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.arguments import Sample
from fastdecode.ops.sample.checks import check_contrast
from fastdecode.ops.token_sets import TokenSets

NUMBERS = ("temperature", "top_k", "top_p", "min_p", "penalty", "seed", "step")
"""Arguments that are one number, or one for each group as a tensor."""


def flat_options(options: dict[str, Any]) -> dict[str, Any]:
    """The named arguments with numbers and contrast flattened."""
    flat = {}
    for name, value in options.items():
        if name in NUMBERS and not isinstance(value, Tensor):
            flat[f"{name}_value"] = value
        elif name == "contrast":
            if value is not None:
                flat["contrast_alpha"], flat["contrast_k"] = check_contrast(value)
        else:
            flat[name] = value
    return flat


def flat_sets(sets: TokenSets) -> tuple[Tensor, Tensor, int]:
    """(ranges, set_offsets, largest_set)."""
    return sets.ranges, sets.offsets, sets.largest


def call_sample(logits: Tensor, *, allowed: TokenSets | None, **options: Any) -> Sample:
    """`torch.ops.fastdecode.sample` with the arguments of `fastdecode.ops.sample`."""
    if allowed is not None:
        options["ranges"], options["set_offsets"], options["largest_set"] = flat_sets(allowed)
    return Sample(*torch.ops.fastdecode.sample(logits, **flat_options(options)))
