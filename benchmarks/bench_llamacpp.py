"""Decode steps of a Llama on the CPU: fastdecode against llama.cpp, with weights of 16, 8 and 4 bits.

    python benchmarks/bench_llamacpp.py [--model 289M] [--layers N] [--weights bf16 int8 int4] [--sequences 1 2 4 8 16]
                [--llama FOLDER ...] [--turns 5] [--steps 48] [--json FILE] [--plot FILE]

The model is a Llama of a size of benchmarks/models.py with random weights. llama.cpp gets the same weights as a GGUF,
all matrices BF16, Q8_0 or Q4_0, and fastdecode has them as bfloat16, int8 and int4 (`fastdecode.quantise`). A step
feeds one token to each of so many sequences of ``--context`` tokens and computes all their logits; nothing is
sampled.

llama.cpp runs in processes of its own (benchmarks/llama_steps.cpp) that sleep while they are not told to make steps.
Its builds with and without OpenMP, in the folders ``--llama`` or built by tools/build_llama.sh, with the weights mapped
from the file and not, are all measured; the fastest at a number of sequences is the rival there. All sides take turns:
in a turn a side makes one step that is not counted and ``--steps`` that are. Reported are medians of the turns'
medians, and ratios of one run. The first steps after another side's turn are slower on every side, and a picture takes
a thousand in a row: with few ``--steps`` fastdecode's int4 loses most.

Before anything is timed the logits of both are compared. ``error`` is the root mean square difference from fastdecode's
with bfloat16, relative to their spread.

``floor`` is the time to read llama.cpp's weights once (all but the embedding), at the read bandwidth that is measured
in turns with the steps (benchmarks/read_bandwidth.py).

A second table has products alone (``linear``), of the shapes of this model, of matrices that are in no cache: ours, and
torch's with bfloat16 and with its own int4 (`_weight_int4pack_mm_for_cpu`, groups of 32).

Where ctranslate2 is installed (pip install ctranslate2), its int8 steps take turns with the others' too.

Needs the package gguf, g++, and, to build llama.cpp, cmake.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.ctranslate2_rival import CTranslate2Steps, convert
from benchmarks.llama_models import SIZES, random_llama, write_gguf
from benchmarks.llama_plot import plot
from benchmarks.llama_products import measure_products, product_table
from benchmarks.llama_rival import LlamaSteps, build_all
from benchmarks.read_bandwidth import METHOD, Memory
from fastdecode.bench.machine import describe
from fastdecode.bench.plot import check_file
from fastdecode.bench.turns import make_files, show
from fastdecode.decoder import decoder_for
from fastdecode.models.move_weights import move_weights

RIVALS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
LARGEST_ERROR = {"bf16": 0.05, "int8": 0.15, "int4": 0.8}
"""Of logits, relative to their spread. Rounding random weights to 4 bits changes a product by a tenth of its spread,
and the logits after 12 layers by 0.43; unrelated logits differ by the root of 2.
"""
PAUSE, LONG_PAUSE = 0.02, 0.3
"""Seconds after a side's turn, and after ctranslate2's: threads that wait busily have gone to sleep."""


class Side(Protocol):
    """What makes steps."""

    name: str

    def start(self, prompts: Sequence[Sequence[int]]) -> None: ...

    def logits(self, tokens: Sequence[int], folder: Path) -> Tensor: ...

    def steps(self, tokens: Sequence[Sequence[int]]) -> list[float]: ...


class OurSteps:
    """fastdecode's steps of a model, as `LlamaSteps` has those of llama.cpp."""

    def __init__(self, model: Any) -> None:
        self.name, self.decoder = "fastdecode", decoder_for(model)
        self.prompts: list[list[int]] = []
        self.cache = self.decoder.new_cache(retain=None)

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.cache = self.decoder.new_cache(retain=None)
        self.prompts = [list(prompt) for prompt in prompts]
        self._begin()
        self._end()

    def _begin(self) -> None:
        """The prompts as rows: computed the first time, and found in the retained pages afterwards."""
        self.decoder.prefill(self.cache, self.prompts)

    def _end(self) -> None:
        for row in reversed(range(self.cache.rows)):
            self.cache.remove(row)

    def _step(self, tokens: Tensor) -> Tensor:
        return self.decoder.logits(self.decoder.step(self.cache, tokens))

    def logits(self, tokens: Sequence[int], folder: Path) -> Tensor:
        self._begin()
        found = self._step(torch.tensor(tokens)).float().clone()
        self._end()
        return found

    def steps(self, tokens: Sequence[Sequence[int]]) -> list[float]:
        self._begin()
        times = []
        for step in tokens:
            fed = torch.tensor(step)
            start = time.perf_counter()
            self._step(fed)
            times.append(time.perf_counter() - start)
        self._end()
        return times


