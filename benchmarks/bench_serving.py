"""Many requests: `fastdecode.Engine` against one request at a time, ours and transformers'; and under an open load.

    python benchmarks/bench_serving.py [--repeats 3] [--seconds 15] [--quick] [--json FILE] [--plot FILE]

Three parts, on the embedded model:

  documents   16 guided illustrated instructions, all at once through an engine; one at a time by `fastdecode.generate`;
              one at a time by transformers' layers (benchmarks/serving_rivals.py, with the cache that is faster here).
              Before anything is timed all three must write the same greedy documents; timed runs sample their pictures
              and must be whole. In turns, medians; tokens per second, since sampled documents differ a little in length
  load        requests that arrive by a Poisson process: instructions, pictures and text at 70% of what the engine can
              do, for the engine and for `fastdecode.generate` calls queued one after another; text alone also for
              transformers' continuous batching, at 70% of what the slower of the two batchers can do. Same arrivals
              for all, in turns. Before it is timed the engine must give everybody's tokens
  processors  time per token with min_new_tokens, suppress_tokens and bad_words_ids (of one token each; longer ones run
              in PyTorch, which is checked not to happen here), and without, in turns

Where this flatters us: the model is so small that what transformers does around its kernels weighs more than in a large
one. 16 documents at once are kind to an engine that shares steps, and theirs has been used before, as in a server
(its memory, not its prompts, which it forgets before every run); one request alone is what bench_generate.py times. At
70% of the engine's capacity a queue of single calls is beyond its own capacity, so its waiting times grow with the
length of the run: they say that it is overloaded, not by how much. A p99 of some dozens of requests is the worst one.
Continuous batching is transformers' for GPUs; on a CPU it must be told the size of its cache, attends with SDPA and a
mask, and works for a Chameleon's text only (it has neither guidance that begins within a sequence, nor image tokens).

Where it does not: the engine's tokens are stamped after every step, or row of a picture, by Python code that runs
between its steps; pictures are not painted for anybody.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks import serving_load
from benchmarks.models import random_model, text_prompts
from benchmarks.serving_load import Batching, Demand, Served, poisson, summary
from benchmarks.serving_rivals import DocumentWriter
from fastdecode import Guidance
from fastdecode.bench.machine import describe
from fastdecode.models.families import vocabulary_of
from fastdecode.vocabulary import Vocabulary
from tools.blocks import world

GUIDANCE = Guidance.instruct(text=1.5, image=1.2)
SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
LOAD = 0.7
MODE = "interleaved-text-image"


@dataclass(frozen=True)
class Setting:
    """A model and its prompts: ``documents`` and ``pictures`` ask for pictures, ``texts`` for text."""

    model: Any
    ends: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]
    pictures: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    new: int
    new_text: int = 48

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.model)


def blocks_setting(count: int = 16, new: int = 480) -> Setting:
    model, processor = fastdecode.load("blocks")
    rng = random.Random(0)

    def ids(sentence: str) -> tuple[int, ...]:
        return tuple(processor(text=sentence, return_tensors="pt").input_ids[0].tolist())

    goals = [ids(world.random_goal(rng).sentence) for _ in range(count)]
    scenes = [ids(world.drawing_prompt(world.random_scene(rng))) for _ in range(count)]
    eos = model.generation_config.eos_token_id
    return Setting(model, (eos,), tuple(goals), tuple(scenes), tuple(goals), new)


def document_options(greedy: bool, seed: int, new: int) -> dict[str, Any]:
    image = {"do_sample": False} if greedy else SAMPLED
    return {
        "multimodal_generation_mode": MODE,
        "guidance": GUIDANCE,
        "text": {"do_sample": False},
        "image": image,
        "max_new_tokens": new,
        "seed": seed,
    }


# --- documents --------------------------------------------------------------------------------------------------


def at_once(setting: Setting, greedy: bool, seed: int, engine: fastdecode.Engine) -> list[list[int]]:
    """New tokens of all documents, through ``engine``, which knows no prompt from before."""
    engine.forget_prompts()
    handles = [
        engine.submit(list(prompt), **document_options(greedy, seed + i, setting.new))
        for i, prompt in enumerate(setting.documents)
    ]
    engine.run()
    return [handle.result()[0, len(p) :].tolist() for handle, p in zip(handles, setting.documents, strict=True)]


def in_turn(setting: Setting, greedy: bool, seed: int, deterministic: bool = False) -> list[list[int]]:
    found = []
    for i, prompt in enumerate(setting.documents):
        demand = Demand("document", prompt, document_options(greedy, seed + i, setting.new))
        sequences = fastdecode.generate(setting.model, **demand.inputs(), **demand.options, deterministic=deterministic)
        found.append(sequences[0, len(prompt) :].tolist())
    return found


def transformers_in_turn(setting: Setting, greedy: bool, seed: int, static: bool = False) -> list[list[int]]:
    sampled = {} if greedy else SAMPLED
    writer = DocumentWriter(setting.model, GUIDANCE, setting.ends, static=static, **sampled)
    torch.manual_seed(seed)
    return [writer.write(prompt, setting.new) for prompt in setting.documents]


def check_whole(documents: Sequence[Sequence[int]], v: Vocabulary, who: str) -> int:
    """The number of pictures. ``RuntimeError`` if there are none, or one is incomplete."""
    count = 0
    for document in documents:
        for i, token in enumerate(document):
            if token == v.begin_image:
                inside = document[i + 1 : i + 1 + v.image_length]
                end = document[i + 1 + v.image_length : i + 2 + v.image_length]
                if list(end) != [v.end_image] or not all(t in v.image_ids for t in inside):
                    raise RuntimeError(f"{who} drew no whole picture but {[*inside, *end]}; nothing was timed")
                count += 1
    if not count:
        raise RuntimeError(f"{who} drew no picture at all; nothing was timed")
    return count


def check_same(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]], who: str) -> None:
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if list(a) != list(b):
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise RuntimeError(
                f"{who} differs in request {number} from fastdecode.generate, from new token {at} on: "
                f"{list(a[at : at + 4])}, not {list(b[at : at + 4])}; nothing was timed"
            )


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def documents(setting: Setting, repeats: int) -> dict[str, Any]:
    """Tokens per second of the three methods, medians of turns, and ratios of turns."""
    v = setting.vocabulary
    expected = in_turn(setting, True, 0, deterministic=True)
    check_whole(expected, v, "fastdecode.generate")
    exact = fastdecode.Engine(setting.model, deterministic=True)
    check_same(at_once(setting, True, 0, exact), expected, "the engine")
    exact.close()
    engine = fastdecode.Engine(setting.model)
    at_once(setting, False, 0, engine)  # as in a server: its memory has been used before
    if setting.model.dtype == torch.float32:
        few = Setting(setting.model, setting.ends, setting.documents[:4], (), (), setting.new)
        check_same(transformers_in_turn(few, True, 0), expected[:4], "transformers")
    one = Setting(setting.model, setting.ends, setting.documents[:1], (), (), setting.new)
    spent = {
        static: min(seconds(lambda static=static: transformers_in_turn(one, True, 0, static))[0] for _ in range(2))
        for static in (False, True)
    }
    static = spent[True] < spent[False]
    sides: dict[str, Callable[[int], list[list[int]]]] = {
        "engine": lambda seed: at_once(setting, False, seed, engine),
        "fastdecode one at a time": lambda seed: in_turn(setting, False, seed),
        "transformers one at a time": lambda seed: transformers_in_turn(setting, False, seed, static),
    }
    speeds: dict[str, list[float]] = {who: [] for who in sides}
    times: dict[str, list[float]] = {who: [] for who in sides}
    pictures = 0
    for repeat in range(repeats):
        for who, run in sides.items():
            spent_now, found = seconds(lambda run=run, repeat=repeat: run(1000 * repeat))
            drawn = check_whole(found, v, who)
            pictures = drawn if who == "engine" else pictures
            speeds[who].append(sum(map(len, found)) / spent_now)
            times[who].append(spent_now)
    row: dict[str, Any] = {
        "documents": len(setting.documents),
        "pictures": pictures,
        "streams of a picture": len(GUIDANCE.streams),
        "transformers' cache": "StaticCache" if static else "DynamicCache",
    }
    for who in sides:
        row[f"{who} tokens/s"] = statistics.median(speeds[who])
        row[f"{who} s"] = statistics.median(times[who])
    for who in list(sides)[1:]:
        ratios = sorted(round(a / b, 2) for a, b in zip(speeds["engine"], speeds[who], strict=True))
        row[f"engine over {who}"] = statistics.median(ratios)
        row[f"engine over {who}, turns"] = ratios
    return row


# --- load -------------------------------------------------------------------------------------------------------


def mixed_demands(setting: Setting) -> list[Demand]:
    """Requests: of every four, two instructions, a picture and a text."""
    found = []
    prompts = zip(setting.documents, setting.pictures, setting.texts, strict=True)
    for i, (document, picture, text) in enumerate(prompts):
        drawing = document_options(False, i, setting.new)
        room = setting.vocabulary.image_length + 2
        one = {**drawing, "multimodal_generation_mode": "image-only", "max_new_tokens": room}
        kinds = [Demand("instruction", document, drawing), Demand("picture", picture, one), text_demand(setting, text)]
        found.append(kinds[(0, 1, 0, 2)[i % 4]])
    return found


def text_demand(setting: Setting, prompt: tuple[int, ...]) -> Demand:
    return Demand("text", prompt, {"max_new_tokens": setting.new_text, "do_sample": False})


Serve = Callable[[Any, Sequence[tuple[float, Demand]]], list[Served]]


def capacity(model: Any, serve: Serve, demands: Sequence[Demand]) -> float:
    """Requests per second when all are submitted at once: the better of two runs."""
    runs = [seconds(lambda: serve(model, [(0.0, demand) for demand in demands]))[0] for _ in range(2)]
    return len(demands) / min(runs)


def check_served(served: Sequence[Served], expected: Sequence[Sequence[int]], who: str) -> None:
    check_same([s.tokens for s in served], expected, who)


def rounds(
    setting: Setting, sides: dict[str, Serve], demands: Sequence[Demand], rate: float, duration: float, repeats: int
) -> dict[str, Any]:
    """Run all ``sides`` in turns with the same arrivals, and join what the rounds served."""
    gathered: dict[str, list[Served]] = {who: [] for who in sides}
    speeds: dict[str, list[float]] = {who: [] for who in sides}
    for repeat in range(repeats):
        arrivals = poisson(rate, duration, demands, seed=repeat)
        for who, serve in sides.items():
            served = serve(setting.model, arrivals)
            gathered[who] += served
            speeds[who].append(summary(served, setting.vocabulary)["tokens/s"])
    result: dict[str, Any] = {"requests/s": rate, "seconds": duration, "rounds": repeats}
    for who, served in gathered.items():
        result[who] = {**summary(served, setting.vocabulary), "tokens/s": statistics.median(speeds[who])}
    return result


def load(setting: Setting, duration: float, repeats: int) -> dict[str, Any]:
    model = setting.model
    sides: dict[str, Serve] = {"engine": serving_load.engine, "generate, queued": serving_load.queue}
    mixed = mixed_demands(setting)
    texts = [text_demand(setting, prompt) for prompt in setting.texts]
    drawn = [d for d in mixed if d.kind != "text"][:4]
    drawing = {"image": {"do_sample": False}}
    greedy = [
        Demand(d.kind, d.prompt, d.options | (drawing if "multimodal_generation_mode" in d.options else {}))
        for d in drawn
    ]
    arrivals = [(0.0, demand) for demand in (*texts, *greedy)]
    expected = [s.tokens for s in serving_load.queue(model, arrivals)]
    check_served(serving_load.engine(model, arrivals, deterministic=True), expected, "the engine")
    able = capacity(model, serving_load.engine, mixed)
    found = rounds(setting, sides, mixed, LOAD * able, duration, repeats)
    result = {"mixed": {"capacity of the engine": able, **found}}
    longest = max(len(d.prompt) for d in texts) + setting.new_text
    with Batching(model, setting.ends, longest) as batching:
        arrivals = [(0.0, demand) for demand in texts]
        theirs = batching(model, arrivals)
        check_served(theirs, [s.tokens for s in serving_load.queue(model, arrivals)], "continuous batching")
        able_batching = capacity(model, batching, texts)
        able_engine = capacity(model, serving_load.engine, texts)
        rate = LOAD * min(able_batching, able_engine)
        found = rounds(setting, {**sides, "continuous batching": batching}, texts, rate, duration / 2, repeats)
    able_both = {"capacity of the engine": able_engine, "capacity of continuous batching": able_batching}
    result["text"] = {**able_both, **found}
    return result


# --- processors -------------------------------------------------------------------------------------------------


def processors(model: Any, prompt: Sequence[int], options: dict[str, Any], tokens: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per token with transformers' processors and without, medians of ``repeats`` turns. ``RuntimeError``
    if they were not obeyed, or ran between the steps in PyTorch.
    """
    v = vocabulary_of(model)
    ids = torch.tensor([list(prompt)])
    base = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, **options}
    words = [i for i in range(v.size) if i not in v.image_ids and i > 8 and i not in prompt and i != v.begin_image]
    words = [i for i in words if i not in (v.end_image, v.placeholder)]
    plain = fastdecode.generate(model, **base, seed=0)[0, ids.shape[1] :].tolist()
    suppressed = next(i for i in words if i not in plain)
    more = {
        "min_new_tokens": tokens // 2,
        "suppress_tokens": [suppressed, *words[-3:]],
        "bad_words_ids": [[words[0]], [words[1]]],
    }
    restrained = fastdecode.generate(model, **base, **more, seed=0)[0, ids.shape[1] :].tolist()
    if fastdecode.explain(model, **base, **more).unfused_processors:
        raise RuntimeError("the processors ran in PyTorch between the steps; nothing was timed")
    if set(restrained) & {*more["suppress_tokens"], *words[:2]} or len(restrained) < tokens // 2:
        raise RuntimeError(f"the processors were not obeyed: {restrained}; nothing was timed")
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for extra, found in zip(({}, more), times, strict=True):
            spent, sequences = seconds(
                lambda extra=extra, repeat=repeat: fastdecode.generate(model, **base, **extra, seed=repeat)
            )
            if repeat > 0:  # the first pass makes tables and allocates memory
                found.append(spent / (sequences.shape[1] - ids.shape[1]))
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    return {
        "ms per token without": 1000 * statistics.median(times[0]),
        "ms per token with": 1000 * statistics.median(times[1]),
        "with over without": statistics.median(ratios),
        "turns": [round(r, 3) for r in ratios],
    }


