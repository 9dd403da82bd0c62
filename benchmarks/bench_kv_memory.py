"""Memory of keys and values in a guided batch, beside padded and static caches; and that it does not grow with time.

    python benchmarks/bench_kv_memory.py [--model 37M] [--sequences 8] [--steps 10000] [--json FILE]

``--sequences`` pictures are drawn of one prompt, some 200 ids of text and a picture, with three-way guidance: three
streams each. While they grow the pool of pages is asked how full it is; beside it stand

    needed     pages that must differ: those of the streams' own ids, equal beginnings counted once
    unshared   the ids of every stream by themselves, without pages
    padded     rows x the longest stream, as one batch of all streams has it
    static     transformers' StaticCache for the sequences of each kind of stream, as long as that kind gets

Then many short sequences come and go in one cache for ``--steps`` steps of a tiny model: no page may be left in use,
and the process may not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache, StoppingCriteria, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.models import BOS, FIRST_WORD, edit_prompts, engines, random_model
from fastdecode import Guidance
from fastdecode.bench.machine import describe
from fastdecode.decoder import Decoder
from fastdecode.engine.core import EngineCore
from fastdecode.models.families import vocabulary_of

WORDS = 200
GROWTH = 4 * 2**20
"""The bytes that a process may grow by in `steady`, for the allocator and the interpreter."""


def statistics_of(cache: Any) -> Any:
    """The use of a cache's pool, as `fastdecode.kv.page_pool.PoolStatistics`."""
    return cache.pool.statistics()


def stored_streams(engine: EngineCore) -> list[tuple[int, ...]]:
    """Tokens whose keys and values each row of ``engine`` holds, after a step in a picture: all but a stream's newest.

    ``RuntimeError`` if the rows' lengths are others.
    """
    streams: list[tuple[int, ...]] = [()] * engine.cache.rows
    for request in engine.scheduler.running:
        for sequence in request.live:
            for row, tokens in zip(sequence.rows, sequence.streams_now(), strict=True):
                streams[row] = tokens[:-1]
    lengths = engine.cache.lengths.tolist()
    if lengths != [len(tokens) for tokens in streams]:
        raise RuntimeError(f"the rows hold {lengths} tokens, their streams have {[len(t) for t in streams]}")
    return streams


def pages_needed(streams: Sequence[tuple[int, ...]], page_slots: int) -> int:
    """The pages of all streams. Streams with equal tokens up to a page's end share that page."""
    pages: dict[tuple[int, tuple[int, ...]], int] = {}
    for ids in streams:
        page = -1
        for start in range(0, len(ids), page_slots):
            page = pages.setdefault((page, ids[start : start + page_slots]), len(pages))
    return len(pages)


def bytes_per_id(model: Any) -> int:
    attention = model.model.layers[0].self_attn
    values = attention.num_key_value_heads * attention.head_dim * model.config.num_hidden_layers
    return 2 * values * model.lm_head.weight.itemsize


def static_bytes(model: Any, batch: int, length: int) -> int:
    """The bytes of transformers' StaticCache for ``batch`` sequences of ``length`` tokens. It allocates nothing."""
    attention = model.model.layers[0].self_attn
    cache = StaticCache(model.config, max_cache_len=length)
    shape = (attention.num_key_value_heads, attention.head_dim)
    cache.early_initialization(batch, *shape, dtype=model.dtype, device=torch.device("meta"))
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class Watch(StoppingCriteria):
    """Records the memory of the engine's cache at each number of new tokens in ``when``."""

    def __init__(self, model: Any, engines: list[EngineCore], width: int, when: Sequence[int]) -> None:
        self.model, self.engines, self.width, self.when = model, engines, width, frozenset(when)
        self.points: list[dict[str, Any]] = []
        self.streams: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        engine = self.engines[0]
        new = input_ids.shape[1] - self.width
        if new in self.when:
            self.streams = stored_streams(engine)
            self.points.append({"new ids": new, **self.point(engine.cache)})
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def point(self, cache: Any) -> dict[str, Any]:
        pool, per_id = statistics_of(cache), bytes_per_id(self.model)
        page_slots = pool.page_bytes // per_id
        needed = pages_needed(self.streams, page_slots)
        if pool.used < needed:
            raise RuntimeError(f"{pool.used} pages are used, but {needed} hold different ids")
        return {
            "rows": len(self.streams),
            "longest": max(map(len, self.streams)),
            "page ids": page_slots,
            "pages used": pool.used,
            "pages needed": needed,
            "pages shared": pool.shared,
            "bytes used": pool.bytes_used,
            "bytes held": pool.capacity * pool.page_bytes,
            "bytes needed": needed * pool.page_bytes,
            "bytes unshared": sum(map(len, self.streams)) * per_id,
            "bytes padded": len(self.streams) * max(map(len, self.streams)) * per_id,
        }


