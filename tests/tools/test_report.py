"""The charts and tables of the documentation are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tools import report


def test_the_newest_results_are_read(tmp_path: Path) -> None:
    for date in ("2026-11-03", "2026-12-01", "2026-11-30"):
        (tmp_path / f"decode-cpu-{date}.json").write_text(json.dumps({"date": date}))
    assert report.newest("decode", tmp_path) == {"date": "2026-12-01"}
    with pytest.raises(FileNotFoundError, match=r"there is no step-cpu-DATE\.json"):
        report.newest("step", tmp_path)


def test_bars_are_those_of_the_results() -> None:
    bars = {bar.what: bar for bar in report.speed_bars()}
    rows = report.newest("generate")["guided pictures"]
    [one] = [row for row in rows if row["pictures at once"] == 1 and row["weights"] == "float32"]
    bar = bars["blocks: one guided picture"]
    assert bar.ratio == one["ratio"]
    assert (bar.least, bar.most) == (min(one["ratios of the repeats"]), max(one["ratios of the repeats"]))
    assert all(bar.least <= bar.ratio <= bar.most for bar in bars.values())
    assert len(bars) >= 7


def test_tables_on_the_page_are_those_of_the_results() -> None:
    page = report.PAGE.read_text()
    for name, table in report.tables().items():
        assert f"<!-- table {name} -->\n\n{table}\n\n<!-- end -->" in page
    assert report.with_tables(page) == page
    report.main(["--check"])


def test_marks_without_a_table_and_tables_without_marks() -> None:
    page = report.PAGE.read_text()
    with pytest.raises(ValueError, match="no marks for the tables load: write <!-- table NAME"):
        report.with_tables(page.replace("<!-- table load -->", ""))
    with pytest.raises(ValueError, match="there is no table 'speed'"):
        report.with_tables(page + "<!-- table speed --><!-- end -->")


def test_a_table_that_is_out_of_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(report.PAGE.read_text().replace("| 1 |", "| 2 |", 1))
    monkeypatch.setattr(report, "PAGE", page)
    with pytest.raises(SystemExit, match=r"tables in benchmarks.md are not those of the newest results"):
        report.main(["--check"])


def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for draw in (report.draw_speed, report.draw_sampling):
        draw(tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as chart:
            assert chart.width > 1000
            assert len(chart.convert("RGB").getcolors(1 << 24)) > 20


def test_a_table_of_llamacpp_where_it_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {
        "weights": "int8",
        "rival weights": "Q8_0",
        "sequences": 2,
        "fastdecode ms per step": 4.0,
        "rival ms per step": 10.0,
        "ratio": 2.5,
        "bandwidth_fraction": 0.75,
        "rival bandwidth_fraction": 0.3,
    }
    machine = report.newest("decode")["machine"]
    for file in report.RESULTS.glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    for file in tmp_path.glob("llamacpp-cpu-*.json"):
        file.unlink()
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "llamacpp" not in report.tables()
    (tmp_path / "llamacpp-cpu-2026-01-01.json").write_text(json.dumps({"machine": machine, "steps": [row]}))
    monkeypatch.setattr(report.newest, "__defaults__", (tmp_path,))
    assert "| int8 against Q8_0 | 2 | 4 ms | 10 ms | 2.50 | 75% | 30% |" in report.tables()["llamacpp"]
