"""The alternatives to `fastdecode.ops.sample`: transformers' processors, and torch operations written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def mix(logits: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Mix the streams of each group: (groups * S, vocab), a group's streams side by side, to (groups, vocab)."""
    if len(weights) == 1:
        return logits if weights[0] == 1.0 else logits * weights[0]
    streams = logits.view(-1, len(weights), logits.shape[1])
    if len(weights) == 2 and weights[0] + weights[1] == 1.0:  # the usual formula of guidance: u + s (c - u)
        return torch.lerp(streams[:, 1], streams[:, 0], weights[0])
    mixed = streams[:, 0] * weights[0]
    for k, weight in enumerate(weights[1:], 1):
        mixed = mixed.add_(streams[:, k], alpha=weight)
    return mixed


class Transformers:
    """transformers' guidance formula on logits, an added mask, its warpers, softmax and multinomial."""

    def __init__(self, vocab: int, span: tuple[int, int], weights: tuple[float, ...], options: dict[str, Any]) -> None:
        self.weights, self.greedy = weights, options["temperature"] == 0
        self.mask: Tensor | None = None
        if span != (0, vocab):
            self.mask = torch.full((vocab,), -torch.inf)
            self.mask[span[0] : span[1]] = 0
        self.warpers: Any = LogitsProcessorList()
        if not self.greedy and options["temperature"] != 1:
            self.warpers.append(TemperatureLogitsWarper(options["temperature"]))
        if options.get("top_k"):
            self.warpers.append(TopKLogitsWarper(options["top_k"]))
        if options.get("top_p", 1.0) < 1:
            self.warpers.append(TopPLogitsWarper(options["top_p"]))
        if options.get("min_p"):
            self.warpers.append(MinPLogitsWarper(options["min_p"]))

    def scores(self, logits: Tensor) -> Tensor:
        """(groups, vocab) float32: the logits of the tokens that the filter keeps; -inf for the others."""
        rows = logits.float()
        if len(self.weights) > 1:
            rows = rows.log_softmax(-1)
        scores = mix(rows, self.weights)
        if self.mask is not None:
            scores = scores + self.mask
        warped: Tensor = self.warpers(None, scores)
        return warped

    def __call__(self, logits: Tensor) -> Tensor:
        scores = self.scores(logits)
        if self.greedy:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]


class Torch:
    """The same by hand: slice first, select by topk before softmax, sample by the exponential race."""

    def __init__(self, vocab: int, span: tuple[int, int], weights: tuple[float, ...], options: dict[str, Any]) -> None:
        self.span, self.weights, self.options = span, weights, options

    def __call__(self, logits: Tensor) -> Tensor:
        lo, hi = self.span
        options = self.options
        z = mix(logits[:, lo:hi].float(), self.weights)
        if options["temperature"] == 0:
            return z.argmax(-1) + lo
        z = z / options["temperature"]
        top_k, top_p, min_p = options.get("top_k", 0), options.get("top_p", 1.0), options.get("min_p", 0.0)
        ids: Tensor | None = None
        if top_k and top_k < z.shape[1]:
            z, ids = z.topk(top_k, dim=-1)
        elif top_p < 1:
            z, ids = z.sort(-1, descending=True)
        p = z.softmax(-1)
        if top_p < 1:
            p = p * (p.cumsum(-1) - p < top_p)
        if min_p:
            p = p * (p >= min_p * p.amax(-1, keepdim=True))
        at = (p / torch.empty_like(p).exponential_()).argmax(-1)
        return (at if ids is None else ids.gather(-1, at[:, None])[:, 0]) + lo
