"""Trains the picture tokenizer of ``blocks`` from scratch: 64 x 64 pixels to 64 codes of 256, and back.

    python -m tools.blocks.train_vq --out build/blocks/vq.safetensors

First an autoencoder without quantisation, then a codebook by k-means on its latents, then both together with unused
codes revived. Last, the codebook is thinned to the codes that stand for something of their own (most of a picture is
sky, and a language model need not choose among thirty codes for it), and all is trained once more with those. About
twenty minutes on two cores; ``--thin-only`` starts from the result of the first stages, which is kept beside the last.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ChameleonVQVAE

from fastdecode.models.painting import to_pictures
from fastdecode.models.vq_decoder import VQDecoder, decode_codes, latent_side
from tools.blocks.configuration import VQ, any_scene, pixels
from tools.blocks.recogniser import recognise
from tools.blocks.world import HEIGHT, SIDE

PARKED = 100.0
"""Every coordinate of a code that is out of use: far from any latent."""


def build() -> ChameleonVQVAE:
    vq = ChameleonVQVAE(VQ)
    vq.decoder = VQDecoder(VQ)
    return vq


def latents(vq: nn.Module, x: Tensor) -> Tensor:
    """(n, embed_dim, 8, 8): what the quantiser sees."""
    return vq.quant_conv(vq.encoder(x))


def kmeans(points: Tensor, count: int, rounds: int = 20) -> Tensor:
    """k-means++ style farthest seeding, then Lloyd; ``points`` (n, d) to centres (count, d)."""
    centres = points[:1]
    nearest = ((points - centres[0]) ** 2).sum(1)
    for _ in range(count - 1):
        pick = torch.multinomial(nearest + 1e-9, 1)
        centres = torch.cat([centres, points[pick]])
        nearest = torch.minimum(nearest, ((points - points[pick]) ** 2).sum(1))
    for _ in range(rounds):
        owner = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        sizes = torch.bincount(owner, minlength=count).unsqueeze(1)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).abs().mean() + 2 * ((y - x) ** 2).mean()


def train(steps_plain: int, steps_vq: int, batch: int, seed: int) -> ChameleonVQVAE:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vq = build().train()
    vq = vq.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vq.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    total = steps_plain + steps_vq
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=total, pct_start=0.05)
    unused = torch.zeros(VQ.num_embeddings, dtype=torch.long)
    start = time.time()
    for step in range(total):
        x = pixels([any_scene(rng) for _ in range(batch)]).to(memory_format=torch.channels_last)
        z = latents(vq, x)
        if step == steps_plain:
            points = []
            with torch.no_grad():
                for _ in range(16):
                    more = latents(vq, pixels([any_scene(rng) for _ in range(64)]))
                    points.append(more.permute(0, 2, 3, 1).reshape(-1, VQ.embed_dim))
            vq.quantize.embedding.weight.data.copy_(kmeans(torch.cat(points), VQ.num_embeddings))
            print("codebook seeded", flush=True)
        if step < steps_plain:
            quantised, vq_loss = z, z.pow(2).mean() * 1e-3
        else:
            quantised, vq_loss, indices = vq.quantize(z)
            used = torch.bincount(indices, minlength=VQ.num_embeddings) > 0
            unused = torch.where(used, 0, unused + 1)
            stale = (unused > 100).nonzero().flatten()
            if len(stale) and step < total - 400:
                flat = z.detach().permute(0, 2, 3, 1).reshape(-1, VQ.embed_dim)
                far = torch.cdist(flat, vq.quantize.embedding.weight).min(1).values.topk(min(8, len(stale))).indices
                vq.quantize.embedding.weight.data[stale[: len(far)]] = flat[far]
                unused[stale[: len(far)]] = 0
        y = vq.decoder(vq.post_quant_conv(quantised))
        loss = reconstruction_loss(y, x) + vq_loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"{step:5d} {time.time() - start:6.0f} s  loss {loss.item():.4f}  vq {vq_loss.item():.4f}",
                flush=True,
            )
    return vq.eval()


@torch.inference_mode()
def telling_codes(vq: ChameleonVQVAE, seed: int, count: int = 1024) -> Tensor:
    """Codes worth keeping: the one used most for the sky, and the two used most for each quarter of each thing."""
    rng = random.Random(seed)
    uses: dict[tuple, Counter] = defaultdict(Counter)
    side = latent_side(VQ)
    for _ in range(count // 32):
        scenes = [any_scene(rng) for _ in range(32)]
        codes = vq.encode(pixels(scenes), return_dict=True).image_tokens.view(-1, side, side)
        for scene, grid in zip(scenes, codes.tolist(), strict=True):
            for row, column in itertools.product(range(side), range(side)):
                stack, height = scene[column // 2], HEIGHT - 1 - row // 2
                thing = stack[height] if height < len(stack) else None
                quarter = (row % 2, column % 2) if thing else None
                uses[thing, quarter][grid[row][column]] += 1
    [(sky, _)] = uses.pop((None, None)).most_common(1)
    kept = {sky}
    for used in uses.values():
        kept |= {code for code, _ in used.most_common(2)}
    return torch.tensor(sorted(kept))


def thin(vq: ChameleonVQVAE, steps: int, batch: int, seed: int) -> None:
    """Parks all but the telling codes out of reach and trains the rest of the way with those that are left."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    kept = telling_codes(vq.eval(), seed)
    book = vq.quantize.embedding.weight
    parked = torch.ones(len(book), dtype=torch.bool)
    parked[kept] = False
    book.data[parked] = PARKED
    print(f"{len(kept)} codes kept", flush=True)
    vq.train()
    optimiser = torch.optim.AdamW(vq.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        x = pixels([any_scene(rng) for _ in range(batch)]).to(memory_format=torch.channels_last)
        quantised, vq_loss, _ = vq.quantize(latents(vq, x))
        loss = reconstruction_loss(vq.decoder(vq.post_quant_conv(quantised)), x) + vq_loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"thin {step:5d}  loss {loss.item():.4f}  vq {vq_loss.item():.4f}", flush=True)
    assert bool((book.data[parked] == PARKED).all()), "a parked code moved"
    vq.eval()