def our_models(size: str, layers: int | None, weights: Sequence[str]) -> dict[str, Any]:
    """Models of the same random weights, by the names of `RIVALS`; in pages of 2 MB, where `fastdecode.load` and
    `fastdecode.quantise` put weights.
    """
    model = random_llama(size, layers).to(torch.bfloat16)
    move_weights(model.parameters())
    found = {"bf16": model}
    for kind in weights:
        if kind != "bf16":
            found[kind] = fastdecode.quantise(copy.deepcopy(model), kind)
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())


def random_tokens(vocabulary: int, *shape: int, seed: int = 0) -> list[Any]:
    found: list[Any] = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed)).tolist()
    return found


class Contest:
    """All sides, by their weights; ours first. Use it in a ``with`` block. Raises as `write_gguf` and `LlamaSteps`."""

    def __init__(
        self, models: dict[str, Any], weights: Sequence[str], builds: Sequence[Path], context: int, threads: int
    ) -> None:
        self.context, self.vocabulary = context, models["bf16"].config.vocab_size
        self.reference = OurSteps(models["bf16"])
        self.bytes: dict[str, int] = {}
        self.sides: dict[str, list[Side]] = {}
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory()))
            for kind in weights:
                file = self.folder / f"{kind}.gguf"
                self.bytes[kind] = write_gguf(models["bf16"], RIVALS[kind], file)
                ours = self.reference if kind == "bf16" else OurSteps(models[kind])
                rivals = [
                    stack.enter_context(LlamaSteps(build, file, threads, mmap))
                    for build in builds
                    for mmap in (True, False)
                ]
                self.sides[kind] = [ours, *rivals]
                if kind == "int8" and find_spec("ctranslate2") is not None:
                    convert(models["bf16"], self.folder / "ctranslate2")
                    self.sides[kind].append(CTranslate2Steps(self.folder / "ctranslate2", threads))
            self.stack = stack.pop_all()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def start(self, sequences: int) -> None:
        prompts = random_tokens(self.vocabulary, sequences, self.context)
        every: list[Side] = [self.reference, *(side for sides in self.sides.values() for side in sides)]
        for side in {id(side): side for side in every}.values():
            side.start(prompts)

    def check(self, sequences: int = 2) -> dict[str, dict[str, float]]:
        """The errors of all sides' logits, by weights and name. ``RuntimeError`` if one is too large."""
        self.start(sequences)
        tokens = random_tokens(self.vocabulary, sequences, seed=1)
        expected = self.reference.logits(tokens, self.folder)
        errors: dict[str, dict[str, float]] = {}
        for kind, sides in self.sides.items():
            errors[kind] = {side.name: relative_error(side.logits(tokens, self.folder), expected) for side in sides}
            for name, error in errors[kind].items():
                if not error <= LARGEST_ERROR[kind]:
                    raise RuntimeError(
                        f"{name} with {kind} weights has other logits than fastdecode with bfloat16: the difference "
                        f"is {error:.3f} of their spread, more than {LARGEST_ERROR[kind]}; nothing was timed"
                    )
        return errors

    def measure(self, sequences: int, turns: int, steps: int, memory: Memory) -> list[dict[str, Any]]:
        """A row for each kind of weights."""
        self.start(sequences)
        times: dict[str, dict[str, list[float]]] = {
            kind: {side.name: [] for side in sides} for kind, sides in self.sides.items()
        }
        speeds = []
        for turn in range(turns):
            tokens = random_tokens(self.vocabulary, steps + 1, sequences, seed=2 + turn)
            speeds.append(memory.read())
            for kind, sides in self.sides.items():
                for side in sides:
                    times[kind][side.name].append(statistics.median(side.steps(tokens)[1:]))
                    time.sleep(LONG_PAUSE if isinstance(side, CTranslate2Steps) else PAUSE)
        bandwidth = statistics.median(speeds)
        return [self._row(kind, sequences, found, bandwidth) for kind, found in times.items()]

    def _row(self, kind: str, sequences: int, found: dict[str, list[float]], bandwidth: float) -> dict[str, Any]:
        medians = {name: statistics.median(turns) for name, turns in found.items()}
        rival = min((name for name in medians if name.startswith("llama.cpp")), key=medians.__getitem__)
        floor = self.bytes[kind] / bandwidth
        return {
            "weights": kind,
            "rival weights": RIVALS[kind],
            "sequences": sequences,
            "fastdecode ms per step": 1000 * medians["fastdecode"],
            "rival ms per step": 1000 * medians[rival],
            "ratio": medians[rival] / medians["fastdecode"],
            "ratios of the repeats": sorted(
                round(b / a, 3) for a, b in zip(found["fastdecode"], found[rival], strict=True)
            ),
            "rival": rival,
            "all rivals ms per step": {name: 1000 * m for name, m in medians.items() if name != "fastdecode"},
            "rival weight bytes": self.bytes[kind],
            "read bandwidth GB/s": bandwidth / 1e9,
            "floor ms": 1000 * floor,
            "bandwidth_fraction": floor / medians["fastdecode"],
            "rival bandwidth_fraction": floor / medians[rival],
        }


