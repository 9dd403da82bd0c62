"""The sampling benchmark: its rivals do the same work, a wrong result is never timed, and figures are written."""

import csv
import json

import pytest
import torch
from PIL import Image

from fastdecode import cli, ops
from fastdecode.bench import sample as bench
from fastdecode.bench.sample_rivals import Torch, Transformers, mix

SMALL = [
    bench.Case(3, streams, 8200, image, dtype, name)
    for name in bench.FILTERS
    for streams in (1, 2)
    for image in (False, True)
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_rival_draws_what_is_kept(case: bench.Case):
    bench.check(case)
    torch.manual_seed(0)
    options, weights = bench.FILTERS[case.filter], bench.WEIGHTS[case.streams]
    logits = case.logits()
    rivals = [kind(case.vocab, case.span, weights, options) for kind in (Transformers, Torch)]
    kept = rivals[0].scores(logits) > -torch.inf
    for rival in rivals:
        drawn = torch.stack([rival(logits) for _ in range(20)])
        assert drawn.shape == (20, 3)
        assert (drawn >= case.span[0]).all()
        assert (drawn < case.span[1]).all()
        missing = sum(not kept[g, drawn[i, g]] for i in range(20) for g in range(3))
        assert missing <= 1  # at the very edge sums round differently
    if options["temperature"] == 0:
        assert torch.equal(rivals[0](logits), rivals[1](logits))
        assert torch.equal(rivals[0](logits), ops.sample(logits, **bench._arguments(case, 3)).token)


def test_mixing_is_the_weighted_sum():
    rows = torch.randn(6, 50)
    for streams, weights in ((1, (1.0,)), (2, (3.0, -2.0)), (3, (2.0, -1.5, 0.7))):
        expected = sum(w * rows.view(-1, streams, 50)[:, k] for k, w in enumerate(weights))
        assert torch.allclose(mix(rows.clone(), weights), expected, atol=1e-5)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = ops.sample

    def wrong(logits, **arguments):
        drawn = right(logits, **arguments)
        return drawn if arguments.get("backend") == "reference" else drawn._replace(token=drawn.token + 1)

    monkeypatch.setattr(ops, "sample", wrong)
    with pytest.raises(RuntimeError, match="is not what the reference returns"):
        bench.measure(bench.Case(1, vocab=100))


def test_figures():
    row = bench.measure(bench.Case(2, vocab=500), seconds=0.01)
    assert row["groups"] == 2
    assert row["rounds"] >= 5
    assert 1 <= row["kept"] <= 500
    assert all(row[name] > 0 for name in ("fastdecode", "transformers", "torch", "softmax", "read"))
    head, line = bench.table([row]).splitlines()
    assert len(head) == len(line)
    assert f"{row['fastdecode']:.1f}" in line


def test_the_grid():
    whole, quick = list(bench.cases(False)), list(bench.cases(True))
    assert set(quick) <= set(whole)
    assert len(set(whole)) >= 60
    assert {c.groups for c in whole} >= {1, 64}
    assert {c.streams for c in whole} >= {1, 2, 5}
    assert {c.vocab for c in whole} == {8192, 65536, 131072}


def test_the_command_writes_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(bench, "cases", lambda quick: [bench.Case(n, vocab=64) for n in (1, 2, 4)])
    files = tmp_path / "new" / "a.json", tmp_path / "b.csv", tmp_path / "c.png"
    options = [f for name, file in zip(("--json", "--csv", "--plot"), files, strict=True) for f in (name, str(file))]
    assert cli.main(["bench", "sample", "--quick", *options]) == 0
    assert Image.open(files[2]).size[0] > 400
    written = json.loads(files[0].read_text())
    assert written["machine"]["torch"]
    assert [row["groups"] for row in written["sample"]] == [1, 2, 4]
    with files[1].open() as lines:
        assert [row["vocab"] for row in csv.DictReader(lines)] == ["64"] * 3
    assert capsys.readouterr().out.count("top_p 0.9") == 3


def test_a_plot_needs_points_and_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "cases", lambda quick: [bench.Case(1, vocab=64)])
    assert cli.main(["bench", "sample", "--plot", str(tmp_path / "c.png")]) == 2
    assert "no case was measured at three numbers of groups" in capsys.readouterr().err
    monkeypatch.setattr("fastdecode.bench.plot.find_spec", lambda name: None)
    assert cli.main(["bench", "sample", "--plot", str(tmp_path / "c.png")]) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err
