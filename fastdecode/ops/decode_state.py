"""Where every group is in its sequence and its grammar, in device memory: what `advance` changes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastdecode.ops.arrays import as_tensor, is_array
from fastdecode.ops.grammar_tables import GrammarTables

RUNNING, ENDED, FAILED = 0, 1, 2
"""Values of `DecodeState.finished`."""

MAX_STEP = 1 << 62


@dataclass(slots=True)
class DecodeState:
    """`advance` writes every tensor but `limit`, in place. No two may share memory; only the cpu backend checks it.

    mode       (groups,) int32: mode of the grammar
    step       (groups,) int64: number of tokens in the sequence, and so the index of the next one
    finished   (groups,) uint8: 0 running; 1 ended by its grammar or limit; 2 failed, no token could be sampled
    limit      (groups,) int64: the sequence ends when it has this many tokens. None: no limit
    inputs     (rows,) int64: next input token of each stream, or None
    lengths    (rows,) int64: number of tokens in each stream, with the next input, or None
    seen       (groups, ceil(vocab / 32)) int32: bit set of the tokens in the sequence, or None
    sequences  (groups, capacity) int64: the tokens of the sequence; the next is written at index `step`. Or None

    Numpy arrays become tensors that share their memory, so that they change too. ValueError for one that is read-only.
    """

    mode: Tensor
    step: Tensor
    finished: Tensor
    limit: Tensor | None = None
    inputs: Tensor | None = None
    lengths: Tensor | None = None
    seen: Tensor | None = None
    sequences: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, Tensor) and is_array(value):
                setattr(self, field.name, as_tensor(f"state.{field.name}", value, field.name != "limit"))

    @property
    def capacity(self) -> int:
        """Number of tokens that each of `sequences` has room for; 0 without `sequences`."""
        return self.sequences.shape[1] if isinstance(self.sequences, Tensor) and self.sequences.dim() == 2 else 0

    def check(self, groups: int, rows: int, vocab: int, device: torch.device) -> None:
        """Raises ValueError naming the first tensor of a wrong type, shape, dtype, device or layout."""
        words = (vocab + 31) // 32
        if isinstance(self.sequences, Tensor) and self.sequences.dim() != 2:
            raise ValueError(f"state.sequences.shape = {tuple(self.sequences.shape)}: must be ({groups}, capacity)")
        for name, shape, dtype in (
            ("mode", (groups,), torch.int32),
            ("step", (groups,), torch.int64),
            ("finished", (groups,), torch.uint8),
            ("limit", (groups,), torch.int64),
            ("inputs", (rows,), torch.int64),
            ("lengths", (rows,), torch.int64),
            ("seen", (groups, words), torch.int32),
            ("sequences", (groups, self.capacity), torch.int64),
        ):
            tensor = getattr(self, name)
            if tensor is None and name not in ("mode", "step", "finished"):
                continue
            if not isinstance(tensor, Tensor):
                raise ValueError(f"state.{name}: must be a tensor, got {type(tensor).__name__}")
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
                raise ValueError(
                    f"state.{name}: must be {shape} {dtype} on {device}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
                )
            if tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.is_neg():
                raise ValueError(f"state.{name}: must be contiguous, since it is written in place")
        if self.sequences is not None and self.capacity == 0 and groups > 0:
            raise ValueError("state.sequences: must have room for a token")

    def check_values(self, tables: GrammarTables, token: Tensor | None) -> None:
        """Checks the values in the tensors, as the C library does for the cpu backend. Reads device memory."""
        assert tables.host  # making the tuples checks the tables
        modes, steps = self.mode.tolist(), self.step.tolist()
        tokens = [-1] * len(modes) if token is None else token.tolist()
        for g, finished in enumerate(self.finished.tolist()):
            if finished > FAILED:
                raise ValueError(f"finished[{g}] = {finished}: must be 0, 1 or 2")
            if finished != RUNNING:
                continue
            if not 0 <= modes[g] < tables.modes:
                raise ValueError(f"mode[{g}] = {modes[g]}: must be in [0, {tables.modes})")
            if not 0 <= steps[g] < MAX_STEP:
                raise ValueError(f"step[{g}] = {steps[g]}: must be in [0, 2^62)")
            if self.sequences is not None and steps[g] >= self.capacity:
                raise ValueError(f"step[{g}] = {steps[g]}: sequences have room for {self.capacity} tokens")
            if not -1 <= tokens[g] < tables.vocab:
                raise ValueError(f"token[{g}] = {tokens[g]}: must be a token below {tables.vocab}, or -1")
