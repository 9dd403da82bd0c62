"""Times each operation of a decode step on a GPU: its bytes, its time in a captured graph, and the time of torch.

    python -m benchmarks.gpu_kernels --out FOLDER
    python -m benchmarks.gpu_kernels --dry-run --out FOLDER    # on the CPU, a small model, kernels interpreted

It writes two tables. ``operations``: the operations of a step of Chameleon 7B in bfloat16, for several batch sizes, and
how often a step runs each. ``linear``: our product for few rows and torch's (cuBLAS) with the same matrices, for more
batch sizes, to find up to where ours is faster; also with one-byte weights and their scales, against torch's product
with the same weights in bfloat16. Calls rotate through copies of weights, keys and values that are together larger than
the caches. Every result of fastdecode is checked against its reference before it is timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

if "--dry-run" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_results import Part
from benchmarks.gpu_timing import copies_to_exceed_cache, in_turns, seconds_of
from fastdecode import ops

ROWS = (1, 2, 3, 8, 32, 128)
LINEAR_ROWS = (1, 2, 3, 4, 8, 16, 64)
BYTE_ROWS = (1, 2, 8)
"""For one-byte weights."""

TOLERANCE = 0.02
"""Of ‖result − reference‖ / ‖reference‖, for what rounds its inputs to bfloat16; what it was is in the row."""

PAGE_SLOTS = 32

SECONDS = 0.05
"""For each that is timed."""


@dataclass(frozen=True)
class Shape:
    """Of a model, and ``ids`` that a row attends to."""

    hidden: int
    inner: int
    heads: int
    head_dim: int
    layers: int
    image_ids: int = 8192
    vocab: int = 65536
    ids: int = 512


SHAPES = {"7B": Shape(4096, 11008, 32, 128, 32), "dry": Shape(64, 96, 2, 32, 2, image_ids=64, vocab=96, ids=40)}


@dataclass(frozen=True)
class Operation:
    """``run`` takes the name of a backend, or None; so does ``result``, of what is compared. A call moves ``bytes``
    bytes at least, reads its weights from one of ``copies``, and a step makes ``per_step`` of them.
    """

    run: Callable[[str | None], Any]
    torch: Callable[[], Any]
    result: Callable[[str | None], Any]
    bytes: int
    per_step: int
    copies: int


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def backends(device: str) -> list[str]:
    """Those that can be named for tensors of that device."""
    return [name for name in ops.available_backends() if name not in ("reference", "cpu" if device == "cuda" else "")]


class Operations:
    """The operations of a step with ``rows`` rows, by name."""

    def __init__(self, shape: Shape, rows: int, device: str) -> None:
        self.shape, self.rows, self.device = shape, rows, device
        self.generator = torch.Generator(device).manual_seed(rows)

    def random(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=self.generator, device=self.device).to(dtype)

    def copies(self, *size: int) -> list[Tensor]:
        """bfloat16 numbers with a standard deviation that keeps a product's."""
        one = (self.random(*size) / size[-1] ** 0.5).bfloat16()
        return [one, *(one.clone() for _ in range(copies_to_exceed_cache(size_of(one), self.device) - 1))]

    def linear(self, features: int, k: int, per_step: int, joined: int = 1) -> Operation:
        """A product; with ``joined``, of so many matrices of (features, k) at once, as a step does it."""
        x, found = self.random(self.rows, k), [self.copies(features, k) for _ in range(joined)]
        weights, first = [in_turns(w) for w in found], [w[0] for w in found]
        side_by_side = in_turns([torch.cat(parts) for parts in zip(*found, strict=True)] if joined > 1 else found[0])
        rounded = x.bfloat16()

        def multiply(backend: str | None, chosen: list[Tensor]) -> Tensor:
            return ops.joint_linear(x, [ops.Matrix(w) for w in chosen], backend=backend)

        return Operation(
            lambda backend: multiply(backend, [next(w) for w in weights]),
            lambda: F.linear(rounded, next(side_by_side)),
            lambda backend: multiply(backend, first),
            size_of(x, *first) + 4 * self.rows * features * joined,
            per_step,
            len(found[0]),
        )

    def byte_linear(self, features: int, k: int, dtype: torch.dtype) -> Operation:
        """A product with one-byte weights; torch's uses the same numbers in bfloat16."""
        x, weights = self.random(self.rows, k), self.copies(features, k)
        most = 127 if dtype == torch.int8 else float(torch.finfo(dtype).max)
        scale = weights[0].float().abs().amax(1) / most
        scaled = weights[0].float() / scale[:, None]
        first = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
        count = copies_to_exceed_cache(size_of(first), self.device)
        stored = in_turns([first, *(first.clone() for _ in range(count - 1))])
        same = (first.float() * scale[:, None]).bfloat16()
        for weight in weights:
            weight.copy_(same)
        rounded, theirs = x.bfloat16(), in_turns(weights)

        def multiply(backend: str | None, weight: Tensor) -> Tensor:
            return ops.linear(x, weight, None, scale, backend=backend)

        return Operation(
            lambda backend: multiply(backend, next(stored)),
            lambda: F.linear(rounded, next(theirs)),
            lambda backend: multiply(backend, first),
            size_of(x, first, scale) + 4 * self.rows * features,
            1,
            count,
        )

    def rms_norm(self) -> Operation:
        hidden = self.shape.hidden
        x, residual, weight = self.random(self.rows, hidden), self.random(self.rows, hidden) * 2, self.random(hidden)

        def by_torch() -> tuple[Tensor, Tensor]:
            total = x + residual
            return F.rms_norm(total, weight.shape, weight, 1e-5), total

        def run(backend: str | None) -> Any:
            return ops.rms_norm(x, weight, residual=residual, backend=backend)

        moved = size_of(x, residual, weight) + 2 * size_of(x)
        return Operation(run, by_torch, run, moved, 2 * self.shape.layers + 1, 1)

    def swiglu(self) -> Operation:
        gate_up = self.random(self.rows, 2 * self.shape.inner)

        def by_torch() -> Tensor:
            gate, up = gate_up.chunk(2, -1)
            return F.silu(gate) * up

        def run(backend: str | None) -> Any:
            return ops.swiglu(gate_up, backend=backend)

        return Operation(run, by_torch, run, size_of(gate_up) * 3 // 2, self.shape.layers, 1)

    def embed(self) -> Operation:
        weight = self.random(self.shape.vocab, self.shape.hidden).bfloat16()
        tokens = torch.arange(self.rows, device=self.device) * 7 % self.shape.vocab

        def run(backend: str | None) -> Any:
            return ops.embed(tokens, weight, backend=backend)

        def by_torch() -> Tensor:
            return F.embedding(tokens, weight).float()

        return Operation(run, by_torch, run, 6 * self.rows * self.shape.hidden, 1, 1)

    def _table(self) -> Tensor:
        """A page table of rows with room for one more token, in shuffled order."""
        width = self.shape.ids // PAGE_SLOTS + 1
        order = torch.randperm(self.rows * width, generator=self.generator, device=self.device)
        return order.view(self.rows, width).int()

    def rope_append(self) -> Operation:
        shape, d, rows, heads = self.shape, self.shape.head_dim, self.rows, self.shape.heads
        table, lengths = self._table(), torch.full((rows,), shape.ids, device=self.device)
        stored = self.random(2, table.numel(), heads, PAGE_SLOTS, d, dtype=torch.bfloat16)
        qkv, cos, sin = self.random(rows, 3 * heads * d), self.random(rows, d), self.random(rows, d)
        names = ("q_norm", "q_norm_bias", "k_norm", "k_norm_bias")
        norms: dict[str, Any] = {name: self.random(heads, d) for name in names}
        row = torch.arange(rows, device=self.device)
        page, slot = table[row, lengths // PAGE_SLOTS].long(), lengths % PAGE_SLOTS

        def rotated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            x = torch.addcmul(bias, F.layer_norm(x, (d,)), weight)
            return x * cos[:, None] + x.roll(d // 2, -1) * sin[:, None]

        def by_torch() -> Tensor:
            q, k, v = qkv.view(rows, 3, heads, d).unbind(1)
            stored[0, page, :, slot] = rotated(k, norms["k_norm"], norms["k_norm_bias"]).bfloat16()
            stored[1, page, :, slot] = v.bfloat16()
            return rotated(q, norms["q_norm"], norms["q_norm_bias"])

        def run(backend: str | None) -> Tensor:
            return ops.rope_append(qkv, cos, sin, stored[0], stored[1], table, lengths, **norms, backend=backend)

        def result(backend: str | None) -> tuple[Tensor, ...]:
            return run(backend), stored[:, page, :, slot].float()

        moved = size_of(qkv, cos, sin, *norms.values()) + 4 * rows * heads * d + 2 * 2 * rows * heads * d
        return Operation(run, by_torch, result, moved, shape.layers, 1)

    def attend(self) -> Operation:
        shape, d, rows, heads = self.shape, self.shape.head_dim, self.rows, self.shape.heads
        table, lengths = self._table(), torch.full((rows,), shape.ids, device=self.device)
        first = self.random(2, table.numel(), heads, PAGE_SLOTS, d, dtype=torch.bfloat16)
        count = copies_to_exceed_cache(size_of(first), self.device)
        copies, queries = [first, *(first.clone() for _ in range(count - 1))], self.random(rows, heads, d)
        in_order = first[:, table.long()].transpose(2, 3).reshape(2, rows, heads, -1, d)[..., : shape.ids, :]
        dense = in_turns([in_order.contiguous() for _ in range(count)])
        pages, rounded = in_turns(copies), queries.bfloat16()[:, :, None]

        def run(backend: str | None, stored: Tensor | None = None) -> Tensor:
            keys, values = next(pages) if stored is None else stored
            return ops.attend(queries, keys, values, table, lengths, backend=backend)

        def by_torch() -> Tensor:
            keys, values = next(dense)
            return F.scaled_dot_product_attention(rounded, keys, values)

        moved = 2 * 2 * rows * heads * shape.ids * d + 2 * size_of(queries)
        return Operation(run, by_torch, lambda backend: run(backend, first), moved, shape.layers, count)

    def all(self) -> dict[str, Callable[[], Operation]]:
        shape = self.shape
        wide, inner = shape.heads * shape.head_dim, shape.inner
        return {
            "embed": self.embed,
            "rms_norm": self.rms_norm,
            "linear q, k, v": lambda: self.linear(wide, shape.hidden, shape.layers, joined=3),
            "rope_append": self.rope_append,
            "attend": self.attend,
            "linear out": lambda: self.linear(shape.hidden, wide, shape.layers),
            "linear gate, up": lambda: self.linear(inner, shape.hidden, shape.layers, joined=2),
            "swiglu": self.swiglu,
            "linear down": lambda: self.linear(shape.hidden, inner, shape.layers),
            "linear head, image ids": lambda: self.linear(shape.image_ids, shape.hidden, 1),
        }


def parts_of(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def error_of(name: str, who: str, found: Any, expected: Any) -> float:
    """The largest distance of a result from the reference's, over its length. ``RuntimeError`` beyond `TOLERANCE`."""
    worst = 0.0
    for a, b in zip(parts_of(found), parts_of(expected), strict=False):  # torch returns only the first of some
        distance = (a.double().flatten() - b.double().flatten()).norm() / b.double().norm()
        worst = max(worst, distance.item() if distance.isfinite() else torch.inf)
    if worst > TOLERANCE:
        raise RuntimeError(f"{name}: {who} is {worst:.2g} from the reference; nothing was timed")
    return worst


def measure(name: str, operation: Operation, device: str, best: float) -> dict[str, Any]:
    """Microseconds of a call, ours by the default backend and by every other one that there is, and torch's."""
    expected = operation.result("reference")
    errors = {"torch": error_of(name, "torch", operation.torch(), expected)}
    errors["fastdecode"] = error_of(name, "fastdecode", operation.result(None), expected)
    default = ops.last_backend()
    calls = max(operation.copies, 8)
    ours = seconds_of(lambda: operation.run(None), device, calls, SECONDS)
    theirs = seconds_of(operation.torch, device, calls, SECONDS)
    floor = operation.bytes / best
    row: dict[str, Any] = {
        "bytes": operation.bytes,
        "calls per step": operation.per_step,
        "copies": operation.copies,
        "backend": default,
        "fastdecode": ours.seconds * 1e6,
        "torch": theirs.seconds * 1e6,
        "floor": floor * 1e6,
        "per step": ours.seconds * 1e6 * operation.per_step,
        "torch per step": theirs.seconds * 1e6 * operation.per_step,
        "bandwidth_fraction": floor / ours.seconds,
        "torch bandwidth_fraction": floor / theirs.seconds,
        "captured": [who for who, timing in (("fastdecode", ours), ("torch", theirs)) if timing.captured],
        "distances": errors,
    }
    for backend in backends(device):
        if backend == default:
            continue
        try:
            errors[backend] = error_of(name, backend, operation.result(backend), expected)
        except ValueError:  # this operation has no such backend
            continue
        found = seconds_of(lambda b=backend: operation.run(b), device, calls, SECONDS)
        row[f"fastdecode, {backend}"] = found.seconds * 1e6
    return row


def attempt(part: Part, table: str, what: dict[str, Any], make: Callable[[], Operation]) -> None:
    """A row of ``table``; if it fails, a row with the error."""
    if part.results.out_of_time(f"{table}: {what}"):
        return
    try:
        with torch.inference_mode():
            row = measure(what["operation"], make(), part.device, part.bandwidth["best"])
    except (RuntimeError, ValueError) as error:
        row = {"error": f"{type(error).__name__}: {error}"[:400]}
        if part.device == "cuda":
            torch.cuda.synchronize()
    part.results.add(table, {**what, **row})


def main() -> int:
    part = Part("kernels", "Time every operation of a decode step on a GPU.", 75)
    name = "dry" if part.dry else "7B"
    shape = SHAPES[name]
    part.results.set("shape", {"name": name, **vars(shape)})
    for rows in (2,) if part.dry else (2, *(r for r in ROWS if r != 2)):
        for operation, make in Operations(shape, rows, part.device).all().items():
            attempt(part, "operations", {"operation": operation, "rows": rows}, make)
    wide = shape.heads * shape.head_dim
    matrices = {"q": (wide, shape.hidden), "gate": (shape.inner, shape.hidden), "down": (shape.hidden, shape.inner)}
    joined = {"q, k, v": (3 * wide, shape.hidden), "gate, up": (2 * shape.inner, shape.hidden)}
    for what, (features, k) in {**matrices, **joined, "head": (shape.image_ids, shape.hidden)}.items():
        for rows in (1, 2) if part.dry else LINEAR_ROWS:
            made = Operations(shape, rows, part.device)
            described = {"operation": what, "features": features, "k": k, "rows": rows, "weights": "bfloat16"}
            attempt(part, "linear", described, lambda m=made, f=features, n=k: m.linear(f, n, 1))
    for what, (features, k) in {"gate, up": joined["gate, up"], "down": matrices["down"]}.items():
        for dtype in (torch.int8, torch.float8_e4m3fn):
            for rows in (1,) if part.dry else BYTE_ROWS:
                made = Operations(shape, rows, part.device)
                name = str(dtype).removeprefix("torch.")
                described = {"operation": what, "features": features, "k": k, "rows": rows, "weights": name}
                attempt(part, "linear", described, lambda m=made, f=features, n=k, d=dtype: m.byte_linear(f, n, d))
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
