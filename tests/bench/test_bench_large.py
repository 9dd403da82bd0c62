"""The benchmark of a large Chameleon on disk, with a tiny one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import bench_large
from benchmarks.large_case import draw
from benchmarks.models import BEGIN_IMAGE, IMAGE_IDS, random_model, text_prompts
from benchmarks.random_checkpoint import random_checkpoint
from benchmarks.rivals import unmasked


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "tiny"
    random_checkpoint(folder, "tiny bfloat16", limit=400_000)
    return folder


def test_figures(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "rows.json"
    words = ["--checkpoint", str(checkpoint), "--tokens-slow", "6", "--json", str(file)]
    assert bench_large.main(words) == 0, capsys.readouterr().out
    rows = {row["case"]: row for row in json.loads(file.read_text())["cases"]}
    assert list(rows) == list(bench_large.CASES)
    for case, row in rows.items():
        assert row["image tokens only"] is True
        assert row["picture tokens"] == 16
        assert (row["tokens"], row["extrapolated"]) == ((6, True) if case in bench_large.SLOW else (16, False))
        assert row["seconds to load"] > 0
        assert row["seconds of the picture"] > 15 * row["seconds per token"] > 0
        assert 0 < row["own peak of loading"] <= row["own peak"] <= row["peak"]
        assert 0 < row["peak of loading"] <= row["peak"]
    assert "* extrapolated" in capsys.readouterr().out


def test_shards(checkpoint: Path):
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    files = sorted(checkpoint.glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    found = {key: value for file in files for key, value in load_file(file).items()}
    assert set(found) == set(index["weight_map"]) == set(random_model("tiny bfloat16").state_dict())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    assert found["lm_head.weight"].dtype == torch.bfloat16
    assert 0.019 < found["lm_head.weight"].float().std() < 0.021
    assert (found["model.layers.1.input_layernorm.weight"] == 1).all()


def test_the_rival_draws_from_the_guided_distribution():
    model = random_model("tiny")
    model.lm_head.weight.data *= 200  # one token has nearly all of the probability
    prompt = text_prompts(model, 1, 8)[0]
    drawn, times = draw(unmasked(model), prompt, 5)
    assert len(times) == 5
    full, other = [*prompt.tolist(), BEGIN_IMAGE], [0, BEGIN_IMAGE]
    for token in drawn:
        with torch.no_grad():
            a, b = (unmasked(model)(input_ids=torch.tensor([ids])).logits[0, -1] for ids in (full, other))
        mixed = (b + 3 * (a - b))[IMAGE_IDS.start : IMAGE_IDS.stop]
        assert mixed.softmax(0)[token - IMAGE_IDS.start] > 1e-3
        full.append(token)
        other.append(token)


def test_bad_options(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, message in (
        (["--checkpoint", str(checkpoint), "--tokens", "17"], "--tokens 17: must be 2 to 16"),
        (["--checkpoint", str(checkpoint), "--tokens-slow", "1"], "--tokens-slow 1: must be 2 to 16"),
        (["--checkpoint", str(tmp_path)], "it has no config.json of a Chameleon"),
        (["--checkpoint", str(checkpoint), "--cases", "int3"], "invalid choice: 'int3'"),
    ):
        with pytest.raises(SystemExit):
            bench_large.main(words)
        assert message in capsys.readouterr().err


def test_a_failing_case_is_told(checkpoint: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    assert "cannot be loaded" in bench_large.measure("int4", tmp_path, 4)["error"]


def test_checkpoints_are_not_overwritten(checkpoint: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="exists; give a folder that does not"):
        random_checkpoint(checkpoint, "tiny")
    with pytest.raises(ValueError, match="there is no size '8B'"):
        random_checkpoint(tmp_path / "new", "8B")