# --- output -----------------------------------------------------------------------------------------------------


def documents_table(row: dict[str, Any]) -> str:
    lines = [
        f"{row['documents']} documents, {row['pictures']} pictures, {row['streams of a picture']} streams in each:"
    ]
    for who in ("engine", "fastdecode one at a time", "transformers one at a time"):
        ratio = row.get(f"engine over {who}")
        beside = "" if ratio is None else f"   engine over it: {ratio:.2f}"
        lines.append(f"{who:>28} {row[f'{who} s']:8.2f} s {row[f'{who} tokens/s']:8.0f} tokens/s{beside}")
    return "\n".join(lines)


TIMES = ("first token", "per token", "per picture", "whole request")


def load_table(name: str, found: dict[str, Any]) -> str:
    able = ", ".join(f"{key} {value:.2f}/s" for key, value in found.items() if key.startswith("capacity"))
    often = f"{found['requests/s']:.2f} requests/s for {found['seconds']:.0f} s, {found['rounds']} rounds"
    head = " ".join(f"{f'{what} p50 p99 ms':>26}" for what in TIMES)
    lines = [f"{name}: {often} ({able})", f"{'':>20} {'requests':>8} {'tokens/s':>8} {head}"]
    for who, row in found.items():
        if isinstance(row, dict):
            values = [(row[f"{what} p50 ms"], row[f"{what} p99 ms"]) for what in TIMES]
            cells = [f"{_shown(middle):>13} {_shown(late):>12}" for middle, late in values]
            lines.append(f"{who:>20} {row['requests']:>8} {row['tokens/s']:>8.0f} {' '.join(cells)}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


COLOURS = {
    "engine": "#1f5fa8",
    "generate, queued": "#7fa6d6",
    "continuous batching": "#b4552d",
    "fastdecode one at a time": "#7fa6d6",
    "transformers one at a time": "#b4552d",
}


def plot(result: dict[str, Any], file: Path) -> None:
    """Bars: tokens per second of documents; p50 and p99 of the times under load. ``ImportError`` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6), gridspec_kw={"width_ratios": [1, 1.5, 1.2]})
    row, sides = result["documents"], ("engine", "fastdecode one at a time", "transformers one at a time")
    speeds = [row[f"{who} tokens/s"] for who in sides]
    bars = axes[0].bar(range(3), speeds, color=[COLOURS[who] for who in sides])
    axes[0].bar_label(bars, [f"{speed:.0f}" for speed in speeds], fontsize=9)
    axes[0].set_xticks(range(3), ["engine,\nall at once", "fastdecode,\none at a time", "transformers,\none at a time"])
    axes[0].set(title=f"{row['documents']} illustrated documents", ylabel="tokens per second")
    for axis, name in zip(axes[1:], ("mixed", "text"), strict=True):
        found = result["load"][name]
        who_there = [who for who, part in found.items() if isinstance(part, dict)]
        whats = [what for what in TIMES if all(found[who][f"{what} p50 ms"] is not None for who in who_there)]
        width = 0.8 / len(who_there)
        for place, who in enumerate(who_there):
            at = [k + (place - (len(who_there) - 1) / 2) * width for k in range(len(whats))]
            late = [found[who][f"{what} p99 ms"] for what in whats]
            middle = [found[who][f"{what} p50 ms"] for what in whats]
            axis.bar(at, late, 0.9 * width, color=COLOURS[who], alpha=0.4)
            bars = axis.bar(at, middle, 0.9 * width, color=COLOURS[who], label=who)
            for x, y in zip(at, late, strict=True):
                axis.annotate(f"{y:.0f}" if y >= 100 else f"{y:.2g}", (x, y), ha="center", va="bottom", fontsize=7)
        axis.set_xticks(range(len(whats)), [what.replace(" ", "\n") for what in whats])
        title = "text, pictures and instructions" if name == "mixed" else "text alone"
        axis.set(title=f"{title}: {found['requests/s']:.2g} requests per second", yscale="log")
        axis.set_ylabel("milliseconds: p50 (full), p99 (pale)")
        axis.set_ylim(top=6 * axis.get_ylim()[1])  # room for the legend
        axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=3, columnspacing=1, handlelength=1)
    machine = result["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['threads']} threads, {machine['date']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="during which requests arrive, of a round")
    parser.add_argument("--quick", action="store_true", help="4 documents, short loads, a tiny text model")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--plot", type=Path, help="also draw them there")
    args = parser.parse_args()
    for file in (args.json, args.plot):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    if args.quick:
        args.repeats, args.seconds = 1, min(args.seconds, 2.0)
    setting = blocks_setting(4, 150) if args.quick else blocks_setting()
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    result: dict[str, Any] = {"machine": machine, "documents": documents(setting, args.repeats)}
    print(documents_table(result["documents"]), flush=True)
    result["load"] = load(setting, args.seconds, min(2, args.repeats))
    for name, found in result["load"].items():
        print(load_table(name, found), flush=True)
    text_name, tokens = ("tiny", 16) if args.quick else ("37M", 64)
    text_model = random_model(text_name)
    text_prompt = text_prompts(text_model, 1, 32)[0].tolist()
    drawing = {"multimodal_generation_mode": MODE, "guidance": GUIDANCE, "text": {"do_sample": False}, "image": SAMPLED}
    result["processors"] = {
        f"text, {text_name}": processors(
            text_model, text_prompt, {"do_sample": True, "top_k": 0}, tokens, 8 * args.repeats
        ),
        "instruction, blocks": processors(setting.model, setting.documents[0], drawing, 150, 8 * args.repeats),
    }
    for name, row in result["processors"].items():
        print(
            f"{name}: {row['ms per token without']:.3f} ms per token without processors, "
            f"{row['ms per token with']:.3f} with; {row['with over without'] - 1:+.1%}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
