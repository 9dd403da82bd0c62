"""Trains the language model of ``blocks`` from scratch and writes the whole checkpoint in Hugging Face format.

    python -m tools.blocks.train_lm --vq build/blocks/vq.safetensors --out build/blocks/model

Sequences of all tasks are packed into rows of fixed length and attend only within themselves. Matrices are trained
with Muon, the rest with AdamW. Checkpoints are written as it goes; ``--resume`` continues from the last. ``--start``
goes on from a shipped checkpoint, which has no optimiser state: ``--vq fastdecode/assets/blocks --start
fastdecode/assets/blocks --start-step 10000 --steps 14000`` is the last part of a training of 14000 steps.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAE,
    GenerationConfig,
)

from fastdecode.models.vq_decoder import VQDecoder
from tools.blocks.configuration import IMAGE_TOKENS, LANGUAGE, VQ
from tools.blocks.tasks import LAST_SHARES, SHARES, Sequence, Tasks
from tools.blocks.tokenizer import make_processor
from tools.blocks.train_vq import build as build_vq

LENGTH = 384
LAST = 0.88
SAVE_EVERY = 250
SMOOTHING, SMOOTH_FROM = 0.01, 1500
"""Label smoothing pins the probability of ids that make no sense to the same small value in every stream. Without it
that value is noise, and guidance, which raises ratios of streams to a power, makes pictures of the noise.
"""


class Packer:
    """Fills ``rows`` rows of ``LENGTH`` ids with whole sequences, first fit; what does not fit waits for the next."""

    def __init__(self, tasks: Tasks, rows: int) -> None:
        self.tasks, self.rows, self.waiting = tasks, rows, []

    def next(self) -> dict[str, Tensor]:
        """ids, owner (which sequence of its row, -1 = none), position, counts: each (rows, LENGTH) int64."""
        room = [LENGTH] * self.rows
        placed: list[list[Sequence]] = [[] for _ in range(self.rows)]
        misses = 0
        while misses < 12:
            if not self.waiting:
                self.waiting = self.tasks.make(64)
            sequence = self.waiting.pop()
            row = next((r for r in range(self.rows) if room[r] >= len(sequence.ids)), None)
            if row is None:
                misses += 1
                if misses == 12:
                    self.waiting.insert(0, sequence)
                continue
            room[row] -= len(sequence.ids)
            placed[row].append(sequence)
        shape = (self.rows, LENGTH)
        ids, position, counts = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        owner = torch.full(shape, -1)
        for r, sequences in enumerate(placed):
            at = 0
            for k, sequence in enumerate(sequences):
                n = len(sequence.ids)
                ids[r, at : at + n] = torch.tensor(sequence.ids)
                counts[r, at : at + n] = torch.tensor(sequence.counts)
                position[r, at : at + n] = torch.arange(n)
                owner[r, at : at + n] = k
                at += n
        return {"ids": ids, "owner": owner, "position": position, "counts": counts}


def vq_weights(source: Path) -> dict[str, Tensor]:
    """The picture tokenizer's weights from what train_vq wrote, or from the folder of a whole checkpoint."""
    if not source.is_dir():
        return load_file(source)
    prefix = "model.vqmodel."
    stored = load_file(source / "model.safetensors")
    return {key.removeprefix(prefix): value.float() for key, value in stored.items() if key.startswith(prefix)}


def make_model(vq_file: Path) -> tuple[ChameleonForConditionalGeneration, ChameleonVQVAE]:
    tokenizer = make_processor().tokenizer
    config = ChameleonConfig(
        **LANGUAGE,
        vocab_size=len(tokenizer),
        vq_config=VQ.to_dict(),
        vocabulary_map=tokenizer.get_vocab(),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = ChameleonForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    vq = build_vq()
    vq.load_state_dict(vq_weights(vq_file))
    vq.eval().requires_grad_(False)
    model.model.vqmodel.decoder = VQDecoder(VQ)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    model.model.vqmodel.requires_grad_(False)
    return model, vq


def save(model: ChameleonForConditionalGeneration, folder: Path) -> None:
    """Half-precision storage, single-precision configuration: it loads as float32 and is half as large."""
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in model.state_dict().items()}
    model.config.dtype = torch.float32
    model.save_pretrained(folder, state_dict=state)
    make_processor().save_pretrained(folder)


