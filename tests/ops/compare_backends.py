"""Draws random groups with every backend that runs here, and with the C++ of every instruction set, and compares bits.

    python tests/ops/compare_backends.py --groups 1000000

The arguments are those of `cases.random_arguments`: ties, -inf, NaN, extreme parameters, all dtypes and strides. Each
instruction set runs in a process of its own. Prints what was compared; exits with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from cases import DTYPES, SIZES, assert_same_bits, random_arguments

from fastdecode.ops import sample
from fastdecode.ops.backends import core

ISAS = ("portable", "avx2", "avx512")


def compare(backends: list[str], groups: int, most_ids: int) -> str:
    """Compares until so many groups are done; ``AssertionError`` with the case's numbers at a difference."""
    sizes = [size for size in SIZES if size <= most_ids]
    # Small sets are most of it: a difference hides in rare combinations, not in many ids.
    share = np.array([1 / (size + 200) for size in sizes])
    choose = np.random.default_rng(0)
    done = case = drawn = 0
    begun = time.monotonic()
    while done < groups:
        vocab = int(choose.choice(sizes, p=share / share.sum()))
        arguments = random_arguments(np.random.default_rng([case, vocab, 7]), vocab, DTYPES[case % 3], most_groups=64)
        expected = sample(**arguments, backend="reference")
        for backend in backends:
            try:
                assert_same_bits(sample(**arguments, backend=backend), expected)
            except AssertionError as difference:
                raise AssertionError(f"{backend}, case {case}, vocab {vocab}: {difference}") from None
        done += len(expected.token)
        drawn += int((expected.status == 0).sum())
        case += 1
    return f"{done} groups ({drawn} with a token) in {case} calls, {time.monotonic() - begun:.0f} s: the same bits"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare all backends bit by bit over random groups.")
    parser.add_argument("--groups", type=int, default=20_000, help="for each backend (%(default)s)")
    parser.add_argument("--most-ids", type=int, default=max(SIZES), help="largest vocabulary (%(default)s)")
    parser.add_argument("--isa", help=argparse.SUPPRESS)
    parser.add_argument("--backends", nargs="*", help="besides the reference (default: cpu, of each instruction set)")
    args = parser.parse_args()
    if args.isa or args.backends:
        print(f"{args.isa or ' '.join(args.backends)}: {compare(args.backends or ['cpu'], args.groups, args.most_ids)}")
        return 0
    best = ISAS.index(core().cpu_isa().removesuffix("bf16"))  # the sampler has no such kernels
    for isa in ISAS[: best + 1]:
        numbers = ("--groups", str(args.groups), "--most-ids", str(args.most_ids))
        environment = {**os.environ, "FASTDECODE_CPU_ISA": isa}
        if subprocess.run([sys.executable, __file__, "--isa", isa, *numbers], env=environment, check=False).returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
