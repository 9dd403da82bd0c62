"""The checked arguments of `sample` and `sample_advance`, as every backend takes them, and their result."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdecode.ops.token_sets import TokenSets

STATUS_OK = 0
STATUS_INVALID_LOGITS = 1
STATUS_EMPTY_SET = 2
STATUS_FINISHED = 3


class Sample(NamedTuple):
    """The sampled tokens, one element per group.

    status: 0 ok; 1 invalid logits (a NaN or +inf was read or computed, all logits are −inf, or the
    group has no weighted stream); 2 empty set; 3, only from `sample_advance`, the group had finished
    before. A group whose status is not 0 has token −1, logprob −inf and kept 0.
    """

    token: Tensor
    """(groups,) int64: the sampled token."""
    logprob: Tensor
    """(groups,) float32: of the sampled token under the final, renormalised distribution."""
    kept: Tensor
    """(groups,) int32: number of tokens that passed the filters."""
    status: Tensor
    """(groups,) int32: 0, 1, 2 or 3."""


# (a tensor with one value per group, ignored) or (None, one value for all groups). Plain tuples, since every call makes
# some.
FloatParameter = tuple[Tensor | None, float]
IntParameter = tuple[Tensor | None, int]


class SampleArguments(NamedTuple):
    """Arguments of `sample`: shapes, dtypes and devices checked, tensors contiguous."""

    logits: Tensor
    groups: int
    width: int
    streams: Tensor | None
    weights: Tensor | None
    allowed: TokenSets | None
    set_index: Tensor | None
    temperature: FloatParameter
    top_k: IntParameter
    top_p: FloatParameter
    min_p: FloatParameter
    penalty: FloatParameter
    seen: Tensor | None
    contrast: tuple[float, int] | None
    seed: IntParameter
    step: IntParameter
    noise: Tensor | None
