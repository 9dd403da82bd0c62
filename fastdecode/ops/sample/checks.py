"""Checks of the arguments of `sample` and `sample_advance`, as in `fastdecode.ops.checks`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.arguments import FloatParameter, IntParameter, SampleArguments
from fastdecode.ops.arrays import Array, as_tensor, is_array
from fastdecode.ops.checks import FLOAT_DTYPES, check_dense, check_rows, check_streams, check_table, check_tensor
from fastdecode.ops.scalars import real_number, shown
from fastdecode.ops.token_sets import TokenSets

MAX_VOCAB = 1 << 22
"""A sum of as many integer masses of up to 2⁴⁰ stays below 2⁶³."""

_INT32 = (-(1 << 31), (1 << 31) - 1)
_INT64 = (-(1 << 63), (1 << 63) - 1)


def check_logits(logits: Array) -> tuple[Tensor, int, int]:
    """(logits, rows, vocab). Checks two dimensions, a dtype of FLOAT_DTYPES, stride(1) == 1, 1 ≤ vocab ≤ MAX_VOCAB."""
    if not isinstance(logits, Tensor):
        logits = as_tensor("logits", logits)
    if logits.is_nested:
        raise ValueError("logits: must not be a nested tensor; its rows have one length")
    shape = logits.shape
    if len(shape) != 2:
        raise ValueError(f"logits.shape = {tuple(shape)}: must be (rows, vocab)")
    if logits.dtype not in FLOAT_DTYPES:
        raise ValueError(f"logits.dtype = {logits.dtype}: must be float32, bfloat16 or float16")
    if logits.layout != torch.strided:
        raise ValueError(f"logits.layout = {logits.layout}: must be dense (torch.strided)")
    rows, vocab = shape
    if vocab > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits.stride(1) = {logits.stride(1)}: must be 1")
    if not 1 <= vocab <= MAX_VOCAB:
        raise ValueError(f"logits.shape[1] = {vocab}: must be in [1, {MAX_VOCAB}]")
    return logits, rows, vocab


def check_noise(noise: Array, groups: int, vocab: int, device: torch.device) -> Tensor:
    """Checks a (groups, vocab) float32 tensor with stride(1) == 1 and any stride(0). It is not copied."""
    if not isinstance(noise, Tensor):
        noise = as_tensor("noise", noise)
    check_dense("noise", noise)
    if noise.dim() == 2 and vocab > 1 and noise.stride(1) != 1:
        raise ValueError(f"noise.stride(1) = {noise.stride(1)}: must be 1")
    if noise.dim() == 2 and noise.shape == (groups, vocab):
        check_tensor("noise", noise[:0], (0, vocab), torch.float32, device)
        return noise.resolve_neg()
    return check_tensor("noise", noise, (groups, vocab), torch.float32, device)


def check_float(name: str, value: float | Array, groups: int, device: torch.device) -> FloatParameter:
    """Checks a number or a (groups,) float32 tensor."""
    if isinstance(value, float):
        return None, value
    if isinstance(value, Tensor) and value.dim() > 0:
        return check_tensor(name, value, (groups,), torch.float32, device), 0.0
    if isinstance(value, Real | Tensor):
        with suppress(ValueError):
            return None, real_number(name, value)
    elif is_array(value):
        return check_float(name, as_tensor(name, value), groups, device)
    raise ValueError(f"{name} = {shown(value)}: must be a number or a ({groups},) tensor")


def check_int(name: str, value: int | Array, groups: int, dtype: torch.dtype, device: torch.device) -> IntParameter:
    """Checks an integer that fits the dtype, or a (groups,) tensor of the dtype."""
    if not isinstance(value, int):
        if isinstance(value, Tensor):
            if value.dim() > 0:
                return check_tensor(name, value, (groups,), dtype, device), 0
        elif is_array(value):
            return check_int(name, as_tensor(name, value), groups, dtype, device)
    given: Any = None if isinstance(value, bool) else value  # anything, which `operator.index` refuses
    try:
        number = operator.index(given)
    except (TypeError, RuntimeError):  # the latter: of a tensor on the meta device
        raise ValueError(f"{name} = {shown(value)}: must be an integer or a ({groups},) tensor") from None
    low, high = _INT32 if dtype == torch.int32 else _INT64
    if not low <= number <= high:
        raise ValueError(f"{name} = {shown(number)}: must fit {dtype}")
    return None, number


def check_allowed(allowed: TokenSets | list[list[tuple[int, int]]], vocab: int, device: torch.device) -> TokenSets:
    """Token sets on ``device`` that stay inside the vocabulary; lists of ranges are made into TokenSets."""
    if not isinstance(allowed, TokenSets):
        return TokenSets(allowed, vocab, device)
    if allowed.checked:
        allowed.check_vocab(vocab)
    if allowed.device != device:
        raise ValueError(f"allowed.device = {allowed.device}: must be {device}, as for logits")
    return allowed


def check_contrast(contrast: tuple[float, int]) -> tuple[float, int]:
    """Checks (alpha, k): alpha in [0, 1] and k ≥ 1."""
    try:
        alpha, k = float(contrast[0]), int(contrast[1])
        if len(contrast) != 2 or k != contrast[1]:
            raise TypeError
    except (TypeError, ValueError, LookupError, OverflowError, RuntimeError):
        raise ValueError(f"contrast = {shown(contrast)}: must be (alpha, k)") from None
    if not 0 <= alpha <= 1:
        raise ValueError(f"contrast[0] = {alpha:g}: must be in [0, 1]")
    if k < 1:
        raise ValueError(f"contrast[1] = {k}: must be >= 1")
    return alpha, k


def check_arguments(
    logits: Array,
    streams: Array | None,
    weights: Array | None,
    allowed: TokenSets | list[list[tuple[int, int]]] | None,
    set_index: Array | None,
    temperature: float | Array,
    top_k: int | Array,
    top_p: float | Array,
    min_p: float | Array,
    penalty: float | Array,
    seen: Array | None,
    contrast: tuple[float, int] | None,
    seed: int | Array,
    step: int | Array,
    noise: Array | None,
) -> SampleArguments:
    """Checks shapes, dtypes and devices of `sample`'s arguments; `check_values` checks what the tensors hold."""
    logits, rows, vocab = check_logits(logits)
    if logits.is_neg():
        logits = logits.resolve_neg()
    device = logits.device
    groups, width = rows, 1
    if streams is not None:
        streams = check_streams(streams, device)
        groups, width = streams.shape
    if weights is not None:
        weights = check_tensor("weights", weights, (groups, width), torch.float32, device)
    if set_index is not None:
        set_index = check_tensor("set_index", set_index, (groups,), torch.int32, device)
    if seen is not None:
        words = (vocab + 31) // 32
        if not isinstance(seen, Tensor):
            seen = as_tensor("seen", seen)
        if seen.dtype == torch.bool:
            raise ValueError(
                "seen.dtype = torch.bool: must be a bit set of int32 words; fastdecode.ops.seen_bits makes one"
            )
        seen = check_tensor("seen", seen, (groups, words), torch.int32, device)
    elif (not isinstance(penalty, float) and is_array(penalty)) or penalty != 1.0:
        raise ValueError("seen = None: penalty needs the tokens seen so far")
    return SampleArguments(
        logits,
        groups,
        width,
        streams,
        weights,
        None if allowed is None else check_allowed(allowed, vocab, device),
        set_index,
        check_float("temperature", temperature, groups, device),
        check_int("top_k", top_k, groups, torch.int32, device),
        check_float("top_p", top_p, groups, device),
        check_float("min_p", min_p, groups, device),
        check_float("penalty", penalty, groups, device),
        seen,
        None if contrast is None else check_contrast(contrast),
        check_int("seed", seed, groups, torch.int64, device),
        check_int("step", step, groups, torch.int64, device),
        None if noise is None else check_noise(noise, groups, vocab, device),
    )


