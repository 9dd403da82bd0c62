"""The cases of ``fastdecode bench sample`` under pytest-benchmark: ``pytest benchmarks/bench_sample.py``."""

from typing import Any

import pytest

from fastdecode.bench.sample import Case, cases, check, runners


@pytest.mark.parametrize("who", ["fastdecode", "transformers", "torch", "softmax", "read"])
@pytest.mark.parametrize("case", cases(quick=True), ids=str)
def test_sample(benchmark: Any, case: Case, who: str) -> None:
    check(case)
    benchmark.group = str(case)
    benchmark(runners(case)[who])
