"""A whole decode step in one call of the C++ library, where the model is plain enough, and on the CPU.

The model's own matrices are read where they lie, in float32, bfloat16 or float16. What is small is copied to float32
where it is not that: norms and biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from fastdecode import ops
from fastdecode.decoder.plain import DTYPES, altered, plain, plain_tensor
from fastdecode.decoder.plan import Family, Sizes, epsilon_of, family_of, head_norms
from fastdecode.decoder.quantised import of_torchao, why_not_bytes
from fastdecode.kv_cache import StreamCache
from fastdecode.ops.backends import ENVIRONMENT_VARIABLE, choose_backend, core, unavailable

Size = tuple[int, ...]

READ = "dense float32, bfloat16 or float16 on the CPU"


def _linears(layer: Any, sizes: Sizes) -> Iterator[tuple[str, Any, Size]]:
    """Name, module and shape of weight of a layer's linear modules, in the order of ``fastdecode_layer``."""
    hidden, inner = sizes.hidden, sizes.inner
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    yield "self_attn.q_proj", layer.self_attn.q_proj, (queries, hidden)
    yield "self_attn.k_proj", layer.self_attn.k_proj, (keys, hidden)
    yield "self_attn.v_proj", layer.self_attn.v_proj, (keys, hidden)
    yield "self_attn.o_proj", layer.self_attn.o_proj, (hidden, queries)
    yield "mlp.gate_proj", layer.mlp.gate_proj, (inner, hidden)
    yield "mlp.up_proj", layer.mlp.up_proj, (inner, hidden)
    yield "mlp.down_proj", layer.mlp.down_proj, (hidden, inner)


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _why_not_layer(layer: Any, inner: Any, family: Family, device: str) -> str | None:
    first = inner.layers[0]
    sizes = Sizes.of(first)
    attention, mlp = layer.self_attn, layer.mlp
    if altered(attention):
        return "self_attn has hooks, or a forward of its own"
    if not plain(attention, family.attention):
        return f"self_attn is {type(attention).__name__}, not {family.attention.__name__}"
    if not plain(mlp, family.mlp):
        return f"mlp is not a plain {family.mlp.__name__}, or has hooks"
    if not plain(mlp.act_fn, nn.SiLU, SiLUActivation):
        return f"mlp.act_fn is {type(mlp.act_fn).__name__}, not SiLU, or has hooks"
    tensors: list[tuple[str, Any, Size]] = []
    dtype = first.self_attn.q_proj.weight.dtype
    for name, module, size in _linears(layer, sizes):
        if not plain(module, nn.Linear):
            return f"{name} is not a plain nn.Linear, or has hooks"
        if of_torchao(module.weight) and device != "cpu":
            reason = why_not_bytes(module.weight, device)
            if reason is not None:
                return f"{name}.weight is a {type(module.weight).__name__} {reason}"
            if module.weight.shape != size:
                return f"{name} is {tuple(module.weight.shape)}, not {size} as the first layer's"
        else:
            if plain_tensor(module.weight, device) and module.weight.dtype != dtype:
                its = str(dtype).removeprefix("torch.")
                return f"{name}.weight is {_described(module.weight)}, not {its} as the first"
            tensors.append((f"{name}.weight", module.weight, size))
        if module.bias is not None:
            tensors.append((f"{name}.bias", module.bias, size[:1]))
    reason = _why_not_head_norms(attention, first.self_attn, sizes, family)
    if reason is not None:
        return reason
    for norm in _norms(layer):
        if not plain(norm, family.norm) or norm.variance_epsilon != inner.norm.variance_epsilon:
            return f"its norms are not plain {family.norm.__name__}s with the epsilon of the last one, or have hooks"
        tensors.append(("a norm's weight", norm.weight, (sizes.hidden,)))
    for name, tensor, size in tensors:
        if not plain_tensor(tensor, device):
            return f"{name} is {_described(tensor)}, not {_read(device)}"
        if tensor.shape != size:
            return f"{name} is {tuple(tensor.shape)}, not {size} as the first layer's"
    if Sizes.of(layer) != sizes:
        return "its heads or their scaling are not those of the first layer"
    return None