def _check_each(name: str, parameter: FloatParameter, rule: str, valid: Callable[[float], bool]) -> None:
    per_group, number = parameter
    if per_group is None:
        value = torch.tensor(number, dtype=torch.float32, device="cpu").item()  # rounded as the kernels use it
        if not valid(value):
            raise ValueError(f"{name} = {value:g}: must be {rule}")
        return
    for g, value in enumerate(per_group.tolist()):
        if not valid(value):
            raise ValueError(f"{name}[{g}] = {value:g}: must be {rule}")


def check_values(args: SampleArguments) -> None:
    """Checks the values of `sample`'s arguments, as csrc/cpu/sample_check.cpp does for the cpu backend."""
    if args.logits.is_meta:
        raise ValueError("logits.device = meta: must be a device that holds their values")
    check_rows(args.streams, args.logits.shape[0])
    check_table("weights", args.weights, "finite", math.isfinite)
    if args.allowed is not None:
        args.allowed.check_vocab(args.logits.shape[1])
    sets = 1 if args.allowed is None else len(args.allowed)
    for g, number in enumerate([] if args.set_index is None else args.set_index.tolist()):
        if not 0 <= number < sets:
            raise ValueError(f"set_index[{g}] = {number}: must be in [0, {sets})")
    _check_each("temperature", args.temperature, "finite and >= 0", lambda x: 0 <= x < math.inf)
    _check_each("top_p", args.top_p, "in [0, 1]", lambda x: 0 <= x <= 1)
    _check_each("min_p", args.min_p, "in [0, 1]", lambda x: 0 <= x <= 1)
    _check_each("penalty", args.penalty, "finite and > 0", lambda x: 0 < x < math.inf)


def check_host_values(args: SampleArguments) -> None:
    """Raises ValueError for bad numbers, and on the CPU also for bad values in tensors."""
    check_values(args if args.logits.device.type == "cpu" else _numbers_of(args))


def _number(parameter: FloatParameter) -> FloatParameter:
    """The parameter; 1, which is valid for all of them, in place of a tensor."""
    return parameter if parameter[0] is None else (None, 1.0)


def _numbers_of(args: SampleArguments) -> SampleArguments:
    """The arguments without the tensors, whose values the host could only read by waiting for the device."""
    allowed = args.allowed if args.allowed is not None and args.allowed.checked else None
    return args._replace(
        streams=None,
        weights=None,
        allowed=allowed,
        set_index=None,
        temperature=_number(args.temperature),
        top_p=_number(args.top_p),
        min_p=_number(args.min_p),
        penalty=_number(args.penalty),
    )
