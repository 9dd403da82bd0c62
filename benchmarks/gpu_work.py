"""What each kernel of a step has to do, from the arguments of its launch: the table of `benchmarks.gpu_model`.

A new kernel needs a function here; until it has one the model raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from benchmarks.recorded_step import Launch

BISECTION = 33
"""The number of sums with which `sample_small` finds a cut, at most."""


@dataclass(frozen=True)
class Work:
    """Of one launch.

    ``bytes``: read and written. ``stored``: of them, weights, keys and values, which come from memory; the rest was
    written a moment ago and is in the cache. ``programs`` work; the rest of the grid leaves at once. ``trips``: of a
    loop with a barrier, ``plain_trips`` of others. ``waits``: accesses to the cache of which each needs the one before.
    ``flight``: bytes for which a program has asked memory at any time; None: for all of its bytes at once.
    ``taken``: the share of the kernel's instructions that a program runs, where branches exclude each other.
    ``prefetched``: what it reads first is in the cache, because it asked for it while the kernel before ran.
    """

    bytes: float
    stored: float
    programs: int
    waits: int
    trips: float = 1
    plain_trips: float = 1
    flight: float | None = None
    taken: float = 1
    prefetched: bool = False


def _sum(launch: Launch, *names: str) -> float:
    return sum(launch[name].bytes for name in names)


def _product(launch: Launch, tokens: int) -> Work:
    weight, k, scaled, bias = launch["weight0"], launch["K"], launch["SCALED"], launch["BIAS"]
    features = sum(launch[f"features{i}"] for i in range(3))
    itemsize = 1 if launch.name == "linear_parts" and launch["PAIRS"] else weight.itemsize
    stored = features * k * itemsize + 4 * features * (scaled + bias)
    moved = stored + (_around_product(launch) if launch.name == "linear_parts" else _sum(launch, "x", "out"))
    options = dict(launch.options)
    flight = (options["num_stages"] - 1) * launch["BLOCK"] * launch["FEATURES"] * itemsize
    groups = launch["parts"].shape[0] if launch.name == "linear_parts" else ceil(launch["rows"] / 16)
    # Programs of one matrix and several groups of rows read the same weights; the cache gives them all but the first.
    ahead = launch.name == "linear_parts" and bool(launch["DEPENDENT"])
    trips = ceil(k / launch["BLOCK"])
    return Work(moved, stored, launch.grid, 1, trips, flight=flight / groups, prefetched=ahead)


def _around_product(launch: Launch) -> int:
    """Bytes of the parts that are multiplied, and of what comes before and after the product."""
    read = {
        "squares": launch["PARTIALS"],
        "residual": launch["ADD"],
        "following": launch["OUT_PADDED"] and launch["ADD"],
    }
    written = {"out": not launch["GATED"], "parts_out": launch["OUT_PADDED"], "squares_out": launch["SQUARES"]}
    return _sum(launch, "parts", *(name for name, used in (read | written).items() if used))


def _rms_norm(launch: Launch, tokens: int) -> Work:
    moved = _sum(launch, "x", "weight", "out") + (_sum(launch, "residual", "total") if launch["RESIDUAL"] else 0)
    return Work(
        moved, launch["weight"].bytes, launch.grid, 1, plain_trips=max(ceil(launch["N"] / launch["BLOCK"]) - 1, 1)
    )


def _rope_append(launch: Launch, tokens: int) -> Work:
    keys, rows = launch["keys"], launch["queries"].shape[0]
    new = 2 * rows * keys.shape[1] * keys.shape[3] * keys.itemsize
    norms = sum(launch[f"{which}_weight"].bytes for which in "qk" if launch[f"{which.upper()}_NORM"])
    moved = _sum(launch, "qkv", "cos", "sin", "queries") + norms + new
    return Work(moved, norms, launch.grid, 2, taken=0.5)  # a program is of queries, of keys or of values


def _attend(launch: Launch, tokens: int) -> Work:
    """The last program of each row and head also joins what all of them found."""
    keys, rows, room = launch["keys"], launch["x"].shape[0], launch["width"] * launch["SLOTS"]
    if tokens > room:
        raise ValueError(f"tokens = {tokens}: the page table of this launch has room for {room}; must be at most that")
    stored = 2 * rows * keys.shape[1] * tokens * keys.shape[3] * keys.itemsize
    programs = rows * keys.shape[1] * ceil(tokens / launch["STRETCH"])
    count = ceil(tokens / launch["STRETCH"])
    found = 2 * programs / launch.grid * launch["found"].bytes
    moved = stored + launch["x"].bytes + found + launch["parts" if launch["PART_ROWS"] else "out"].bytes
    # The token's place, then keys and values beside the new token's norms; the count; what others found.
    heads = 1 << (launch["GROUP"] - 1).bit_length()
    joined = min(max(8192 // (heads * launch["DIMS"]), 1), 16)
    return Work(moved, stored, programs, 5, ceil(count / joined))


def _residual(launch: Launch, tokens: int) -> Work:
    moved = _sum(launch, "x", "total") + (launch["parts"].bytes if launch["PADDED"] else 0)
    moved += _sum(launch, "product", "squares", "weight") if launch["PARTIALS"] else 0
    moved += _sum(launch, "following", "squares_out") if launch["FOLLOWED"] else 0
    return Work(moved, launch["weight"].bytes if launch["PARTIALS"] else 0, launch.grid, 1)


def _swiglu(launch: Launch, tokens: int) -> Work:
    return Work(_sum(launch, "gate_up", "out"), 0, launch.grid, 1)


def _sample_small(launch: Launch, tokens: int) -> Work:
    moved = launch.grid * launch["width"] * launch["BLOCK"] * launch["logits"].itemsize
    return Work(moved, 0, launch.grid, 5, BISECTION, launch["width"])


def _tiny(waits: int) -> Callable[[Launch, int], Work]:
    """Of kernels that read a few numbers."""
    return lambda launch, tokens: Work(1024 * launch.grid, 0, launch.grid, waits)


WORK: dict[str, Callable[[Launch, int], Work]] = {
    "linear": _product,
    "linear_parts": _product,
    "rms_norm": _rms_norm,
    "rope_append": _rope_append,
    "attend": _attend,
    "residual": _residual,
    "swiglu": _swiglu,
    "sample_small": _sample_small,
    "advance_choose": _tiny(4),
    "advance": _tiny(6),
}

_GATHERED = ("torch index", "torch embedding", "torch index_select")
_SCATTERED = ("torch index_copy_",)


def _of_torch(launch: Launch) -> Work:
    """An elementwise kernel or a product: every tensor is moved once, of a table only the rows that are chosen."""
    memories = launch.memories
    moved = sum(memory.bytes for memory in memories)
    if launch.name in _GATHERED:
        moved = 2 * memories[-1].bytes
    elif launch.name in _SCATTERED:
        moved = 2 * memories[2].bytes
    product = launch.name.rpartition(" ")[2] in ("mm", "addmm", "bmm")
    return Work(moved, max(memory.bytes for memory in memories) if product else 0, 1, 1)


def work_of(launch: Launch, tokens: int) -> Work:
    """``tokens``: that each row attends to."""
    if launch.kernel is None:
        return _of_torch(launch)
    if launch.name not in WORK:
        raise ValueError(
            f"the step launches the kernel {launch.name!r}, whose work is not known; add a function to WORK in "
            f"benchmarks/gpu_work.py. It knows {', '.join(sorted(WORK))}"
        )
    return WORK[launch.name](launch, tokens)
