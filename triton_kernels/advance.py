"""`advance` on a GPU, or in Triton's interpreter: one program per group.

    token                           (groups,) int64
    mode, step, finished            (groups,) int32, int64, uint8: read and written
    limit, inputs, lengths, seen, sequences    as in DecodeState; not read or written where their bit in `has` is 0
    set_of, tight_set_of, room, forced         (modes,) int32
    following                       (modes, classes) int32
    class_ranges                    (class_count, 3) int32: lo, hi, class

`sample_advance` runs `advance_choose`, then the kernels of `sample`, then `advance`. A group whose mode, step,
token or row is out of range fails (finished = 2); nothing is read or written out of range.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.arguments import DecodeState, GrammarTables
from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import INF

LIMIT = tl.constexpr(1)
INPUTS = tl.constexpr(2)
LENGTHS = tl.constexpr(4)
SEEN = tl.constexpr(8)
SEQUENCES = tl.constexpr(16)
STREAMS = tl.constexpr(32)
SAMPLED = tl.constexpr(64)
"""The outputs of `sample` were passed, and `advance` completes them for groups that sampled nothing."""

_RUNNING = tl.constexpr(0)
_ENDED = tl.constexpr(1)
_FAILED = tl.constexpr(2)
_STATUS_OK = tl.constexpr(0)
_STATUS_FINISHED = tl.constexpr(3)

_NOTHING = tl.constexpr(0)
_FORCED = tl.constexpr(1)
_DRAWN = tl.constexpr(2)

_INTS = ("modes", "classes", "class_count", "width", "rows", "vocab", "words", "has")
_LONGS = ("capacity",)


@triton.jit
def _coming(set_of, tight_set_of, room, forced, limit, mode, step, group, has):
    """(what, value): what comes next: _NOTHING, _FORCED with the token, or _DRAWN with the set to sample from."""
    number = tl.load(set_of + mode)
    left = tl.load(limit + group, mask=(has & LIMIT) != 0, other=0x7FFFFFFFFFFFFFFF)
    left = tl.where(left > step, left - step, 0)
    if left < tl.load(room + mode):
        number = tl.load(tight_set_of + mode)
    token = tl.load(forced + mode)
    what = tl.where(number >= 0, _DRAWN, tl.where(token >= 0, _FORCED, _NOTHING))
    return tl.where(left > 0, what, _NOTHING), tl.where(number >= 0, number, token)


@triton.jit
def _place(mode, step, finished, modes, capacity, group, has):
    """(mode, step, running, good) of a group. good: mode and step are in range. mode is 0 unless running and good."""
    running = tl.load(finished + group) == _RUNNING
    at = tl.load(mode + group)
    number = tl.load(step + group)
    good = (at >= 0) & (at < modes) & (number >= 0) & (number < (1 << 62))
    good = good & (((has & SEQUENCES) == 0) | (number < capacity))
    return tl.where(running & good, at, 0), number, running, good


@triton.jit
def _class_of(class_ranges, class_count, token):
    found = tl.zeros((64,), tl.int32)
    for begin in range(0, class_count, 64):
        r = begin + tl.arange(0, 64)
        lo = tl.load(class_ranges + r * 3, mask=r < class_count, other=1)
        hi = tl.load(class_ranges + r * 3 + 1, mask=r < class_count, other=0)
        number = tl.load(class_ranges + r * 3 + 2, mask=r < class_count, other=0)
        found += tl.where((lo <= token) & (token < hi), number, 0)
    return tl.sum(found, 0)


@triton.jit
def _good_rows(streams, width, rows, group, has):
    good = width == width
    for k in range(width):
        row = tl.load(streams + group * width + k, mask=(has & STREAMS) != 0, other=-1)
        good = good & (row >= -1) & (row < rows)
    return good


@triton.jit(do_not_specialize=[*_INTS, *_LONGS])
def advance_choose(
    mode, step, finished, limit, set_of, tight_set_of, room, forced, modes, capacity: tl.int64, has,
    set_index,
):  # fmt: skip
    """set_index: the set that the group samples from, or −1, for which `sample` reads no logits."""
    group = tl.program_id(0).to(tl.int64)
    at, number, running, good = _place(mode, step, finished, modes, capacity, group, has)
    what, value = _coming(set_of, tight_set_of, room, forced, limit, at, number, group, has)
    tl.store(set_index + group, tl.where(running & good & (what == _DRAWN), value, -1))


@triton.jit(do_not_specialize=[*_INTS, *_LONGS])
def advance(
    token, logprob, kept, status,
    mode, step, finished, limit, inputs, lengths, seen, words, sequences, capacity: tl.int64,
    set_of, tight_set_of, room, forced, following, modes, classes, class_ranges, class_count,
    streams, width, rows, vocab, has,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    at, number, running, good = _place(mode, step, finished, modes, capacity, group, has)
    what, value = _coming(set_of, tight_set_of, room, forced, limit, at, number, group, has)
    ends = running & good & (what == _NOTHING)
    drawn = tl.load(token + group)
    if (has & SAMPLED) != 0:
        forces = running & good & (what == _FORCED)
        if forces | ends | (running == 0):
            drawn = tl.where(forces, value, -1).to(tl.int64)
            tl.store(token + group, drawn)
            tl.store(logprob + group, tl.where(forces, 0.0, -INF))
            tl.store(kept + group, forces.to(tl.int32))
            tl.store(status + group, tl.where(forces, _STATUS_OK, _STATUS_FINISHED))

    good = good & (drawn >= 0) & (drawn < vocab) & _good_rows(streams, width, rows, group, has)
    moves = running & good & ~ends
    following_mode = tl.load(
        following + at * classes + _class_of(class_ranges, class_count, drawn), mask=moves, other=0
    )
    good = good & (following_mode >= 0) & (following_mode < modes)
    moves = moves & good
    if moves:
        for k in range(width):
            row = tl.load(streams + group * width + k, mask=(has & STREAMS) != 0, other=group.to(tl.int32))
            tl.store(inputs + row, drawn, mask=(row >= 0) & ((has & INPUTS) != 0))
            counts = (row >= 0) & ((has & LENGTHS) != 0)
            length = tl.load(lengths + row, mask=counts, other=0)
            tl.store(lengths + row, length + 1, mask=counts)
        word = group * words + (drawn >> 5)
        bits = tl.load(seen + word, mask=(has & SEEN) != 0, other=0)
        tl.store(seen + word, bits | (1 << (drawn & 31)).to(tl.int32), mask=(has & SEEN) != 0)
        tl.store(sequences + group * capacity + number, drawn, mask=(has & SEQUENCES) != 0)
        tl.store(mode + group, following_mode)
        tl.store(step + group, number + 1)
        what, value = _coming(set_of, tight_set_of, room, forced, limit, following_mode, number + 1, group, has)
        ends = what == _NOTHING
    if running:
        after = tl.where(ends, _ENDED, tl.where(good, _RUNNING, _FAILED))
        tl.store(finished + group, after.to(tl.uint8))


def _arguments(tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> dict[str, Any]:
    """The arguments of both kernels, by name. In place of an absent tensor, one of the same dtype that is not used."""
    given = {
        "limit": (state.limit, LIMIT),
        "inputs": (state.inputs, INPUTS),
        "lengths": (state.lengths, LENGTHS),
        "seen": (state.seen, SEEN),
        "sequences": (state.sequences, SEQUENCES),
        "streams": (streams, STREAMS),
    }
    absent = {"seen": state.mode, "streams": state.mode}
    return {
        "mode": state.mode,
        "step": state.step,
        "finished": state.finished,
        "words": (tables.vocab + 31) // 32,
        "capacity": state.capacity,
        "set_of": tables.set_of,
        "tight_set_of": tables.tight_set_of,
        "room": tables.room,
        "forced": tables.forced,
        "following": tables.following,
        "modes": tables.modes,
        "classes": tables.classes,
        "class_ranges": tables.class_ranges,
        "class_count": len(tables.class_ranges),
        "width": 1 if streams is None else streams.shape[1],
        "rows": rows,
        "vocab": tables.vocab,
        **{name: absent.get(name, state.step) if tensor is None else tensor for name, (tensor, _) in given.items()},
        "has": sum(bit.value for tensor, bit in given.values() if tensor is not None),
    }


def _launch(kernel: Any, groups: int, arguments: dict[str, Any]) -> None:
    named = {name: arguments[name] for name in kernel.arg_names if name in arguments}
    kernel[(groups,)](**named, num_warps=1, enable_fp_fusion=False)


def launch_advance(token: Tensor, tables: GrammarTables, state: DecodeState, streams: Tensor | None, rows: int) -> None:
    """`advance`. Shapes, dtypes and devices must have been checked."""
    arguments = _arguments(tables, state, streams, rows)
    if len(token):
        absent = {"logprob": state.step.view(torch.float32), "kept": state.mode, "status": state.mode}
        with torch.cuda.device_of(token):
            _launch(advance, len(token), {**arguments, **absent, "token": token})


def launch_choose(tables: GrammarTables, state: DecodeState) -> Tensor:
    """(groups,) int32: the set that each group samples from, or −1."""
    set_index = torch.empty_like(state.mode)
    if len(set_index):
        with torch.cuda.device_of(set_index):
            _launch(advance_choose, len(set_index), {**_arguments(tables, state, None, 0), "set_index": set_index})
    return set_index


def launch_complete(
    drawn: tuple[Tensor, Tensor, Tensor, Tensor],
    tables: GrammarTables,
    state: DecodeState,
    streams: Tensor | None,
    rows: int,
) -> None:
    """Completes the outputs of `sample` for groups with a forced token or none, then advances all groups."""
    arguments = _arguments(tables, state, streams, rows)
    arguments |= dict(zip(("token", "logprob", "kept", "status"), drawn, strict=True))
    arguments["has"] |= SAMPLED.value
    if len(drawn[0]):
        with torch.cuda.device_of(drawn[0]):
            _launch(advance, len(drawn[0]), arguments)


_TYPES = (
    dict.fromkeys(_INTS, "i32")
    | dict.fromkeys(_LONGS, "i64")
    | dict.fromkeys(("token", "step", "limit", "inputs", "lengths", "sequences"), "*i64")
    | dict.fromkeys(("kept", "status", "mode", "seen", "streams", "set_index", "class_ranges"), "*i32")
    | dict.fromkeys(("set_of", "tight_set_of", "room", "forced", "following"), "*i32")
    | {"logprob": "*fp32", "finished": "*u8"}
)

COMPILE_CASES = [
    Case(kernel, _TYPES, {}, {"num_warps": 1, "enable_fp_fusion": False}) for kernel in (advance_choose, advance)
]