def hidden_states(model: ChameleonForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    owner = batch["owner"]
    same = (owner[:, :, None] == owner[:, None, :]).tril()
    return model.model(
        input_ids=batch["ids"],
        attention_mask=same[:, None],
        position_ids=batch["position"],
        use_cache=False,
    ).last_hidden_state


def losses(model: nn.Module, hidden: Tensor, batch: dict[str, Tensor], smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross entropy of each counted id given those before it, and the ids."""
    wanted = (batch["counts"][:, 1:] == 1) & (batch["owner"][:, 1:] == batch["owner"][:, :-1])
    target = batch["ids"][:, 1:][wanted]
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing), target


@torch.inference_mode()
def validate(model: nn.Module, tasks: Tasks, rows: int = 8) -> str:
    """Mean loss per id on fresh sequences, for pictures' ids and text's apart."""
    batch = Packer(tasks, rows).next()
    loss, target = losses(model, hidden_states(model, batch), batch)
    pictured = (target >= tasks.first_code) & (target < tasks.first_code + VQ.num_embeddings)
    found = defaultdict(float, {"pictures": loss[pictured].mean().item(), "text": loss[~pictured].mean().item()})
    return "  ".join(f"{k} {v:.4f}" for k, v in found.items())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model, vq = make_model(args.vq)
    tokenizer = make_processor().tokenizer
    state_file = args.out.parent / "lm-state.pt"
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2 and min(p.shape) > 32]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    optimisers = [
        torch.optim.Muon(matrices, lr=args.lr_muon, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def scale(step: int) -> float:
        """Warm up, hold, then down to zero in a straight line over the last half."""
        return min(1.0, (step + 1) / 100, max(0.0, 2 * (args.steps - step) / args.steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: scale(n + args.start_step)) for o in optimisers]
    first = 0
    if args.start is not None:
        model.load_state_dict(load_file(args.start / "model.safetensors"))
        first = args.start_step
    if args.resume and state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        for part, saved in zip([*optimisers, *schedules], state["parts"], strict=True):
            part.load_state_dict(saved)
        first = state["step"]
    tasks = Tasks(tokenizer, vq, args.seed)
    held_out = Tasks(tokenizer, vq, args.seed + 999)
    fast_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() and not args.float32
    start, total = time.time(), 0.0
    for step in range(first, args.steps):
        if step == first or step % SAVE_EVERY == 0:  # the same material whether or not training was interrupted
            tasks.restart(args.seed + 1000 * step + 1)
            tasks.shares = SHARES if step < LAST * args.steps else LAST_SHARES
            packer = Packer(tasks, args.rows)
        batch = packer.next()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16):
            hidden = hidden_states(model, batch)
        loss, _ = losses(model, hidden, batch, SMOOTHING if step >= SMOOTH_FROM else 0.0)
        loss = loss.mean()
        for o in optimisers:
            o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimisers, *schedules):
            part.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"{step + 1:5d} {time.time() - start:6.0f} s  loss {total / 50:.4f}", flush=True)
            total = 0.0
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps:
            print("      fresh:", validate(model, held_out), flush=True)
            parts = [part.state_dict() for part in (*optimisers, *schedules)]
            torch.save({"model": model.state_dict(), "parts": parts, "step": step + 1}, state_file)
            save(model, args.out)
    print(f"wrote {args.out}; a picture is {IMAGE_TOKENS} ids")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq", type=Path, default=Path("build/blocks/vq.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("build/blocks/model"))
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--rows", type=int, default=14)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bf16 even where the processor multiplies it")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="go on from the weights of this checkpoint, with fresh optimisers")
    parser.add_argument("--start-step", type=int, default=0, help="the step that --start is taken to be at")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
