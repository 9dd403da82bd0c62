"""Lets these tests take arguments from tests/ops/cases.py, and skips what cannot run in this process."""

import sys
from pathlib import Path

import torch
from devices import INTERPRETED

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("ops", "decoder")]

# test_interpreter.py runs these in a process of their own.
_KERNEL_TESTS = [
    "test_triton_advance.py",
    "test_triton_decoder.py",
    "test_triton_fused.py",
    "test_triton_int4.py",
    "test_triton_numerics.py",
    "test_triton_sample.py",
    "test_triton_step.py",
]
collect_ignore = [] if INTERPRETED or torch.cuda.is_available() else _KERNEL_TESTS
