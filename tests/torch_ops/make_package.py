"""Writes the AOTInductor package that run_package.cpp runs. Arguments: the package, rows, vocab, steps.

Prints what the same steps give in Python, in the same form.
"""

import sys

import torch
from torch import Tensor, nn

from fastdecode.ops import DecodeState, GrammarTables, TokenSets, sample, sample_advance


class Step(nn.Module):
    """Samples with and without a grammar: in mode 0 a low token leads to mode 1, whose tokens are high; the last token
    ends.
    """

    def __init__(self, vocab: int) -> None:
        super().__init__()
        half = vocab // 2
        sets = TokenSets([[(0, half)], [(half, vocab)]], vocab)
        classes = [(half, vocab - 1, 1), (vocab - 1, vocab, 2)]
        self.tables = GrammarTables(
            sets, set_of=[0, 1, -1], forced=[-1] * 3, following=[[1, 0, 2]] * 3, class_ranges=classes, vocab=vocab
        )

    def forward(
        self,
        logits: Tensor,
        streams: Tensor,
        weights: Tensor,
        seed: Tensor,
        mode: Tensor,
        step: Tensor,
        finished: Tensor,
        inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        options = {"streams": streams, "weights": weights, "seed": seed}
        free = sample(logits, temperature=0.8, top_p=0.9, contrast=(0.01, 3), step=step, **options)
        state = DecodeState(mode, step, finished, inputs=inputs)
        bound = sample_advance(logits, self.tables, state, top_k=20, **options)
        return free.token, free.logprob, bound.token, bound.kept


def arguments(rows: int, vocab: int, step: int) -> Tensor:
    numbers = torch.arange(rows * vocab) * 7919 + step * 104729
    return (numbers % 1009).float().div(100).view(rows, vocab)


def state(rows: int) -> tuple[Tensor, ...]:
    groups = rows // 2
    return (
        torch.arange(rows, dtype=torch.int32).view(groups, 2),
        torch.tensor([[3.0, -2.0]]).repeat(groups, 1),
        torch.arange(groups),
        torch.zeros(groups, dtype=torch.int32),
        torch.zeros(groups, dtype=torch.int64),
        torch.zeros(groups, dtype=torch.uint8),
        torch.zeros(rows, dtype=torch.int64),
    )


def show(name: str, tensor: Tensor) -> None:
    print(name, *(f"{value:.9g}" for value in tensor.double().flatten().tolist()))


def main(package: str, rows: int, vocab: int, steps: int) -> None:
    model = Step(vocab)
    exported = torch.export.export(model, (arguments(rows, vocab, 0), *state(rows)))
    torch._inductor.aoti_compile_and_package(exported, package_path=package)
    streams, weights, seed, *places = state(rows)
    for number in range(steps):
        found = model(arguments(rows, vocab, number), streams, weights, seed, *places)
        mode, step, finished, inputs = places
        for name, tensor in zip(("free", "logprob", "token", "kept"), found, strict=True):
            show(name, tensor)
        for name, tensor in (("inputs", inputs), ("mode", mode), ("step", step), ("finished", finished)):
            show(name, tensor)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