@torch.inference_mode()
def check(vq: ChameleonVQVAE, seed: int, count: int = 512) -> dict[str, float]:
    """Share of unseen scenes that are read back whole from their 64 codes, pixel error, and codes in use."""
    rng = random.Random(seed)
    right, error, used = 0, 0.0, set()
    for _ in range(count // 32):
        scenes = [any_scene(rng) for _ in range(32)]
        x = pixels(scenes)
        codes = vq.encode(x, return_dict=True).image_tokens.view(len(x), latent_side(VQ), latent_side(VQ))
        used |= set(codes.flatten().tolist())
        y = decode_codes(vq, codes)
        error += (y - x).abs().mean().item() * 127.5 * 32 / count
        right += sum(recognise(picture) == scene for picture, scene in zip(to_pictures(y), scenes, strict=True))
    return {
        "read back": right / count,
        "mean grey error": error,
        "codes used": len(used),
        "side": SIDE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/blocks/vq.safetensors"))
    parser.add_argument("--steps-plain", type=int, default=500)
    parser.add_argument("--steps-vq", type=int, default=1500)
    parser.add_argument("--steps-thin", type=int, default=700)
    parser.add_argument("--thin-only", action="store_true")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    first = args.out.with_suffix(".full-codebook.safetensors")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.thin_only:
        vq = build()
        vq.load_state_dict(load_file(first))
    else:
        vq = train(args.steps_plain, args.steps_vq, args.batch, args.seed)
        save_file({k: v.contiguous() for k, v in vq.state_dict().items()}, first)
    print(check(vq.eval(), args.seed + 1))
    thin(vq, args.steps_thin, args.batch, args.seed + 2)
    print(check(vq, args.seed + 1))
    save_file({k: v.contiguous() for k, v in vq.state_dict().items()}, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
