"""`fastdecode run --ray` with two engines beside one, each with one thread, on this machine.

    python benchmarks/bench_ray.py [--rows 240] [--batch 8] [--turns 3] [--json FILE]

Both make the same rows and take turns. Timed is from the first batch of every engine to the last batch, so that loading
does not count, and also the whole, with loading. The figures are ratios to one engine; with two cores, 2 is the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastdecode.bench.machine import describe
from fastdecode.jobs import Job, Row
from fastdecode.jobs.rows import seed_of
from fastdecode.ray import RayMaker

OPTIONS = {"multimodal_generation_mode": "image-only", "guidance": 2.0, "image": {"temperature": 0.7, "top_p": 0.9}}


def rates(maker: RayMaker, rows: list[Row], actors: int) -> tuple[float, float]:
    """Items per second: after the first batch of every engine, and of the whole."""
    begin = time.perf_counter()
    came: list[tuple[float, int]] = []
    for items in maker.items(rows):
        if any(item.failed for item in items):
            raise SystemExit("an item failed")
        came.append((time.perf_counter(), len(items)))
    if sum(count for _, count in came) != len(rows):
        raise SystemExit("items are missing")
    start, end = came[actors - 1][0], came[-1][0]
    return sum(count for _, count in came[actors:]) / (end - start), len(rows) / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=240, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows that an engine gets at once (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows = [Row(f"r{n}", f"Draw: In column {n % 4 + 1} a red circle.", seed_of(f"r{n}")) for n in range(args.rows)]
    job = Job(options=OPTIONS)
    makers = {actors: RayMaker(job, actors=actors, cpus=1, batch=args.batch) for actors in (1, 2)}
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for turn in range(args.turns):
        for actors in list(makers)[:: -1 if turn % 2 else 1]:
            found[actors].append(rates(makers[actors], rows, actors))
    figures: dict[str, object] = {"rows": args.rows, "batch": args.batch, "turns": args.turns}
    for place, words in enumerate(("after loading", "with loading")):
        one, two = ([pair[place] for pair in found[actors]] for actors in (1, 2))
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        figures[words] = {"items/s of one": one, "items/s of two": two, "ratios": ratios}
        print(
            f"{words:>14}: two engines {statistics.median(ratios):.2f} times one "
            f"({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}); one makes {statistics.median(one):.1f} items/s"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
