"""Time per guided image token: `fastdecode.generate` against transformers' own loop, and against the memory's speed.

    python benchmarks/bench_decode.py [--models 37M 289M 7B-2] [--tokens 64] [--repeats 5] [--quick] [--json FILE]

Models are random (benchmarks/models.py); the rival is Chameleon without its image mask, transformers' ``generate`` and
its guidance processor (benchmarks/rivals.py). Both take turns within one run. A run's time per token is that between
its `SKIPPED`-th new token and its last, by a clock in a stopping criterion, so that prefill, set-up and the first pass
of every stream are not in it; what is left of the run is the set-up. Medians of the repeats; ratios are of one run.

Before anything is timed both must draw image ids only, and the same greedy ones in float32; a timed run whose ids are
not image ids raises as well. In bfloat16 both round differently, and the number of ids until they part is reported.

``floor`` is the time to read, once, the weights that an image token needs: all layers and the head's rows of image ids,
at the read bandwidth just before and after each run: the memory of a shared machine is not always as fast. The
bandwidth is that of the best of many ways to read (benchmarks/read_bandwidth.py, which needs g++). A model that fits
into the caches can be faster than that.

Of the bfloat16 models: weights of 8 and 4 bits (`fastdecode.quantise`) in turns with bfloat16. Of the model of
``--detail``: one, two and three streams, a batch of 8, longer contexts, and in turns within the run a third stream
against two, and eight sequences against one.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, StoppingCriteria, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.models import BEGIN_IMAGE, FIRST_WORD, IMAGE_IDS, edit_prompts, engines, random_model, text_prompts
from benchmarks.read_bandwidth import METHOD, Floors, Memory
from benchmarks.rivals import draw_with_transformers, unmasked
from fastdecode import Guidance
from fastdecode.bench.machine import describe
from fastdecode.decoder import Decoder

SCALE = 3.0
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
GREEDY: dict[str, Any] = {"do_sample": False}
SKIPPED = 4
COMPARED = 16
CONTEXTS = (64, 512, 1024, 2048, 3072)
IMAGE_SPAN = (IMAGE_IDS.start, IMAGE_IDS.stop)

Run = Callable[..., Tensor]


class Clock(StoppingCriteria):
    """Ends a run after ``tokens`` new tokens, and records the time of each. Create it just before the run."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.times = tokens, [time.perf_counter()]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.full((len(input_ids),), len(self.times) > self.tokens, device=input_ids.device)

    @property
    def per_token(self) -> float:
        return (self.times[-1] - self.times[SKIPPED]) / (self.tokens - SKIPPED)

    @property
    def set_up(self) -> float:
        """The time of prefill, set-up and first tokens, minus the time of as many later tokens."""
        return self.times[SKIPPED] - self.times[0] - SKIPPED * self.per_token


def ours(model: Any, prompts: Tensor, guidance: Guidance) -> Run:
    def run(clock: Clock, seed: int, **options: Any) -> Tensor:
        return fastdecode.generate(
            model,
            prompts,
            attention_mask=torch.ones_like(prompts),
            multimodal_generation_mode="image-only",
            guidance=guidance,
            seed=list(range(seed, seed + len(prompts))),
            stopping_criteria=StoppingCriteriaList([clock]),
            **options,
        )

    return run


def theirs(model: Any, prompts: Tensor, scale: float) -> Run:
    rival, inputs = unmasked(model), {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}

    def run(clock: Clock, seed: int, **options: Any) -> Tensor:
        torch.manual_seed(seed)
        return draw_with_transformers(rival, inputs, scale, stopping_criteria=StoppingCriteriaList([clock]), **options)

    return run


