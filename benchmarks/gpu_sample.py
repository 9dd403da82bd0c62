"""Times sampling on a GPU and its alternatives, after checking the tokens against the reference on the CPU.

    python -m benchmarks.gpu_sample --out FOLDER
    python -m benchmarks.gpu_sample --dry-run --out FOLDER    # the same code on the CPU, a few cases

Whatever can be captured is replayed as a CUDA graph with several calls, so that launches cost what they cost in a
captured step. Other functions are timed by events; ``captured`` does not list them. Calls rotate through copies of the
logits that are together larger than the cache, up to `MOST_COPIES`. If they fit, ``in cache`` says so; the logits of a
real step are in the cache, too. ``floor``: bytes of the logits over the best bandwidth measured in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_results import Part
from benchmarks.gpu_timing import cache_bytes, copies_to_exceed_cache, in_turns, seconds_of
from fastdecode import ops
from fastdecode.bench.sample import FILTERS, WEIGHTS, Case
from fastdecode.bench.sample_rivals import Torch, Transformers, mix

MOST_BYTES = 2**30
"""Of all copies of the logits of a case."""

SECONDS = 0.06
"""For each of those that are timed, in a case."""

COMPILED = {Case(1, image=True), Case(4, image=True), Case(64, image=True), Case(1), Case(32)}
"""Cases for which torch.compile is given its time too."""


def cases(dry: bool) -> list[Case]:
    if dry:
        return [Case(2, vocab=300, filter=name) for name in ("greedy", "top_p 0.9", "top_k 50")]
    found = [Case(n, image=image) for image in (True, False) for n in (1, 4, 16, 32, 64)]
    found += [Case(n, image=True, filter=name) for name in FILTERS for n in (1, 32) if name != "top_p 0.9"]
    found += [Case(n, filter=name) for name in FILTERS for n in (1, 32) if name != "top_p 0.9"]
    found += [Case(n, dtype="bfloat16", image=image) for image in (True, False) for n in (1, 32)]
    found += [Case(8, streams=streams, image=True) for streams in (1, 3, 5)]
    return [*found, Case(8, vocab=131072)]


class FlashInfer:
    """Mixing and softmax in torch, then FlashInfer's sampling without a sort."""

    def __init__(self, case: Case) -> None:
        import flashinfer.sampling

        self.draws: Any = flashinfer.sampling
        self.span, self.weights, self.options = case.span, WEIGHTS[case.streams], FILTERS[case.filter]

    def __call__(self, logits: Tensor) -> Tensor:
        (lo, hi), options = self.span, self.options
        z = mix(logits[:, lo:hi].float(), self.weights)
        if options["temperature"] == 0:
            return z.argmax(-1) + lo
        p = (z / options["temperature"]).softmax(-1)
        top_k, top_p, min_p = (options.get(name) for name in ("top_k", "top_p", "min_p"))
        if top_k and top_p:
            drawn = self.draws.top_k_top_p_sampling_from_probs(p, top_k, top_p)
        elif top_k:
            drawn = self.draws.top_k_sampling_from_probs(p, top_k)
        elif top_p:
            drawn = self.draws.top_p_sampling_from_probs(p, top_p)
        elif min_p:
            drawn = self.draws.min_p_sampling_from_probs(p, min_p)
        else:
            drawn = self.draws.sampling_from_probs(p)
        return drawn.long() + lo


def arguments(case: Case, device: str) -> dict[str, Any]:
    groups = case.groups
    return {
        "streams": torch.arange(groups * case.streams, dtype=torch.int32, device=device).view(groups, case.streams),
        "weights": torch.tensor([WEIGHTS[case.streams]] * groups, device=device),
        "allowed": ops.TokenSets([[case.span]], case.vocab, device),
        "seed": torch.arange(groups, device=device),
        "step": torch.full((groups,), 5, device=device),
        **FILTERS[case.filter],
    }


