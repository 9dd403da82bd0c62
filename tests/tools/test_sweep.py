"""The sweep over guidance scales: its rows, its job, and the shares that it tells."""

import json

import pytest
from PIL import Image

from tools.blocks import sweep, world
from tools.blocks.evaluate import SCALES

pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")


def test_a_sweep_of_a_few_prompts_and_that_it_goes_on(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "sweep"), "--prompts", "4", "--seed", "3"]
    sweep.main(arguments)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert found["prompts"] == 4
    assert [float(scale) for scale in found["match"]] == list(SCALES)
    assert said.splitlines()[0] == f"guidance 1: {found['match']['1.0']:.1%} of 4 pictures match their text"
    assert max(found["match"].values()) >= 0.75  # of 500 prompts, 90% and more match from 1.25 on
    assert Image.open(tmp_path / "sweep" / "sweep.png").size[0] > 500
    items = tmp_path / "sweep" / "documents" / "items"
    before = {file: file.stat().st_mtime_ns for file in items.rglob("*.png")}
    assert len(before) == 4 * len(SCALES)
    sweep.main(arguments)
    assert capsys.readouterr().out == said
    assert {file: file.stat().st_mtime_ns for file in items.rglob("*.png")} == before


def test_every_prompt_has_one_seed_at_every_scale(tmp_path):
    wanted = sweep.scenes(3, 5)
    sweep.write_rows(tmp_path / "rows.jsonl", wanted, 5)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 3 * len(SCALES)
    for n, scene in enumerate(wanted):
        own = [row for row in rows if row["id"].endswith(f"/{n}")]
        assert {row["prompt"] for row in own} == {world.drawing_prompt(scene)}
        assert len({row["seed"] for row in own}) == 1
        assert [row["guidance"] for row in own] == list(SCALES)
