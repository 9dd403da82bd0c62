"""The serving benchmark on a tiny model: it measures what it claims, and never times wrong results."""

import json
import sys
from pathlib import Path

import pytest
from models_for_tests import BOS, EOS, drawing_model, text_ids

import fastdecode
from benchmarks import bench_serving, serving_load
from benchmarks.bench_serving import Setting
from benchmarks.models import random_model, text_prompts
from benchmarks.serving_load import Batching, Demand, Served, percentile, poisson, summary
from fastdecode.models.families import vocabulary_of
from fastdecode.vocabulary import Vocabulary

NEW = 60


@pytest.fixture(scope="module")
def setting():
    model = drawing_model(4, context=256)
    prompts = [(BOS, *text_ids(model, seed, 6)) for seed in range(4)]
    return Setting(model, (EOS,), tuple(prompts), tuple(prompts), tuple(prompts), NEW, new_text=12)


def wrong_generate(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """`fastdecode.generate` as the benchmark sees it, with one other token."""
    right = fastdecode.generate

    def wrong(*args, **options):
        found = right(*args, **options)
        found[0, place] = BOS
        return found

    monkeypatch.setattr(fastdecode, "generate", wrong)


# --- documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
def test_transformers_writes_the_same_documents(setting, static: bool):
    expected = bench_serving.in_turn(setting, True, 0, deterministic=True)
    assert bench_serving.check_whole(expected, setting.vocabulary, "generate") > 4
    assert bench_serving.transformers_in_turn(setting, True, 0, static) == expected


def test_three_ways_are_measured(setting):
    row = bench_serving.documents(setting, 2)
    assert row["documents"] == 4
    assert row["pictures"] > 4
    for who in ("fastdecode one at a time", "transformers one at a time"):
        assert row[f"{who} tokens/s"] > 0
        assert len(row[f"engine over {who}, turns"]) == 2
    assert row["transformers' cache"] in ("DynamicCache", "StaticCache")
    assert "transformers one at a time" in bench_serving.documents_table(row)
    json.dumps(row)


def test_other_documents_are_not_timed(setting, monkeypatch: pytest.MonkeyPatch):
    wrong_generate(monkeypatch, -2)
    with pytest.raises(RuntimeError, match=r"the engine differs in request 0 .* nothing was timed|no whole picture"):
        bench_serving.documents(setting, 1)


def test_a_rival_that_writes_something_else_is_not_timed(setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_serving.DocumentWriter, "_draw", lambda self, scores: 0)
    with pytest.raises(RuntimeError, match="transformers differs in request"):
        bench_serving.documents(setting, 1)


def test_pictures_must_be_whole(setting):
    v = setting.vocabulary
    codes = list(v.code_ids[: v.image_length])
    whole = [v.begin_image, *codes, v.end_image]
    assert bench_serving.check_whole([[BOS, *whole, BOS, *whole]], v, "x") == 2
    for broken in (whole[:-1], [v.begin_image, BOS, *codes[1:], v.end_image], [*whole[:-1], BOS]):
        with pytest.raises(RuntimeError, match="x drew no whole picture"):
            bench_serving.check_whole([broken], v, "x")
    with pytest.raises(RuntimeError, match="no picture at all"):
        bench_serving.check_whole([[BOS]], v, "x")


# --- load -------------------------------------------------------------------------------------------------------


def test_arrivals_are_seeded_and_as_many_as_asked():
    demands = [Demand("text", (BOS,), {}), Demand("picture", (BOS,), {})]
    arrivals = poisson(50.0, 40.0, demands, seed=1)
    assert arrivals == poisson(50.0, 40.0, demands, seed=1) != poisson(50.0, 40.0, demands, seed=2)
    assert len(arrivals) == pytest.approx(2000, rel=0.1)
    assert [demand.kind for _, demand in arrivals[:3]] == ["text", "picture", "text"]
    assert len(poisson(1e-9, 1.0, demands, seed=1)) == 1


def test_times_of_a_request(setting):
    v = setting.vocabulary
    tokens = [5, v.begin_image, *v.code_ids[: v.image_length], v.end_image]
    stamps = [(11.0 + i, i + 1) for i in range(len(tokens))]
    served = Served(Demand("picture", (BOS,), {}), 10.0, stamps, tokens)
    assert served.first == 1.0
    assert served.per_token == 1.0
    assert served.whole == len(tokens)
    assert served.pictures(v) == [v.image_length]
    by_row = Served(served.demand, 10.0, [(11.0, 2), (12.0, len(tokens))], tokens)
    assert by_row.per_token == 1.0 / (len(tokens) - 2)
    found = summary([served, by_row], v)
    assert (found["requests"], found["pictures"]) == (2, 2)
    assert found["first token p99 ms"] == 1000.0


def test_percentiles():
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99)] == [50, 99]
    assert [percentile([3, 1], share) for share in (0.5, 0.99)] == [1, 3]
    assert percentile([7], 0.99) == 7