def _why_not_head_norms(attention: Any, first: Any, sizes: Sizes, family: Family) -> str | None:
    norms, class_name = head_norms(attention), family.attention.__name__
    if family.heads is None:
        return None if norms is None else f"self_attn has norms of queries and keys that a {class_name} has not"
    if norms is None:
        return f"self_attn lacks the norms of queries and keys that a {class_name} has"
    for name, norm, count in zip(("q_norm", "k_norm"), norms, (sizes.heads, sizes.kv_heads), strict=True):
        if not plain(norm, family.heads):
            return f"self_attn.{name} is not a plain {family.heads.__name__}, or has hooks"
        if norm.weight.shape[-1] != sizes.head_dim or norm.weight.numel() not in (
            sizes.head_dim,
            count * sizes.head_dim,
        ):
            return f"self_attn.{name} has weights of {tuple(norm.weight.shape)}"
        if epsilon_of(norm) != epsilon_of(first.q_norm):
            return f"self_attn.{name} has another epsilon than the first"
    return None


def _described(value: Any) -> str:
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    layout = "" if value.layout is torch.strided and value.is_contiguous() else "not dense, "
    return f"{layout}{str(value.dtype).removeprefix('torch.')} on {value.device}"


def _read(device: str) -> str:
    return READ if device == "cpu" else READ.replace("the CPU", device)


def why_not(model: Any) -> str | None:
    """Why a model's layers cannot be run as one; None if they can. For models that `family_of` knows."""
    return unavailable("cpu") or _why_not_plain(model, "cpu")


def why_no_operations(model: Any) -> str | None:
    """Why a model that is not on the CPU cannot take its steps in kernels of ours; None if it can."""
    device = model.model.norm.weight.device
    return (
        unavailable("triton")
        or (_why_not_on(device) if device.type == "cuda" else None)
        or _why_not_plain(model, device.type)
    )


def _why_not_on(device: torch.device) -> str | None:
    """Why a GPU is none that kernels of ours were made for, or has others to run."""
    chosen = choose_backend(None, "cuda")
    if chosen != "triton":
        return f"the environment variable {ENVIRONMENT_VARIABLE} names {chosen}"
    if torch.version.hip is not None:
        return "the GPU is not one of NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and no bfloat16: 8.0 is needed"
    return None


def _why_not_plain(model: Any, device: str) -> str | None:
    family, inner = family_of(model), model.model
    if not plain(inner.norm, family.norm):
        return f"norm is not a plain {family.norm.__name__}, or has hooks"
    if not plain_tensor(inner.norm.weight, device):
        return f"norm.weight is {_described(inner.norm.weight)}, not {_read(device)}"
    for i, layer in enumerate(inner.layers):
        reason = _why_not_layer(layer, inner, family, device)
        if reason is not None:
            return f"layers.{i}: {reason}"
    return None