def table(rows: Sequence[dict[str, Any]], head: bool = True) -> str:
    lines = [
        f"{'weights':>12} {'seqs':>4} {'ms/step':>8} {'llama.cpp':>9} {'ratio':>6} {'floor ms':>8} "
        f"{'ours':>5} {'its':>5}  rival"
    ]
    for row in rows:
        kinds = f"{row['weights']}/{row['rival weights']}"
        others = row["all rivals ms per step"].items()
        others = "".join(f"; {name} {ms:.2f} ms" for name, ms in others if not name.startswith("llama.cpp"))
        lines.append(
            f"{kinds:>12} {row['sequences']:>4} {row['fastdecode ms per step']:>8.2f} "
            f"{row['rival ms per step']:>9.2f} {row['ratio']:>6.2f} {row['floor ms']:>8.2f} "
            f"{row['bandwidth_fraction']:>5.0%} {row['rival bandwidth_fraction']:>5.0%}  {row['rival']}{others}"
        )
    return "\n".join(lines if head else lines[1:])


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="289M")
    parser.add_argument("--layers", type=int, help="instead of the model's own number")
    default = list(RIVALS)
    parser.add_argument("--weights", nargs="+", choices=RIVALS, default=default, help=f"default: {' '.join(default)}")
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--llama", nargs="+", type=Path, metavar="FOLDER", help="default: builds of our own")
    parser.add_argument("--context", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48, help="of a turn, fewer than --context")
    parser.add_argument(
        "--product-rows", nargs="*", type=int, default=[1, 2, 16], help="of products; none: no products"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--plot", type=Path, help="also draw them there")
    options = parser.parse_args(words)
    if min(options.turns, options.steps, options.layers or 1, *options.sequences, *options.product_rows) < 1:
        parser.error("--turns, --steps, --layers, --sequences and --product-rows: must be 1 or more")
    if not 1 <= options.steps < options.context:
        parser.error(f"--steps {options.steps}: must be fewer than --context {options.context}")
    if find_spec("gguf") is None:
        parser.error("the models of llama.cpp are written with the package gguf: pip install gguf")
    if options.plot:
        try:
            check_file(options.plot)
        except ValueError as error:
            parser.error(str(error))
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = arguments(words)
    make_files((options.json, options.plot))
    threads, machine = torch.get_num_threads(), describe()
    show(machine)
    builds = options.llama or build_all()
    memory = Memory(threads=threads)
    result: dict[str, Any] = {"machine": machine, "floor": METHOD, "model": options.model, "context": options.context}
    result["load average before"] = os.getloadavg()[0]
    models = our_models(options.model, options.layers, options.weights)
    result["layers"] = models["bf16"].config.num_hidden_layers
    with Contest(models, options.weights, builds, options.context, threads) as contest:
        result["errors"] = contest.check()
        result["steps"] = []
        for sequences in options.sequences:
            rows = contest.measure(sequences, options.turns, options.steps, memory)
            print(table(rows, head=not result["steps"]), flush=True)
            result["steps"] += rows
    if options.product_rows:
        result["products"] = measure_products(SIZES[options.model], options.product_rows)
        print(product_table(result["products"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