def guided_batch(model: Any, sequences: int, words: int = WORDS, points: int = 4) -> dict[str, Any]:
    """The memory of three-way guided pictures of one prompt with text and a picture, while they grow and at the end."""
    vocabulary = vocabulary_of(model)
    prompt = edit_prompts(model, 1, words, vocabulary.image_length)
    last = vocabulary.image_length + 1  # then end of image is forced, and fed to no row
    when = [2, *(last * n // points for n in range(1, points + 1))]
    with engines() as made:
        watch = Watch(model, made, prompt.shape[1], when)
        fastdecode.generate(
            model,
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_return_sequences=sequences,
            multimodal_generation_mode="image-only",
            guidance=Guidance.instruct(3.0, 1.2),
            do_sample=True,
            seed=0,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
    pool = statistics_of(made[0].cache)
    if pool.used:
        raise RuntimeError(f"{pool.used} pages are still used after all sequences have ended")
    lengths = sorted((len(ids) + 2 for ids in watch.streams), reverse=True)  # the newest id, and the end of image
    kinds = lengths[::sequences]
    found = {
        "sequences": sequences,
        "prompt": prompt.shape[1],
        "bytes per id": bytes_per_id(model),
        "points": watch.points,
        "stream lengths": kinds,
        "bytes at peak": pool.peak * pool.page_bytes,
        "bytes held": pool.capacity * pool.page_bytes,
        "bytes padded": len(watch.streams) * max(kinds) * bytes_per_id(model),
        "bytes static": sum(static_bytes(model, sequences, length) for length in kinds),
    }
    for other in ("padded", "static"):
        found[f"{other} over ours"] = found[f"bytes {other}"] / found["bytes at peak"]
    return found


def resident() -> int:
    """The bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def steady(model: Any, steps: int, rows: int = 6, longest: int = 120, seed: int = 0) -> dict[str, Any]:
    """``steps`` decode steps of one cache in which ``rows`` short sequences at a time come and go, some with equal
    beginnings. Ten times all are given up, and no page may be in use. ``RuntimeError`` if one is, if more pages were
    used than the rows can have, or if the process has grown by more than `GROWTH` since the first time.
    """
    generator = random.Random(seed)
    words = range(FIRST_WORD, model.config.vocab_size)
    beginnings = [[BOS, *generator.choices(words, k=80)] for _ in range(3)]
    decoder = Decoder(model)
    cache = decoder.new_cache()
    left: list[int] = []  # steps, by row

    def give_up(row: int) -> None:
        moved = cache.remove(row)
        left[row] = left[moved]
        left.pop()

    sizes = []
    sequences = 0
    for step in range(1, steps + 1):
        count = rows - len(left)
        prompts = [generator.choice(beginnings)[: generator.randrange(82)] for _ in range(count)]
        if prompts:
            decoder.prefill(cache, prompts)
            left += [generator.randint(1, longest - len(prompt)) for prompt in prompts]
            sequences += count
        tokens = torch.tensor(generator.choices(words, k=len(left)))
        decoder.step(cache, tokens)
        left[:] = [n - 1 for n in left]
        ends = step % max(1, steps // 10) == 0
        for row in reversed(range(len(left))):
            if ends or left[row] == 0:
                give_up(row)
        if ends:
            used = statistics_of(cache).used
            if used:
                raise RuntimeError(f"{used} pages are in use after step {step}, when all rows were given up")
            sizes.append(resident())
    pool = statistics_of(cache)
    most = rows * -(-longest // (pool.page_bytes // bytes_per_id(model)))
    if pool.peak > most:
        raise RuntimeError(f"{pool.peak} pages were used at once; {rows} rows of {longest} ids have {most}")
    if sizes[-1] - sizes[0] > GROWTH:
        raise RuntimeError(f"the process grew from {sizes[0]} to {sizes[-1]} bytes in {steps} steps")
    return {
        "steps": steps,
        "sequences": sequences,
        "rows": rows,
        "pages used at the end": pool.used,
        "pages at peak": pool.peak,
        "pages held": pool.capacity,
        "resident bytes": sizes,
        "growth bytes": sizes[-1] - sizes[0],
    }


def table(found: dict[str, Any]) -> str:
    """The points as text in megabytes, and the sizes of the caches at the end."""
    columns = ("used", "held", "needed", "unshared", "padded")
    lines = [f"{'new ids':>7} {'rows':>4} {'longest':>7}" + "".join(f" {column + ' MB':>11}" for column in columns)]
    for point in found["points"]:
        sizes = "".join(f" {point[f'bytes {column}'] / 1e6:>11.1f}" for column in columns)
        lines.append(f"{point['new ids']:>7} {point['rows']:>4} {point['longest']:>7}{sizes}")
    sizes = ", ".join(f"{name} {found[f'bytes {name}'] / 1e6:.1f} MB" for name in ("at peak", "padded", "static"))
    ratios = " and ".join(f"{found[f'{name} over ours']:.2f} times ours" for name in ("padded", "static"))
    return "\n".join([*lines, f"whole pictures: {sizes} ({ratios})"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="37M", metavar="SIZE")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    if args.steps < 100:
        parser.error(f"--steps {args.steps}: give at least 100")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.touch()
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    batch = {"model": args.model, **guided_batch(random_model(args.model), args.sequences)}
    print(table(batch), flush=True)
    endless = steady(random_model("tiny"), args.steps)
    print(
        f"{endless['steps']} steps, {endless['sequences']} sequences: {endless['pages at peak']} pages at peak, "
        f"{endless['pages used at the end']} at the end, {endless['growth bytes'] / 1e6:.2f} MB more resident"
    )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine, "guided batch": batch, "steady": endless}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