class FusedStep:
    """`Decoder`'s step for a model of which `why_not` says nothing.

    Matrices that are changed in place are seen; those that are replaced (``model.to``) are not, until another one is
    made, nor are changes of norms and biases that are not float32. ``ValueError`` if the environment variable
    FASTDECODE_CPU_ISA names no instruction set of this machine.
    """

    def __init__(self, inner: Any, swin: bool) -> None:
        core().cpu_isa()  # raises if FASTDECODE_CPU_ISA cannot be had
        self._step, self._linear = core().decode_step, core().linear
        self._kept: list[Tensor] = []  # whose memory the addresses are
        first = inner.layers[0]
        sizes, norms = Sizes.of(first), head_norms(first.self_attn)
        rows = [self._row(layer, sizes) for layer in inner.layers]
        self._addresses = torch.tensor(rows, device="cpu")
        self._hidden, self.dtype = sizes.hidden, first.self_attn.q_proj.weight.dtype
        self._constants = (
            *(len(rows), sizes.hidden, sizes.inner, sizes.heads, sizes.kv_heads, sizes.head_dim),
            *(DTYPES[self.dtype], swin, inner.norm.variance_epsilon),
            *(1.0 if norms is None else epsilon_of(norms[0]), sizes.scaling),
            self._float_address(inner.norm.weight),
        )

    def _row(self, layer: Any, sizes: Sizes) -> list[int]:
        """The addresses of ``fastdecode_layer``; those of keys and values are of each step."""
        modules = [module for _, module, _ in _linears(layer, sizes)]
        row = [self._address(m.weight) for m in modules]
        row += [self._float_address(m.bias) for m in modules]
        row += [self._float_address(norm.weight) for norm in _norms(layer)]
        for norm, count in zip(head_norms(layer.self_attn) or (None, None), (sizes.heads, sizes.kv_heads), strict=True):
            for part in (getattr(norm, "weight", None), getattr(norm, "bias", None)):
                row.append(0 if part is None else self._float_address(part.expand(count, sizes.head_dim)))
        return [*row, 0, 0]

    def _address(self, tensor: Tensor) -> int:
        """Of the memory that ``tensor`` has now, which is kept even if the tensor is given another."""
        self._kept.append(tensor.detach())
        return self._kept[-1].data_ptr()

    def _float_address(self, tensor: Tensor | None) -> int:
        """Of the tensor, or of a dense float32 copy; 0 for none."""
        return 0 if tensor is None else self._address(tensor.detach().float().contiguous())

    def __call__(self, cache: StreamCache, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Feed one id to every row of ``cache``, which has room for it but does not grow here.

        ``x`` (rows, hidden) are the ids' embeddings, which may be overwritten; ``cos`` and ``sin`` (rows, head_dim)
        as `Decoder.rope` has them. Returns the normed hidden states (rows, hidden) float32.
        """
        return self._run(cache, cache.table, cache.lengths, x, cos, sin, chained=False)

    def prefill(self, cache: StreamCache, rows: Tensor, positions: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Store the keys and values of ids of rows that have pages for them: ``rows``, ``positions`` (n,) int64.

        An id sees those before it in its row: stored ones, and others of this call. A row's ids must come in order.
        """
        self._run(cache, cache.table[rows], positions, x, cos, sin, chained=True)

    def _run(
        self, cache: StreamCache, table: Tensor, lengths: Tensor, x: Tensor, cos: Tensor, sin: Tensor, *, chained: bool
    ) -> Tensor:
        x = x.to(torch.float32).contiguous()
        if x.shape != (len(lengths), self._hidden):
            raise ValueError(f"embeddings are {tuple(x.shape)}; they must be ({len(lengths)}, {self._hidden})")
        addresses = self._addresses.clone()  # of this call: another thread may be in a step of its own
        stored = [[k.data_ptr(), v.data_ptr()] for k, v in zip(cache.keys, cache.values, strict=True)]
        addresses[:, -2:] = torch.tensor(stored, device="cpu")
        self._step(
            (
                addresses.data_ptr(),
                *self._constants,
                torch.get_num_threads(),
                len(cache.keys[0]),
                cache.keys[0].shape[2],
                table.data_ptr(),
                table.stride(0),
                table.shape[1],
                chained,
                len(lengths),
                lengths.data_ptr(),
                cos.data_ptr(),
                sin.data_ptr(),
                x.data_ptr(),
            )
        )
        return x

    def head(self, matrix: ops.Matrix, hidden: Tensor, out: Tensor) -> None:
        """``out`` (rows, n) = ``hidden`` (rows, hidden) times a matrix of n features, a `plain_tensor`; ``out`` is
        float32 and may be part of wider rows.
        """
        weight = matrix.weight
        hidden = hidden.to(torch.float32).contiguous()
        self._linear(
            weight.data_ptr(),
            DTYPES[weight.dtype],
            0,
            hidden.data_ptr(),
            *hidden.shape,
            len(weight),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