def check_drawn(sequences: Tensor, prompts: Tensor, tokens: int, who: str) -> None:
    """``RuntimeError`` unless ``tokens`` new tokens follow: begin of image, and image tokens."""
    new = sequences[:, prompts.shape[1] :]
    inside = new[:, 1:]
    drawn = (inside >= IMAGE_SPAN[0]) & (inside < IMAGE_SPAN[1])
    if new.shape != (len(prompts), tokens) or not (new[:, 0] == BEGIN_IMAGE).all() or not drawn.all():
        raise RuntimeError(f"{who} did not draw {tokens - 1} image ids but {new.tolist()}; nothing was timed")


def timed(run: Run, prompts: Tensor, tokens: int, seed: int, who: str, **options: Any) -> Clock:
    """The clock of one run, whose result was checked."""
    clock = Clock(tokens)
    check_drawn(run(clock, seed, **options), prompts, tokens, who)
    return clock


def greedy_agreement(model: Any, prompts: Tensor, mine: Run, other: Run) -> int:
    """The number of equal greedy image tokens, of the first `COMPARED`, before both sides differ, in the worst
    sequence. ``RuntimeError`` if they differ in float32.
    """
    drawn = []
    for who, run in (("fastdecode", mine), ("transformers", other)):
        sequences = run(Clock(COMPARED + 1), 0, **GREEDY)
        check_drawn(sequences, prompts, COMPARED + 1, who)
        drawn.append(sequences[:, -COMPARED:])
    same = int((drawn[0] == drawn[1]).cumprod(1).sum(1).min())
    if model.dtype == torch.float32 and same < COMPARED:
        raise RuntimeError(
            f"greedy image ids differ from transformers' after {same}: {drawn[0].tolist()} and {drawn[1].tolist()}; "
            "nothing was timed"
        )
    return same


def rows_of(run: Run, prompts: Tensor) -> int:
    """The number of rows that a step of ``run`` has inside a picture."""
    rows: list[int] = []

    class Count(Clock):
        def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
            rows.append(made[0].cache.rows)
            return super().__call__(input_ids, scores, **more)

    with engines() as made:
        check_drawn(run(Count(SKIPPED), 0, **GREEDY), prompts, SKIPPED, "fastdecode")
    return rows[-2]  # after the last token they are removed


def weight_bytes(model: ChameleonForConditionalGeneration) -> int:
    """Bytes of weights that an image token needs: all layers, the last norm, the head's rows of image tokens."""
    body = [p for module in (model.model.layers, model.model.norm) for p in module.parameters()]
    head = stored_bytes(model.lm_head.weight) * len(IMAGE_IDS) // len(model.lm_head.weight)
    return sum(map(stored_bytes, body)) + head


def stored_bytes(weight: Tensor) -> int:
    """Bytes of a parameter; of small weights, those of their values, scales and offsets."""
    small = getattr(weight, "small", None)
    if small is None:
        return weight.nbytes
    return sum(part.nbytes for part in (small.data, small.scale, small.offset) if part is not None)


def measure(
    model: Any, prompts: Tensor, guidance: Guidance, tokens: int, repeats: int, memory: Memory
) -> dict[str, Any]:
    """Medians of ``repeats`` turns of ``tokens`` new tokens for every prompt, and the figures computed from them.

    transformers can do no guidance and two streams; with more streams only fastdecode is measured.
    """
    mine = ours(model, prompts, guidance)
    sides = {"fastdecode": mine}
    agreement = None
    if len(guidance.streams) <= 2:
        sides["transformers"] = theirs(model, prompts, guidance.weights[0])
        agreement = greedy_agreement(model, prompts, mine, sides["transformers"])
    rows = rows_of(mine, prompts)
    clocks: dict[str, list[Clock]] = {who: [] for who in sides}
    floors = Floors(memory, weight_bytes(model))
    for repeat in range(repeats):
        for who, run in sides.items():
            if who == "fastdecode":
                floors.begin()
            clocks[who].append(timed(run, prompts, tokens, 1000 * repeat, who, **SAMPLED))
            if who == "fastdecode":
                floors.end(clocks[who][-1].per_token)
    per_token = {who: statistics.median(c.per_token for c in all_of) for who, all_of in clocks.items()}
    row: dict[str, Any] = {
        "sequences": len(prompts),
        "streams": rows // len(prompts),
        "rows": rows,
        "prompt": prompts.shape[1],
        "tokens": tokens,
        "greedy ids until they part": agreement,
        "one call per step": Decoder(model).uses_cpu_step,
        **floors.row(),
    }
    for who, all_of in clocks.items():
        row[f"{who} ms per step"] = 1000 * per_token[who]
        row[f"{who} tokens/s"] = len(prompts) / per_token[who]
        row[f"{who} set-up ms"] = 1000 * statistics.median(c.set_up for c in all_of)
    if "transformers" in sides:
        pairs = zip(clocks["transformers"], clocks["fastdecode"], strict=True)
        row["ratio"] = per_token["transformers"] / per_token["fastdecode"]
        row["ratios of the repeats"] = sorted(round(b.per_token / a.per_token, 2) for b, a in pairs)
    return row


