"""The decode benchmarks on a tiny model: they measure what they claim, and never time wrong tokens."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_decode, bench_kv_memory
from benchmarks.models import BEGIN_IMAGE, IMAGE_IDS, SIZES, edit_prompts, random_model, text_prompts
from fastdecode import Guidance
from fastdecode.models.families import vocabulary_of

TWO_WAY = Guidance.two_way(bench_decode.SCALE)
BANDWIDTH = 1e10


class Memory:
    """Always as fast."""

    def read(self) -> float:
        return BANDWIDTH


@pytest.fixture(scope="module")
def model():
    return random_model("tiny")


def test_the_vocabulary_is_chameleons(model):
    v = vocabulary_of(model)
    assert v.code_ids == tuple(IMAGE_IDS)
    assert (v.end_image, v.begin_image, v.placeholder, v.bos, v.pad) == (8196, 8197, 8711, 0, 1)
    assert model.config.vocabulary_map["<reserved08706>"] == 8710
    assert sorted(model.config.vocabulary_map.values()) == list(range(v.size))
    assert v.image_length == 16
    assert all(size.resolution == 512 for name, size in SIZES.items() if "tiny" not in name)


def test_every_weight_is_filled(model):
    assert all(torch.isfinite(weights).all() for weights in model.parameters())
    assert model.lm_head.weight.std() == pytest.approx(0.02, rel=0.1)
    assert (model.model.layers[0].self_attn.q_norm.weight == 1).all()


@pytest.mark.parametrize("name", ["tiny", "tiny bfloat16"])
def test_both_sides_are_measured(name: str):
    model, tokens = random_model(name), 8
    row = bench_decode.measure(model, text_prompts(model, 2, 12), TWO_WAY, tokens, 3, Memory())
    mine, other = row["fastdecode ms per step"], row["transformers ms per step"]
    assert mine > 0
    assert other > 0
    assert row["ratio"] == pytest.approx(other / mine)
    assert row["fastdecode tokens/s"] == pytest.approx(2000 / mine)
    assert (row["rows"], row["streams"], row["prompt"]) == (4, 2, 12)
    assert row["bandwidth_fraction"] == pytest.approx(row["weight bytes"] / BANDWIDTH / (mine / 1000))
    assert 0 <= row["greedy ids until they part"] <= bench_decode.COMPARED
    json.dumps(row)


def test_the_floor_counts_layers_and_image_rows(model):
    hidden, mlp, layers = 32, 64, 2
    norms = 2 * hidden + 4 * hidden  # before attention and MLP; weight and bias of queries' and keys' norms
    numbers = layers * (4 * hidden**2 + 3 * hidden * mlp + norms) + hidden + len(IMAGE_IDS) * hidden
    assert bench_decode.weight_bytes(model) == 4 * numbers


def test_one_two_and_three_streams(model):
    rows = bench_decode.stream_rows(model, 6, 1, Memory())
    assert [row["rows"] for row in rows] == [1, 2, 3]
    assert ["ratio" in row for row in rows] == [True, True, False]
    lines = bench_decode.table([{"model": "tiny", **row} for row in rows]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_contexts(model):
    found = bench_decode.context_growth(model, (16, 64), 2, Memory(), steps=2)
    assert found["KV bytes per id"] == 2 * 2 * 32 * 4
    assert [point["context"] for point in found["points"]] == [16, 64]
    assert all(point["ms per step"] > 0 for point in found["points"])
    assert found["points"][0]["KV bytes"] == 2 * (16 + 3) * found["KV bytes per id"]
    assert bench_decode.context_table(found).count("\n") == 3


def test_wrong_ids_are_not_timed(model, monkeypatch: pytest.MonkeyPatch):
    right = bench_decode.fastdecode.generate

    def wrong(*args, **options):
        sequences = right(*args, **options)
        sequences[0, -1] = BEGIN_IMAGE
        return sequences

    monkeypatch.setattr(bench_decode.fastdecode, "generate", wrong)
    with pytest.raises(RuntimeError, match=r"fastdecode did not draw 16 image ids .* nothing was timed"):
        bench_decode.measure(model, text_prompts(model, 1, 8), TWO_WAY, 6, 1, Memory())


def test_other_greedy_ids_are_not_timed(model, monkeypatch: pytest.MonkeyPatch):
    right = bench_decode.fastdecode.generate

    def wrong(*args, **options):
        sequences = right(*args, **options)
        sequences[0, -3] = IMAGE_IDS.start + (sequences[0, -3] + 1) % len(IMAGE_IDS)
        return sequences

    monkeypatch.setattr(bench_decode.fastdecode, "generate", wrong)
    with pytest.raises(RuntimeError, match=r"differ from transformers' after 13: .* nothing was timed"):
        bench_decode.measure(model, text_prompts(model, 1, 8), TWO_WAY, 6, 1, Memory())


def test_a_run_writes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(bench_decode, "Memory", Memory)
    file = tmp_path / "decode.json"
    options = ["--models", "tiny", "--detail", "tiny", "--tokens", "6", "--repeats", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench_decode", *options])
    bench_decode.main()
    written = json.loads(file.read_text())
    assert written["machine"]["cores"] > 0
    assert len(written["guided tokens"]) == 1
    assert [row["sequences"] for row in written["batches"]] == [8]
    assert [point["context"] for point in written["contexts"]["points"]] == [64, 512]
    assert written["floor"] == bench_decode.METHOD
    assert written["small weights"][0]["weights"] == "float32"
    assert written["small weights"][0]["time ratio"] == 1
    assert "what a longer context adds is read" in capsys.readouterr().out


# --- memory -----------------------------------------------------------------------------------------------------


def test_pages_are_counted_by_what_they_hold():
    shared = tuple(range(8))
    assert bench_kv_memory.pages_needed([], 4) == 0
    assert bench_kv_memory.pages_needed([()], 4) == 0
    assert bench_kv_memory.pages_needed([shared, shared], 4) == 2
    assert bench_kv_memory.pages_needed([(*shared, 1), (*shared, 2)], 4) == 4
    assert bench_kv_memory.pages_needed([(1, *shared[1:]), (2, *shared[1:])], 4) == 4  # the same ids behind others


def test_a_static_cache_is_as_long_as_it_is_told(model):
    assert bench_kv_memory.static_bytes(model, 3, 50) == 3 * 50 * bench_kv_memory.bytes_per_id(model)


def test_a_guided_batch_shares_its_prompt(model):
    found = bench_kv_memory.guided_batch(model, 4, words=60, points=2)
    prompt = edit_prompts(model, 1, 60, 16).shape[1]
    assert found["stream lengths"] == [prompt + 18, 37, 19]
    for point in found["points"]:
        assert point["rows"] == 12
        assert point["pages needed"] <= point["pages used"]
        assert point["bytes used"] <= point["bytes held"]
    assert found["points"][-1]["bytes used"] < found["points"][-1]["bytes unshared"]
    assert found["padded over ours"] > 1
    assert bench_kv_memory.table(found).count("\n") == len(found["points"]) + 1


def test_pages_come_back(model):
    found = bench_kv_memory.steady(model, 200)
    assert found["pages used at the end"] == 0
    assert found["sequences"] > 20
    assert 0 < found["pages at peak"] <= found["pages held"]


def test_in_turns_compares_turns_of_the_same_repeat(model):
    one, two = text_prompts(model, 1, 12), text_prompts(model, 2, 12)
    found = bench_decode.in_turns(model, (one, TWO_WAY), (two, TWO_WAY), bench_decode.SKIPPED + 3, 3)
    assert found["tokens/s of one"] > 0
    assert found["tokens/s of the other"] > 0
    assert len(found["ratios of the repeats"]) == 6
    assert found["ratios of the repeats"][2] <= found["ratio"] <= found["ratios of the repeats"][3]


def test_weights_are_compared_with_the_first_model(model):
    models = {"one": model, "the same": model}
    one, same = bench_decode.weights_in_turns(models, bench_decode.SKIPPED + 3, 2, Memory())
    assert one["weight bytes"] == bench_decode.weight_bytes(model)
    low, high = one["shares of the repeats"][1:3]
    assert one["bandwidth_fraction"] == pytest.approx((low + high) / 2)
    assert low <= one["floor ms"] / one["ms per token"] <= high
    assert one["floor ms"] == pytest.approx(1000 * one["weight bytes"] / BANDWIDTH)
    assert (one["weights"], one["time ratio"]) == ("one", 1)
    assert same["weights"] == "the same"
    assert len(same["ratios of the repeats"]) == 4
    assert same["ratios of the repeats"][1] <= same["time ratio"] <= same["ratios of the repeats"][2]


def test_bytes_of_small_weights_are_those_that_are_stored():
    data, scale = torch.zeros(4, 16, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.float16)
    weight = torch.ones(4, 32)
    assert bench_decode.stored_bytes(weight) == 4 * 32 * 4
    weight.small = SimpleNamespace(data=data, scale=scale, offset=None)
    assert bench_decode.stored_bytes(weight) == 64 + 8
    weight.small.offset = torch.ones(4, 1)
    assert bench_decode.stored_bytes(weight) == 64 + 8 + 16


def test_small_weights_are_those_of_copies(model):
    found = bench_decode.with_small_weights(model)
    assert list(found) == ["float32", "int8", "int4"]
    assert found["float32"] is model
    assert type(model.lm_head.weight) is torch.nn.Parameter
    assert [found[kind].lm_head.weight.small.type for kind in ("int8", "int4")] == ["int8x16", "int4"]