def check(case: Case, device: str, backend: str | None) -> None:
    """``RuntimeError`` if a result is not bit for bit that of the reference on the CPU."""
    logits = case.logits()
    got = ops.sample(logits.to(device), **arguments(case, device), backend=backend)
    expected = ops.sample(logits, **arguments(case, "cpu"), backend="reference")
    for name, a, b in zip(got._fields, got, expected, strict=True):
        if not torch.equal(a.cpu(), b):
            raise RuntimeError(f"{case}: {name} is {a.tolist()}, the reference's {b.tolist()}; nothing was timed")


def check_rival(name: str, case: Case, drawn: Tensor) -> None:
    """``RuntimeError`` if a rival samples a token that is not allowed, or fails."""
    lo, hi = case.span
    if drawn.shape != (case.groups,) or not ((drawn >= lo) & (drawn < hi)).all():
        raise RuntimeError(f"{case}: {name} drew {drawn.tolist()}, not {case.groups} ids of [{lo}, {hi})")


def backends(device: str) -> list[str]:
    """Those that take tensors of that device, the one by default first."""
    if device == "cpu":
        return ["cpu"]
    found = [name for name in ops.available_backends() if name in ("triton", "cuda")]
    logits = torch.zeros(1, 8, device=device)
    ops.sample(logits)
    return sorted(found, key=lambda name: name != ops.last_backend())


def rivals(case: Case, device: str, compiled: bool) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    rival = (case.vocab, case.span, WEIGHTS[case.streams], FILTERS[case.filter])
    theirs = Transformers(*rival)
    if theirs.mask is not None:
        theirs.mask = theirs.mask.to(device)
    yield "transformers", theirs
    yield "torch", Torch(*rival)
    if find_spec("flashinfer") is not None:
        yield "flashinfer", FlashInfer(case)
    if compiled:
        torch._dynamo.reset()
        yield "torch compiled", torch.compile(Torch(*rival), dynamic=False)


def measure(case: Case, device: str, best: float, compiled: bool) -> dict[str, Any]:
    """Microseconds of everyone for a case. ``RuntimeError`` if one of our backends draws anything else than the
    reference; of a rival that fails, its error.
    """
    names = backends(device)
    for name in names:
        check(case, device, name)
    logits = case.logits().to(device)
    lo, hi = case.span
    read = case.groups * case.streams * (hi - lo) * logits.element_size()
    count = max(2, min(copies_to_exceed_cache(read, device), MOST_BYTES // (logits.numel() * logits.element_size())))
    copies, given = [logits, *(logits.clone() for _ in range(count - 1))], arguments(case, device)
    row: dict[str, Any] = {
        **asdict(case),
        "bytes": read,
        "copies": count,
        "in cache": count * read < cache_bytes(device),
        "backend": names[0],
        "captured": [],
    }

    def add(who: str, function: Callable[[Tensor], Any]) -> float:
        inputs = in_turns(copies)
        found = seconds_of(lambda: function(next(inputs)), device, count, SECONDS)
        row[who] = found.seconds * 1e6
        row["captured"] += [who] if found.captured else []
        return found.seconds

    ours = add("fastdecode", lambda x: ops.sample(x, **given))
    row["floor"] = read / best * 1e6
    row["bandwidth_fraction"] = read / best / ours
    for name in names[1:]:
        add(f"fastdecode, {name}", lambda x, b=name: ops.sample(x, **given, backend=b))
    add("softmax", lambda x: torch.softmax(x[:, lo:hi], -1))
    for who, rival in rivals(case, device, compiled):
        try:
            check_rival(who, case, rival(logits))
            add(who, rival)
        except Exception as error:  # a compiler or another package may raise anything
            row[f"{who} failed"] = f"{type(error).__name__}: {error}"[:300]
    return row


def main() -> int:
    part = Part("sample", "Time fastdecode.ops.sample on a GPU beside its rivals.", 90)
    for case in cases(part.dry):
        if part.results.out_of_time(case):
            continue
        try:
            row = measure(case, part.device, part.bandwidth["best"], compiled=case in COMPILED and not part.dry)
        except RuntimeError as error:
            row = {**asdict(case), "error": str(error)[:400]}
        part.results.add("draws", row)
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