def stream_rows(model: Any, tokens: int, repeats: int, memory: Memory) -> list[dict[str, Any]]:
    """One, two and three streams after one prompt with a few image tokens. ``RuntimeError`` for other numbers."""
    prompts = edit_prompts(model, 1, words=20, picture=8)
    found = []
    for streams, guidance in enumerate((Guidance.none(), Guidance.two_way(SCALE), Guidance.instruct(SCALE, 1.2)), 1):
        row = measure(model, prompts, guidance, tokens, repeats, memory)
        if row["rows"] != streams:
            raise RuntimeError(f"a guidance of {streams} streams ran {row['rows']} rows")
        found.append(row)
    return found


def in_turns(
    model: Any, one: tuple[Tensor, Guidance], other: tuple[Tensor, Guidance], tokens: int, repeats: int
) -> dict[str, Any]:
    """Two ways to draw, prompts and guidance each, in turns, twice ``repeats`` times: tokens per second of all
    sequences, medians, and the median of the repeats' ratios. The machine's speed may change between repeats, hardly
    between two turns.
    """
    speeds: list[list[float]] = [[], []]
    for repeat in range(2 * repeats + 1):
        for (prompts, guidance), found in zip((one, other), speeds, strict=True):
            clock = timed(ours(model, prompts, guidance), prompts, tokens, 1000 * repeat, "fastdecode", **SAMPLED)
            if repeat > 0:  # the first pass allocates memory
                found.append(len(prompts) / clock.per_token)
    ratios = sorted(round(b / a, 3) for a, b in zip(*speeds, strict=True))
    return {
        "tokens/s of one": statistics.median(speeds[0]),
        "tokens/s of the other": statistics.median(speeds[1]),
        "ratio": statistics.median(ratios),
        "ratios of the repeats": ratios,
    }


def with_small_weights(model: Any) -> dict[str, Any]:
    """``model``, by the name of its dtype, and copies with weights of 8 and 4 bits."""
    found = {str(model.dtype).removeprefix("torch."): model}
    for weights in ("int8", "int4"):
        found[weights] = fastdecode.quantise(copy.deepcopy(model), weights)
    return found


def weights_in_turns(models: dict[str, Any], tokens: int, repeats: int, memory: Memory) -> list[dict[str, Any]]:
    """The same guided picture by every model, in turns, twice ``repeats`` times: medians, the share of the floor of its
    own weights, and of every model the median of the repeats' ratios to the first one's time.
    """
    times: dict[str, list[float]] = {weights: [] for weights in models}
    floors = {weights: Floors(memory, weight_bytes(model)) for weights, model in models.items()}
    for repeat in range(2 * repeats + 1):
        for weights, model in models.items():
            prompts = text_prompts(model, 1, 32)
            run = ours(model, prompts, Guidance.two_way(SCALE))
            floors[weights].begin()
            clock = timed(run, prompts, tokens, 1000 * repeat, f"fastdecode with {weights} weights", **SAMPLED)
            if repeat > 0:  # the first pass allocates memory
                floors[weights].end(clock.per_token)
                times[weights].append(clock.per_token)
    first = next(iter(times.values()))
    rows: list[dict[str, Any]] = []
    for weights, found in times.items():
        ratios = sorted(round(mine / other, 3) for mine, other in zip(found, first, strict=True))
        row = {"weights": weights, "ms per token": 1000 * statistics.median(found)}
        row |= {"time ratio": statistics.median(ratios), "ratios of the repeats": ratios}
        rows.append(row | floors[weights].row())
    return rows


