"""The benchmark of quantised weights, with a tiny model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torchao")

from benchmarks import bench_quantised


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "rows.json"
    arguments = ["--model", "tiny bfloat16", "--positions", "12", "--tokens", "6", "--json", str(file)]
    assert bench_quantised.main(arguments) == 0
    plain, *others = json.loads(file.read_text())["rows"]
    assert plain["weights"] == "bfloat16"
    assert [row["weights"] for row in others] == ["int8", "float8"]
    for row in others:
        assert 0 < row["error"] < 0.3
        assert 0 <= row["agree"] <= 1
        assert 0.5 < row["bytes"] / plain["bytes"] < 0.7  # a scale is four bytes of features that are few here
        assert row["first"] is None or row["same_tokens"] < 1
    assert others[0]["error"] < others[1]["error"]  # float8 has three bits of mantissa
    assert len(capsys.readouterr().out.splitlines()) == 4
