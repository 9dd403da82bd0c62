"""Which guidance scale draws the most pictures that match their text: an evaluation as a job, with its plot.

    python -m tools.blocks.sweep --model blocks --out sweep [--prompts 100] [--ray [ADDRESS]]

Every prompt is drawn at every scale, with the same seed. The rows are written to ``rows.jsonl`` and made by
`fastdecode.jobs.run` in ``documents``, where a sweep that was stopped goes on. The rule-based recogniser reads the
pictures; ``sweep.json`` and ``sweep.png`` tell the shares.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from fastdecode.jobs import Job, Maker, read_rows, run
from tools.blocks import world
from tools.blocks.evaluate import SCALES, UNCERTAIN, plot
from tools.blocks.recogniser import recognise


def scenes(count: int, seed: int) -> list[world.Scene]:
    """What the pictures are to show."""
    rng = random.Random(seed)
    return [world.random_scene(rng) for _ in range(count)]


def write_rows(file: Path, wanted: Sequence[world.Scene], seed: int) -> None:
    """A row for every scene and scale."""
    rows = [
        {"id": f"{scale:g}/{n}", "prompt": world.drawing_prompt(scene), "guidance": scale, "seed": seed * 1_000_003 + n}
        for scale in SCALES
        for n, scene in enumerate(wanted)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shares(target: Path, wanted: Sequence[world.Scene]) -> dict[float, float]:
    """By scale, the share of pictures that show their scene."""
    from pyarrow import parquet

    right = dict.fromkeys(SCALES, 0)
    for item in parquet.read_table(target / "index.parquet").to_pylist():
        scale, _, n = item["id"].partition("/")
        for name in item["pictures"]:
            with Image.open(target / item["files"] / name) as picture:
                right[float(scale)] += recognise(picture.convert("RGB")) == wanted[int(n)]
    return {scale: count / len(wanted) for scale, count in right.items()}


def sweep(
    model: str, out: Path, count: int, seed: int, maker: Callable[[Job], Maker] | None = None
) -> dict[float, float]:
    """Make the documents that ``out`` lacks. Returns the `shares`."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = scenes(count, seed)
    write_rows(out / "rows.jsonl", wanted, seed)
    job = Job(model=model, options={"multimodal_generation_mode": "image-only", "image": UNCERTAIN})
    rows = read_rows(out / "rows.jsonl")
    done = run(job, rows, out / "documents", maker=None if maker is None else partial(maker, job))
    if done.failed + done.failed_before:
        raise SystemExit(f"items failed: {out / 'documents' / 'index.parquet'} says why")
    return shares(out / "documents", wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="blocks", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=12345, help="(default: %(default)s)")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="as for fastdecode run")
    args = parser.parse_args(arguments)
    maker = None
    if args.ray is not None:
        from fastdecode.ray import RayMaker

        maker = partial(RayMaker, address=args.ray or None)
    found = sweep(args.model, args.out, args.prompts, args.seed, maker)
    for scale, share in found.items():
        print(f"guidance {scale:g}: {share:.1%} of {args.prompts} pictures match their text")
    (args.out / "sweep.json").write_text(json.dumps({"prompts": args.prompts, "match": found}, indent=1) + "\n")
    plot(found, args.out / "sweep.png", args.prompts)


if __name__ == "__main__":
    main()