@torch.inference_mode()
def context_growth(
    model: Any, contexts: Sequence[int], repeats: int, memory: Memory, rows: int = 2, steps: int = 4
) -> dict[str, Any]:
    """Time of a step of ``rows`` streams of the same length, at each of ``contexts``, and what a byte of KV adds.

    Turns of ``steps`` steps, each after one that is not counted. The contexts grow meanwhile; bytes are those halfway.
    ``kv_bandwidth_fraction`` is the bandwidth at which the added bytes are read (the slope of a straight line through
    all points) over the measured one; None if the line does not rise, as noise makes it where KV is next to nothing.
    """
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(model)
    config = model.config
    per_id = 2 * config.num_hidden_layers * decoder.kv_heads * decoder.head_dim * model.lm_head.weight.itemsize

    def ids(*shape: int) -> Tensor:
        return torch.randint(FIRST_WORD, config.vocab_size, shape, generator=generator)

    def turn(cache: Any, steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            tokens, start = ids(rows), time.perf_counter()
            decoder.logits(decoder.step(cache, tokens), [IMAGE_SPAN])
            times.append(time.perf_counter() - start)
        return times

    caches: list[Any] = []
    times: list[list[float]] = [[] for _ in contexts]
    for context in contexts:
        cache = decoder.new_cache()
        decoder.prefill(cache, ids(rows, context).tolist())
        turn(cache, 1)
        caches.append(cache)
    speeds = []
    for _ in range(repeats):
        speeds.append(memory.read())
        for cache, found in zip(caches, times, strict=True):
            turn(cache, 1)  # so that the weights were read last, not another cache
            found += turn(cache, steps)
    medians, bandwidth = [statistics.median(found) for found in times], statistics.median(speeds)
    kv_bytes = [rows * (context + (steps + 1) * repeats // 2) * per_id for context in contexts]
    slope = statistics.linear_regression(kv_bytes, medians).slope
    points = [
        {"context": context, "ms per step": 1000 * seconds, "KV bytes": read, "KV floor ms": 1000 * read / bandwidth}
        for context, seconds, read in zip(contexts, medians, kv_bytes, strict=True)
    ]
    return {
        "rows": rows,
        "KV bytes per id": per_id,
        "points": points,
        "kv_bandwidth_fraction": 1 / slope / bandwidth if slope > 0 else None,
    }


COLUMNS = {
    "model": ("model", "6"),
    "seqs": ("sequences", "4"),
    "streams": ("streams", "7"),
    "ms/step": ("fastdecode ms per step", "9.3f"),
    "hf ms": ("transformers ms per step", "9.3f"),
    "ratio": ("ratio", "6.2f"),
    "tok/s": ("fastdecode tokens/s", "7.1f"),
    "hf tok/s": ("transformers tokens/s", "8.1f"),
    "set-up ms": ("fastdecode set-up ms", "9.1f"),
    "hf set-up": ("transformers set-up ms", "9.1f"),
    "GB/s": ("read bandwidth GB/s", "5.1f"),
    "floor ms": ("floor ms", "8.3f"),
    "of bandwidth": ("bandwidth_fraction", "12.0%"),
    f"greedy of {COMPARED}": ("greedy ids until they part", "12"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text; "-" where transformers has no equivalent."""
    widths = {head: int(form.split(".")[0].rstrip("f%")) for head, (_, form) in COLUMNS.items()}
    lines = [" ".join(f"{head:>{width}}" for head, width in widths.items())]
    for row in rows:
        cells = []
        for head, (key, form) in COLUMNS.items():
            value = row.get(key)
            cells.append(f"{'-' if value is None else format(value, form):>{widths[head]}}")
        lines.append(" ".join(cells))
    return "\n".join(lines)


def context_table(found: dict[str, Any]) -> str:
    lines = [f"{'context':>8} {'ms/step':>9} {'KV MB':>8} {'KV floor ms':>12}"]
    for point in found["points"]:
        numbers = f"{point['ms per step']:>9.3f} {point['KV bytes'] / 1e6:>8.1f} {point['KV floor ms']:>12.3f}"
        lines.append(f"{point['context']:>8} {numbers}")
    fraction = found["kv_bandwidth_fraction"]
    read = "faster than can be told" if fraction is None else f"at {fraction:.0%} of the measured bandwidth"
    return "\n".join([*lines, f"what a longer context adds is read {read}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["37M", "289M", "7B-2"], metavar="SIZE")
    parser.add_argument(
        "--detail", default="289M", metavar="SIZE", help="of this one, streams, a batch of 8 and contexts too"
    )
    parser.add_argument("--tokens", type=int, default=64, help=f"new ids of a run, more than {SKIPPED}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="16 tokens, 2 repeats, short contexts")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.repeats = min(args.tokens, 16), min(args.repeats, 2)
    if args.tokens <= SKIPPED:
        parser.error(f"--tokens {args.tokens}: give more than {SKIPPED}, which are not counted")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.touch()
    machine = describe()
    memory = Memory()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    usual = (args.tokens, args.repeats, memory)
    result: dict[str, Any] = {"machine": machine, "floor": METHOD, "guided tokens": [], "small weights": []}

    def show(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        named = [{"model": name, **row} for row in rows]
        print(table(named), flush=True)
        return named

    for name in args.models:
        model = random_model(name)
        guided = Guidance.two_way(SCALE)
        result["guided tokens"] += show(name, [measure(model, text_prompts(model, 1, 32), guided, *usual)])
        if name == args.detail or model.dtype == torch.bfloat16:
            rows = [{"model": name, **row} for row in weights_in_turns(with_small_weights(model), *usual)]
            result["small weights"] += rows
            for row in rows:
                print(
                    f"{name} with {row['weights']} weights, in turns: {row['ms per token']:.3f} ms per token, "
                    f"{row['time ratio']:.2f} of the first, {row['bandwidth_fraction']:.0%} of the read bandwidth"
                )
        if name == args.detail:
            result["streams"] = show(name, stream_rows(model, *usual))
            result["batches"] = show(name, [measure(model, text_prompts(model, 8, 32), guided, *usual)])
            edits = edit_prompts(model, 1, words=20, picture=8)
            two, three = (edits, guided), (edits, Guidance.instruct(SCALE, 1.2))
            found = result["third stream"] = {"model": name, **in_turns(model, two, three, *usual[:2])}
            print(f"a third stream, in turns with two: {1 / found['ratio'] - 1:+.1%} time", flush=True)
            one, eight = ((text_prompts(model, count, 32), guided) for count in (1, 8))
            found = result["eight sequences"] = {"model": name, **in_turns(model, one, eight, *usual[:2])}
            speed, alone = found["tokens/s of the other"], found["tokens/s of one"]
            print(f"eight sequences, in turns with one: {speed:.1f} tokens/s, {alone:.1f}; {found['ratio']:.2f} times")
            longest = min(1024 if args.quick else max(CONTEXTS), model.config.max_position_embeddings * 3 // 4)
            contexts = [context for context in CONTEXTS if context <= longest]
            result["contexts"] = {"model": name, **context_growth(model, contexts, args.repeats, memory)}
            print(context_table(result["contexts"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
