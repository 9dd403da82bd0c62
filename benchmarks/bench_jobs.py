"""`fastdecode run` against the bare engine: the same prompts, what the files and their bookkeeping cost.

    python benchmarks/bench_jobs.py [--rows 120] [--turns 5] [--json FILE]

The bare engine decodes all prompts and makes documents of them, in memory. A run also writes PNGs and their index, as
folders or as tars for WebDataset. All take turns in one process, in an order that changes, and share the loaded model;
every run gets a folder of its own, since removing the last one would keep the disk busy while the next is written.
Where neighbours make the machine uneven, the ratios of turns scatter; so the share of a run's own time that is not the
engine's is measured too: the time in which it waits for no item.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastdecode.bench.machine import describe
from fastdecode.jobs import run
from fastdecode.jobs.items import Item
from fastdecode.jobs.rows import Row, seed_of
from fastdecode.jobs.worker import Job, Worker

MODES = {"image-only": {}, "interleaved-text-image": {"max_new_tokens": 480}}
PROMPTS = {
    "image-only": "Draw: In column {column} a red circle.",
    "interleaved-text-image": "Build a tree in column {column}.",
}


class Watched:
    """A maker that measures how long it is waited for."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.seconds = worker, 0.0

    def check(self, rows: Sequence[Row]) -> None:
        """The options are right."""

    def items(self, rows: Sequence[Row]) -> Generator[Sequence[Item], None, None]:
        source = self.worker.items(rows)
        while True:
            begin = time.perf_counter()
            items = next(source, None)
            self.seconds += time.perf_counter() - begin
            if items is None:
                return
            yield items


def measure(mode: str, count: int, turns: int, folder: Path) -> dict[str, object]:
    """Seconds of ``count`` rows: medians of the bare engine and of both forms of output."""
    image = {"temperature": 0.7, "top_p": 0.9}
    options = {"multimodal_generation_mode": mode, "guidance": 2.0, "image": image, **MODES[mode]}
    job = Job(options=options)
    rows = [Row(f"r{n}", PROMPTS[mode].format(column=n % 4 + 1), seed_of(f"r{n}")) for n in range(count)]
    worker = Worker(job)

    def bare(number: int) -> float:
        start = time.perf_counter()
        handles = [worker.submit(row) for row in rows]
        worker.engine.run()
        for handle in handles:
            handle.document()
        return time.perf_counter() - start

    others: dict[str, list[float]] = {"folders": [], "tars": []}

    def written(name: str, per_tar: int | None) -> Callable[[int], float]:
        def whole(number: int) -> float:
            watched = Watched(worker)
            start = time.perf_counter()
            target = folder / f"{mode}-{per_tar}-{number}"
            done = run(job, rows, target, per_tar=per_tar, maker=lambda: watched, progress=False)
            if (done.made, done.failed) != (count, 0):
                raise SystemExit(f"a run made {done.made} items, of which {done.failed} failed; wanted {count}")
            seconds = time.perf_counter() - start
            others[name].append(1 - watched.seconds / seconds)
            return seconds

        return whole

    ways = {
        "bare engine": bare,
        "folders": written("folders", None),
        "tars": written("tars", max(1, count // 2)),
    }
    for way in ways.values():  # the first of each warms up
        way(-1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            times[name].append(ways[name](turn))
    medians = {name: statistics.median(values) for name, values in times.items()}
    row: dict[str, object] = {
        "mode": mode,
        "rows": count,
        "turns": turns,
        "seconds of the bare engine": medians["bare engine"],
    }
    for name in ("folders", "tars"):
        ratios = [b / o for b, o in zip(times["bare engine"], times[name], strict=True)]
        row[f"throughput of {name}"] = statistics.median(ratios)
        row[f"{name}, of the turns"] = [round(ratio, 3) for ratio in sorted(ratios)]
        row[f"{name}, share of time beside the engine"] = statistics.median(others[name][1:])
        print(
            f"{mode:>24}, {name:>7}: {row[f'throughput of {name}']:.3f} of the bare engine's throughput; "
            f"{row[f'{name}, share of time beside the engine']:.1%} of its time is not the engine's",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120, help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    with tempfile.TemporaryDirectory(prefix="fastdecode-jobs-") as folder:
        rows = [measure(mode, args.rows, args.turns, Path(folder)) for mode in MODES]
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
