"""The arguments with which a step samples: all that `fastdecode.ops.sample_advance` takes besides the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdecode import ops

Contrast = tuple[float, int]
"""(alpha, k), as `fastdecode.ops.sample` takes it."""

Part = tuple[int, Contrast | None]
"""The first of neighbouring groups, and the contrast that they have up to the next part."""


@dataclass
class Draws:
    """Arguments of `fastdecode.ops.sample_advance` for a run, and ``spans`` of the output head's rows.

    ``parts``: groups with different contrasts, which need a call each. ``weights_ahead`` (steps, groups, streams)
    float32: the weights of every step, where they change.
    """

    tables: ops.GrammarTables
    streams: Tensor
    weights: Tensor
    seeds: Tensor
    parameters: dict[str, Any]
    spans: Sequence[tuple[int, int]] | None
    parts: tuple[Part, ...] = ((0, None),)
    weights_ahead: Tensor | None = None

    def calls(self, state: ops.DecodeState) -> list[tuple[ops.DecodeState, dict[str, Any]]]:
        """For each part its state and its named arguments, over the memory of ``state`` and of these tensors. All parts
        write to the same ``inputs``, each to the rows of its streams.
        """
        found = []
        ends = [*(first for first, _ in self.parts[1:]), len(self.streams)]
        for (first, contrast), end in zip(self.parts, ends, strict=True):
            own = slice(first, end)
            given = {name: _cut(value, own) for name, value in self.parameters.items()}
            given |= {"streams": self.streams[own], "weights": self.weights[own], "seed": self.seeds[own]}
            of_groups = {
                name: _cut(getattr(state, name), own) for name in ("mode", "step", "finished", "limit", "seen")
            }
            found.append((replace(state, **of_groups), {**given, "contrast": contrast}))
        return found


def _cut(value: Any, own: slice) -> Any:
    return value[own] if isinstance(value, Tensor) else value


def joined(samples: Sequence[ops.Sample]) -> ops.Sample:
    """The samples of all parts as one."""
    if len(samples) == 1:
        return samples[0]
    return ops.Sample(*(torch.cat(column) for column in zip(*samples, strict=True)))
