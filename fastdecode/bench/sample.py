"""``fastdecode bench sample``: times one call of `fastdecode.ops.sample`, its rivals, and a read of the logits.

Every case is checked before it is timed: our result must equal the reference bit for bit, and transformers' processors
must keep as many tokens as we do. All functions take turns of a few milliseconds. In a turn a function is called
repeatedly; the first call is not counted. The figure is the median call, and a ratio compares figures of one run.
``read`` is a sum over the logits that must be read, ``softmax`` is torch's softmax of the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdecode import ops
from fastdecode.bench.machine import describe
from fastdecode.bench.plot import check_file, plot
from fastdecode.bench.sample_rivals import Torch, Transformers
from fastdecode.bench.turns import make_files, show, take_turns, write_rows

FILTERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "none": {"temperature": 0.7},
    "top_k 50": {"temperature": 0.7, "top_k": 50},
    "top_k 2000": {"temperature": 0.7, "top_k": 2000},
    "top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "top_k 2000, top_p 0.9": {"temperature": 0.7, "top_k": 2000, "top_p": 0.9},
    "min_p 0.05": {"temperature": 0.7, "min_p": 0.05},
}
WEIGHTS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3.0, -2.0),
    3: (3.0, -1.8, -0.2),
    5: (3.0, -1.0, -0.5, -0.3, -0.2),
}
IMAGE_SPAN = (4, 8196)
"""Chameleon's image tokens."""


@dataclass(frozen=True)
class Case:
    """Sample ``groups`` tokens, each from ``streams`` rows of ``vocab`` logits; ``image``: image tokens only."""

    groups: int = 1
    streams: int = 2
    vocab: int = 65536
    image: bool = False
    dtype: str = "float32"
    filter: str = "top_p 0.9"

    @property
    def span(self) -> tuple[int, int]:
        return IMAGE_SPAN if self.image else (0, self.vocab)

    def logits(self) -> Tensor:
        """(groups * streams, vocab), standard normal. Guidance of two such rows gives a distribution about as peaked as
        a model's. One row alone is far flatter: top-p keeps most of its tokens."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn((self.groups * self.streams, self.vocab), generator=generator).to(getattr(torch, self.dtype))


def cases(quick: bool) -> Iterator[Case]:
    """Cases around two streams of 65,536 float32 logits at top-p 0.9; ``quick``: fewer."""
    groups = (1, 8, 32) if quick else (1, 2, 4, 8, 16, 32, 64)
    for name in ("top_p 0.9", "top_k 50") if quick else FILTERS:
        for n in groups:
            yield Case(n, filter=name)
    for n in groups:
        yield Case(n, image=True)
    for n in groups:
        yield Case(n, streams=1)
    if quick:
        return
    for streams in (3, 5):
        yield from (Case(n, streams=streams) for n in (1, 8, 32))
    for vocab in (8192, 131072):
        yield from (Case(n, vocab=vocab) for n in (1, 8, 32))
    for dtype in ("bfloat16", "float16"):
        yield from (Case(n, dtype=dtype, filter=name) for n in (1, 8, 32) for name in ("top_p 0.9", "top_k 50"))


def runners(case: Case, compiled: bool = False) -> dict[str, Callable[[], Any]]:
    """The functions that are timed for a case, by name."""
    logits, options = case.logits(), FILTERS[case.filter]
    lo, hi = case.span
    weights = WEIGHTS[case.streams]
    arguments = _arguments(case, case.groups)
    arguments["allowed"] = ops.TokenSets([[(lo, hi)]], case.vocab)
    read = logits[:, lo:hi]
    rival = (case.vocab, case.span, weights, options)
    found: dict[str, Callable[[], Any]] = {
        "fastdecode": partial(ops.sample, logits, **arguments),
        "transformers": partial(Transformers(*rival), logits),
        "torch": partial(Torch(*rival), logits),
        "softmax": partial(torch.softmax, read, -1),
        "read": partial(torch.sum, read),
    }
    if compiled:
        found["torch compiled"] = partial(torch.compile(Torch(*rival)), logits)
    return found


def _arguments(case: Case, groups: int) -> dict[str, Any]:
    """The arguments of `ops.sample` for the first ``groups`` of the case."""
    return {
        "streams": torch.arange(groups * case.streams, dtype=torch.int32).view(groups, case.streams),
        "weights": torch.tensor([WEIGHTS[case.streams]] * groups),
        "allowed": [[case.span]],
        "seed": torch.arange(groups),
        "step": 5,
        **FILTERS[case.filter],
    }


def check(case: Case) -> int:
    """The number of tokens that a case's first group keeps. ``RuntimeError`` if the first groups differ from the
    reference, or keep other tokens than transformers."""
    groups = min(case.groups, 2)
    logits = case.logits()[: groups * case.streams]
    got = ops.sample(logits, **_arguments(case, groups))
    expected = ops.sample(logits, **_arguments(case, groups), backend="reference")
    if not all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)):
        raise RuntimeError(f"{case}: {got} is not what the reference returns: {expected}; nothing was timed")
    if FILTERS[case.filter]["temperature"] == 0:
        return 1
    theirs = Transformers(case.vocab, case.span, WEIGHTS[case.streams], FILTERS[case.filter])
    kept = (theirs.scores(logits) > -torch.inf).sum(-1)
    if ((kept - got.kept).abs() > 2 + kept // 500).any():
        raise RuntimeError(f"{case}: kept {got.kept.tolist()} tokens, transformers {kept.tolist()}; nothing was timed")
    return int(got.kept[0])


def measure(case: Case, seconds: float = 0.5, compiled: bool = False) -> dict[str, Any]:
    """`check` a case, then time its functions in microseconds, for about ``seconds`` for the slowest."""
    kept = check(case)
    run = runners(case, compiled)
    medians, rounds = take_turns(run, seconds)
    return {**asdict(case), "kept": kept, "rounds": rounds, **medians}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as text: microseconds, and how many times faster fastdecode is than its rivals."""
    head = f"{'filter':22} {'groups':>6} {'S':>2} {'tokens':>7} {'kept':>6} {'dtype':>8}   "
    head += f"{'us':>8} {'vs hf':>7} {'vs torch':>8}"
    lines = [head + f" {'/softmax':>8} {'/read':>7}"]
    for row in rows:
        tokens = IMAGE_SPAN[1] - IMAGE_SPAN[0] if row["image"] else row["vocab"]
        ours = row["fastdecode"]
        lines.append(
            f"{row['filter']:22} {row['groups']:>6} {row['streams']:>2} {tokens:>7} {row['kept']:>6} "
            f"{row['dtype']:>8}   {ours:>8.1f} "
            f"{row['transformers'] / ours:>7.1f} {row['torch'] / ours:>8.1f} "
            f"{ours / row['softmax']:>8.2f} {ours / row['read']:>7.1f}"
        )
    return "\n".join(lines)


def run_bench(
    quick: bool, json_file: Path | None, csv_file: Path | None, compiled: bool, plot_file: Path | None = None
) -> None:
    """Measure all cases, print each when it is done, and write the requested files."""
    if plot_file is not None:
        check_file(plot_file)
    make_files((json_file, csv_file, plot_file))
    machine = describe()
    show(machine)
    rows: list[dict[str, Any]] = []
    for case in cases(quick):
        rows.append(measure(case, compiled=compiled))
        lines = table(rows[-1:]).splitlines()
        print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
    write_rows("sample", rows, machine, json_file, csv_file)
    if plot_file is not None:
        plot(rows, machine, plot_file)
