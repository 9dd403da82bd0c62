"""Memory and seconds that a large Chameleon on disk takes to load and to draw one guided picture.

    python benchmarks/bench_large.py --checkpoint FOLDER [--model 7B] [--cases int4 int8 bf16 transformers]
                [--tokens 1024] [--tokens-slow 1024] [--json FILE]

Where there is no FOLDER, a checkpoint with random weights in bfloat16 is written there first
(benchmarks/random_checkpoint.py); the 7B takes 14 GB of disk. Each case runs in a process of its own. fastdecode loads
the weights as int4, int8 or bfloat16; the rival is transformers with bfloat16 weights: the two streams as a batch of 2
through the model's forward with a DynamicCache, guidance and `torch.multinomial` by hand, among image tokens
only, without Chameleon's mask of image tokens. Guidance scale 3, temperature 1, a prompt of 16 tokens, one picture. Its
tokens are drawn; turning them into pixels is not timed.

``peak`` is VmHWM of /proc/self/status, the most memory of the process at any time, which counts pages of mapped files
too (the kernel can drop these). ``own`` is the largest RssAnon, looked at every 20 ms: memory that cannot be dropped.
Both are given for loading alone and for the whole; Python and torch are in them. (ru_maxrss is not used: a new process
begins with its parent's.)

``s/token`` is the mean time between the picture's image tokens. With fewer ``--tokens`` (``--tokens-slow`` for bf16 and
transformers) than a picture has, the seconds of the picture are the time measured and as many more tokens at this
mean: they are marked with * and ``extrapolated``. Later tokens cost more, so this is a little too small. Files in the
page cache load faster: no cache is emptied.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import SIZES
from benchmarks.random_checkpoint import random_checkpoint
from fastdecode.bench.machine import describe
from fastdecode.bench.turns import make_files, show

CASES = ("int4", "int8", "bf16", "transformers")
SLOW = ("bf16", "transformers")
SIZE_KEYS = ("peak of loading", "own peak of loading", "peak", "own peak")


def measure(case: str, folder: Path, tokens: int) -> dict[str, Any]:
    """The figures of one case, from a process of its own. If it fails: its case and ``error``."""
    command = [sys.executable, str(Path(__file__).with_name("large_case.py")), case, str(folder), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"case": case, "error": lines[-1] if lines else f"it ended with {done.returncode} (-9: out of memory)"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if not found["image tokens only"]:
        raise RuntimeError(f"{case} drew tokens that are not image tokens: its times mean nothing")
    return found


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['case']:>12}  failed: {row['error']}"
    sizes = " ".join(
        f"{row[key] / 1e9:>9.2f}" for key in ("peak of loading", "own peak of loading", "peak", "own peak")
    )
    star = "*" if row["extrapolated"] else " "
    return (
        f"{row['case']:>12} {row['seconds to load']:>7.1f} {sizes} {row['seconds per token']:>8.4f} "
        f"{row['seconds of the picture']:>9.1f}{star} {row['tokens']:>6}"
    )


HEAD = (
    f"{'case':>12} {'load s':>7} {'load GB':>9} {'own':>9} {'peak GB':>9} {'own':>9} {'s/token':>8} "
    f"{'picture s':>9}  {'tokens':>6}"
)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FOLDER", help="made if it does not exist")
    parser.add_argument("--model", choices=SIZES, default="7B", help="the size of a checkpoint that is made")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, help="image tokens to draw; default: a whole picture's")
    parser.add_argument("--tokens-slow", type=int, help="of bf16 and transformers; default: --tokens")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(words)
    folder = options.checkpoint
    size = SIZES[options.model]
    if folder.exists():
        try:
            vq = json.loads((folder / "config.json").read_text())["vq_config"]
            resolution = vq["resolution"]
        except (OSError, ValueError, KeyError, TypeError):
            parser.error(f"--checkpoint {folder}: it has no config.json of a Chameleon; give a folder to be made")
    else:
        resolution = size.resolution
    whole = (resolution // 16) ** 2
    options.tokens = whole if options.tokens is None else options.tokens
    options.tokens_slow = options.tokens if options.tokens_slow is None else options.tokens_slow
    for name, tokens in (("--tokens", options.tokens), ("--tokens-slow", options.tokens_slow)):
        if not 2 <= tokens <= whole:
            parser.error(f"{name} {tokens}: must be 2 to {whole}, the tokens of a picture")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    make_files([options.json])
    machine = describe()
    show(machine)
    if not options.checkpoint.exists():
        size = random_checkpoint(options.checkpoint, options.model)
        print(f"wrote {size / 1e9:.2f} GB of weights to {options.checkpoint}", flush=True)
    print(HEAD)
    rows = []
    for case in options.cases:
        rows.append(measure(case, options.checkpoint, options.tokens_slow if case in SLOW else options.tokens))
        print(line(rows[-1]), flush=True)
        if options.json:
            result = {"machine": machine, "checkpoint bytes": weight_bytes(options.checkpoint), "cases": rows}
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    if any(row.get("extrapolated") for row in rows):
        print("* extrapolated: fewer tokens were drawn than a picture has")
    return int(any("error" in row for row in rows))


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
