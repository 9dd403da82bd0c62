"""The attributes that the launchers read of their arguments.

`fastdecode.ops` has the classes, checks their contents and describes shapes and dtypes. The kernels are below it and
import nothing from there: any object with these attributes will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Matrix(Protocol):
    """weight (features, k), bias (features,), scale (features,)."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


class GroupedMatrix(Protocol):
    """``data`` (features, k / 2) of half bytes, ``scale`` and ``offset`` (groups, features), ``bias`` (features,).

    ``size``: how many values of a feature are a group.
    """

    features: int
    size: int
    data: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None


class HeadNorm(Protocol):
    """weight and bias (heads, head_dim)."""

    weight: Tensor | None
    bias: Tensor | None


class Pages(Protocol):
    """Pages of keys and values, the page table, and the number of tokens of each row."""

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor


class TokenSets(Protocol):
    """Set s has the ranges offsets[s] to offsets[s + 1]; iterated as the (lo, hi) pairs of each set."""

    ranges: Tensor
    offsets: Tensor
    largest: int
    checked: bool

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[tuple[int, int], ...]]: ...


Parameter = tuple[Tensor | None, float]
"""(a tensor with one value per group, ignored) or (None, one value for all groups)."""


class SampleArguments(Protocol):
    logits: Tensor
    groups: int
    width: int
    streams: Tensor | None
    weights: Tensor | None
    allowed: TokenSets | None
    set_index: Tensor | None
    temperature: Parameter
    top_k: Parameter
    top_p: Parameter
    min_p: Parameter
    penalty: Parameter
    seen: Tensor | None
    contrast: tuple[float, int] | None
    seed: Parameter
    step: Parameter
    noise: Tensor | None


class GrammarTables(Protocol):
    set_of: Tensor
    tight_set_of: Tensor
    room: Tensor
    forced: Tensor
    following: Tensor
    class_ranges: Tensor
    modes: int
    classes: int
    vocab: int


class DecodeState(Protocol):
    mode: Tensor
    step: Tensor
    finished: Tensor
    limit: Tensor | None
    inputs: Tensor | None
    lengths: Tensor | None
    seen: Tensor | None
    sequences: Tensor | None
    capacity: int
