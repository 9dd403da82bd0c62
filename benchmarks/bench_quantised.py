"""What weights of one byte change: torchao's weight-only int8 and float8 beside the weights they were made of.

    python benchmarks/bench_quantised.py [--model 289M] [--positions 256] [--tokens 64] [--device cpu] [--json FILE]

One sequence of random words and image ids is read by every model, and the logits of image ids compared at every place:

    error       of the logits, root mean square, relative to the logits' own spread
    agree       places where the likeliest image id is the same one
    first       token of a picture drawn greedily, with guidance, whose id is the first to differ; None: none of them
    bytes       of weights that a step reads

Random weights make image ids nearly equally likely, which is the hardest case for ``agree`` and ``first``; for
``error`` it makes no difference. Time is not measured: torchao's products on a CPU are not meant for steps, and
`gpu_kernels.py` times the products that read such weights on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.models import BEGIN_IMAGE, IMAGE_IDS, SIZES, random_model, text_prompts
from fastdecode.bench.machine import describe
from fastdecode.decoder.quantised import matrix_of

KINDS = ("int8", "float8")
GUIDANCE = 3.0


def quantised(model: Any, kind: str) -> Any:
    """A copy of ``model`` whose linear layers, including the head, torchao has quantised."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    made = copy.deepcopy(model)
    with torch.no_grad():
        head = made.lm_head.weight
        head[(head == 0).all(1)] = 1e-3  # torchao turns rows of zeros into NaN
    quantize_(made, {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}[kind]())
    return made


def weight_bytes(model: Any) -> int:
    """The bytes of the linear layers: what a step reads, except some rows of the head."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    parts = [part for module in linears for part in (matrix_of(module).weight, matrix_of(module).scale)]
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


@torch.inference_mode()
def image_logits(model: Any, ids: Tensor) -> Tensor:
    """(positions, image tokens) float32: the logits."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return model.lm_head(hidden)[:, IMAGE_IDS.start : IMAGE_IDS.stop].float()


class After(StoppingCriteria):
    """Ends every sequence at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def drawn(model: Any, tokens: int) -> list[int]:
    """The first image tokens of a picture, greedy, with guidance."""
    prompt = text_prompts(model, 1, 32).to(model.device)
    ids = fastdecode.generate(
        model,
        prompt,
        attention_mask=torch.ones_like(prompt),
        multimodal_generation_mode="image-only",
        do_sample=False,
        guidance=GUIDANCE,
        stopping_criteria=StoppingCriteriaList([After(prompt.shape[1] + 1 + tokens)]),
    )
    found: list[int] = ids[0, prompt.shape[1] + 1 :].tolist()
    assert len(found) == tokens
    assert all(i in IMAGE_IDS for i in found)
    return found


def compare(model: Any, kinds: tuple[str, ...], positions: int, tokens: int) -> list[dict[str, Any]]:
    """A row for each kind of weights, the original ones first."""
    ids = text_prompts(model, 1, 32)
    pictured = torch.randint(
        IMAGE_IDS.start, IMAGE_IDS.stop, (1, positions), generator=torch.Generator().manual_seed(7)
    )
    ids = torch.cat((ids, torch.full((1, 1), BEGIN_IMAGE), pictured), 1).to(model.device)
    logits, greedy = image_logits(model, ids), drawn(model, tokens)
    spread = float(logits.std(1).square().mean().sqrt())
    rows = [
        {"weights": str(model.dtype).removeprefix("torch."), "bytes": weight_bytes(model), "positions": len(logits)}
    ]
    for kind in kinds:
        made = quantised(model, kind)
        its = image_logits(made, ids)
        its_greedy = drawn(made, tokens)
        first = next((n for n, (a, b) in enumerate(zip(greedy, its_greedy, strict=True)) if a != b), None)
        rows.append(
            {
                "weights": kind,
                "bytes": weight_bytes(made),
                "error": float((its - logits).square().mean().sqrt()) / spread,
                "agree": float((its.argmax(1) == logits.argmax(1)).float().mean()),
                "first": first,
                "same_tokens": sum(a == b for a, b in zip(greedy, its_greedy, strict=True)) / tokens,
                "tokens": tokens,
            }
        )
        del made
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="289M")
    parser.add_argument("--positions", type=int, default=256, help="image ids that are read")
    parser.add_argument("--tokens", type=int, default=64, help="image ids that are drawn greedily")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model = random_model(options.model, device=options.device)
    rows = compare(model, KINDS, options.positions, options.tokens)
    print(f"{'weights':10} {'MB':>8} {'error':>8} {'agree':>7} {'first':>6} {'same':>6}")
    for row in rows:
        line = f"{row['weights']:10} {row['bytes'] / 1e6:8.1f}"
        if "error" in row:
            line += f" {row['error']:8.4f} {row['agree']:7.3f} {row['first']!s:>6} {row['same_tokens']:6.2f}"
        print(line)
    if options.json:
        options.json.write_text(
            json.dumps({"machine": describe(), "model": options.model, "rows": rows}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
