"""`torch.ops.fastdecode.*` of a decode step: `linear`, `embed`, `rms_norm`, `swiglu`, `rope_append`, `attend`.

Their arguments are those of the functions in `fastdecode.ops`. `rms_norm` with a residual is `add_rms_norm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdecode.ops.attend import attend
from fastdecode.ops.embed import embed
from fastdecode.ops.linear import linear
from fastdecode.ops.panels import PANEL
from fastdecode.ops.registration.library import register
from fastdecode.ops.rms_norm import rms_norm
from fastdecode.ops.rope_append import rope_append
from fastdecode.ops.swiglu import swiglu
from fastdecode.ops.tracing import plain


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    return linear(plain(x), weight, bias, scale, backend=backend)


def _embed(tokens: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    return embed(plain(tokens), weight, backend=backend)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-5, *, backend: str | None = None) -> Tensor:
    return rms_norm(plain(x), weight, epsilon, backend=backend)


def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float = 1e-5, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return rms_norm(plain(x), weight, epsilon, residual=residual, backend=backend)


def _swiglu(gate_up: Tensor, *, activation: str = "silu", backend: str | None = None) -> Tensor:
    return swiglu(plain(gate_up), activation=activation, backend=backend)


def _rope_append(qkv: Tensor, *positional: Any, **options: Any) -> Tensor:
    return rope_append(plain(qkv), *positional, **options)


def _attend(queries: Tensor, *positional: Any, **options: Any) -> Tensor:
    return attend(plain(queries), *positional, **options)


def _fake_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, **options: Any
) -> Tensor:
    panel = PANEL if scale is not None and scale.dim() == 2 else 1
    return x.new_empty(x.shape[0], weight.shape[0] * panel)


def _fake_embed(tokens: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return weight.new_empty(tokens.shape[0], weight.shape[1], dtype=torch.float32)


def _fake_rms_norm(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_add_rms_norm(x: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return _fake_rms_norm(x), _fake_rms_norm(x)


def _fake_swiglu(gate_up: Tensor, **options: Any) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _fake_rope_append(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, *rest: Any, **options: Any) -> Tensor:
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads, head_dim)


_PAGES = "Tensor table, Tensor lengths"
_NORMS = "Tensor? q_norm=None, Tensor? q_norm_bias=None, Tensor? k_norm=None, Tensor? k_norm_bias=None"
_OPERATIONS: tuple[tuple[str, str, Callable[..., Any], Callable[..., Any]], ...] = (
    (
        "linear",
        "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? scale=None, *, str? backend=None) -> Tensor",
        _linear,
        _fake_linear,
    ),
    ("embed", "(Tensor tokens, Tensor weight, *, str? backend=None) -> Tensor", _embed, _fake_embed),
    (
        "rms_norm",
        "(Tensor x, Tensor weight, float epsilon=1e-05, *, str? backend=None) -> Tensor",
        _rms_norm,
        _fake_rms_norm,
    ),
    (
        "add_rms_norm",
        "(Tensor x, Tensor residual, Tensor weight, float epsilon=1e-05, *, str? backend=None) -> (Tensor, Tensor)",
        _add_rms_norm,
        _fake_add_rms_norm,
    ),
    (
        "swiglu",
        '(Tensor gate_up, *, str activation="silu", str? backend=None) -> Tensor',
        _swiglu,
        _fake_swiglu,
    ),
    (
        "rope_append",
        f"(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, {_PAGES}, *, {_NORMS}, "
        "float epsilon=1e-05, str? backend=None) -> Tensor",
        _rope_append,
        _fake_rope_append,
    ),
    (
        "attend",
        f"(Tensor queries, Tensor keys, Tensor values, {_PAGES}, float? scale=None, *, str? backend=None) -> Tensor",
        _attend,
        _fake_rms_norm,
    ),
)

for _operation in _OPERATIONS:
    register(*_operation)