def test_every_way_serves_the_same(setting):
    mixed = bench_serving.mixed_demands(setting)
    assert [d.kind for d in mixed] == ["instruction", "picture", "instruction", "text"]
    arrivals = [(0.005 * i, demand) for i, demand in enumerate(mixed)]
    ours = serving_load.engine(setting.model, arrivals, deterministic=True)
    queued = serving_load.queue(setting.model, arrivals)
    assert [s.tokens for s in ours] == [s.tokens for s in queued]
    for served in (*ours, *queued):
        assert served.stamps[-1][1] == len(served.tokens)
        assert 0 < served.first <= served.whole
        moments = [moment for moment, _ in served.stamps]
        assert moments == sorted(moments)
    texts = [(0.0, bench_serving.text_demand(setting, prompt)) for prompt in setting.texts]
    with Batching(setting.model, setting.ends, 40) as batching:
        theirs = batching(setting.model, texts)
    bench_serving.check_served(
        theirs, [s.tokens for s in serving_load.queue(setting.model, texts)], "continuous batching"
    )


def test_other_tokens_are_not_served(setting, monkeypatch: pytest.MonkeyPatch):
    wrong_generate(monkeypatch, -1)
    with pytest.raises(RuntimeError, match=r"the engine differs in request 0 from fastdecode.generate, from new token"):
        bench_serving.load(setting, 0.05, 1)


# --- processors -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_model():
    return random_model("tiny")


def test_processors_are_measured(text_model):
    prompt = text_prompts(text_model, 1, 12)[0].tolist()
    row = bench_serving.processors(text_model, prompt, {"do_sample": True, "top_k": 0}, 8, 2)
    assert row["ms per token without"] > 0
    assert len(row["turns"]) == 2


def test_processors_in_pytorch_are_not_timed(text_model):
    prompt = text_prompts(text_model, 1, 12)[0].tolist()
    slow = {"do_sample": False, "no_repeat_ngram_size": 3}
    with pytest.raises(RuntimeError, match="ran in PyTorch between the steps; nothing was timed"):
        bench_serving.processors(text_model, prompt, slow, 8, 1)


# --- all of it --------------------------------------------------------------------------------------------------


def test_a_quick_run_writes_its_files(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(bench_serving, "blocks_setting", lambda *_: setting)
    files = tmp_path / "out" / "serving.json", tmp_path / "serving.png"
    options = ["--quick", "--seconds", "0.3", "--json", str(files[0]), "--plot", str(files[1])]
    monkeypatch.setattr(sys, "argv", ["bench_serving", *options])
    bench_serving.main()
    written = json.loads(files[0].read_text())
    assert written["machine"]["cores"] > 0
    assert set(written["load"]) == {"mixed", "text"}
    assert set(written["processors"]) == {"text, tiny", "instruction, blocks"}
    assert files[1].stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "continuous batching" in shown
    assert "ms per token without processors" in shown
    assert isinstance(vocabulary_of(setting.model), Vocabulary)
