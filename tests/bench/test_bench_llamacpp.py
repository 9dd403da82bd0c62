"""The benchmark against llama.cpp, with a tiny model: its pieces do what they say, and wrong logits are not timed.

FASTDECODE_LLAMA names the folder that ``tools/build_llama.sh`` has filled; without it the tests with llama.cpp are
skipped.
"""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import bench_llamacpp, llama_products, llama_rival
from benchmarks.bench_llamacpp import Contest, OurSteps, random_tokens, relative_error
from benchmarks.llama_models import SIZES, random_llama, write_gguf
from benchmarks.llama_rival import LlamaSteps

VOCABULARY = SIZES["tiny"].vocab
LLAMA = Path(os.environ.get("FASTDECODE_LLAMA") or "nowhere").resolve()
with_llama = pytest.mark.skipif(
    not os.environ.get("FASTDECODE_LLAMA"),
    reason="there is no libllama: build it with tools/build_llama.sh FOLDER and set FASTDECODE_LLAMA=FOLDER",
)


class Memory:
    """Always as fast."""

    def __init__(self, threads: int) -> None:
        pass

    def read(self) -> float:
        return 1e10


@pytest.fixture(scope="module")
def model():
    return random_llama("tiny")


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="the package gguf is not installed: it writes the models of llama.cpp")


# --- ours -------------------------------------------------------------------------------------------------------


def test_our_steps_are_the_models(model, tmp_path: Path):
    prompts, tokens = random_tokens(VOCABULARY, 3, 16), random_tokens(VOCABULARY, 3, seed=1)
    side = OurSteps(model)
    side.start(prompts)
    whole = torch.tensor([[*prompt, token] for prompt, token in zip(prompts, tokens, strict=True)])
    with torch.inference_mode():
        expected = model(whole).logits[:, -1].float()
    first = side.logits(tokens, tmp_path)
    assert relative_error(first, expected) < 0.03
    times = side.steps(random_tokens(VOCABULARY, 5, 3))
    assert len(times) == 5
    assert min(times) > 0
    assert torch.equal(side.logits(tokens, tmp_path), first)  # the steps left the prompts as they were
    assert side.cache.rows == 0


def test_an_error_is_relative_to_the_spread():
    expected = torch.tensor([[0.0, 2.0, 4.0]])
    assert relative_error(expected, expected) == 0
    assert relative_error(expected + 1, expected) == pytest.approx(0.5)


def test_quantised_models_are_copies():
    models = bench_llamacpp.our_models("tiny", 1, ["int4"])
    assert list(models) == ["bf16", "int4"]
    assert type(models["bf16"].lm_head.weight) is torch.nn.Parameter
    assert models["int4"].lm_head.weight.small.type == "int4"


# --- llama.cpp --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", bench_llamacpp.RIVALS.values())
def test_bytes_are_those_of_all_weights_but_the_embedding(model, gguf, tmp_path: Path, kind: str):
    read = write_gguf(model, kind, tmp_path / "model.gguf")
    tensors = gguf.GGUFReader(str(tmp_path / "model.gguf")).tensors
    assert read == sum(tensor.n_bytes for tensor in tensors if tensor.name != "token_embd.weight")
    assert {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1} == {kind}
    size = SIZES["tiny"]
    assert len(tensors) == 9 * size.layers + 3
    numbers = {"BF16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32}[kind]
    per_layer = 2 * size.hidden**2 + 2 * size.hidden**2 * size.kv_heads // size.heads + 3 * size.hidden * size.mlp
    norms = (2 * size.layers + 1) * size.hidden * 4
    assert read == numbers * (size.layers * per_layer + size.vocab * size.hidden) + norms


@with_llama
def test_contest(model, gguf):
    """Every kind of weights, with bfloat16 on our side, which is nearer to the rival's than its limit."""
    kinds = list(bench_llamacpp.RIVALS)
    with Contest(dict.fromkeys(kinds, model), kinds, [LLAMA], context=16, threads=1) as contest:
        errors = contest.check()
        assert [list(found) for found in errors.values()] == [[s.name for s in contest.sides[k]] for k in kinds]
        for found in errors.values():
            assert found["fastdecode"] == 0
        its = [max(found.values()) for found in errors.values()]
        assert 0 < its[0] < its[1] < its[2]
        rows = [row for count in (1, 3) for row in contest.measure(count, 3, 4, Memory(1))]
    assert [(row["weights"], row["sequences"]) for row in rows] == [(kind, count) for count in (1, 3) for kind in kinds]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["rival ms per step"] / row["fastdecode ms per step"])
        builds = {name: ms for name, ms in row["all rivals ms per step"].items() if name.startswith("llama.cpp")}
        assert row["rival ms per step"] == builds[row["rival"]] == min(builds.values())
        assert len(builds) == 2
        assert len(row["ratios of the repeats"]) == 3
        assert row["floor ms"] == pytest.approx(row["rival weight bytes"] / 1e7)
        json.dumps(row)
    assert bench_llamacpp.table(rows).count("\n") == len(rows)


def test_ctranslate2_computes_the_same(model, tmp_path: Path):
    pytest.importorskip("ctranslate2", reason="the package ctranslate2 is not installed")
    bench_llamacpp.convert(model, tmp_path / "model")
    theirs, ours = bench_llamacpp.CTranslate2Steps(tmp_path / "model", 1), OurSteps(model)
    prompts, tokens = random_tokens(VOCABULARY, 3, 16), random_tokens(VOCABULARY, 3, seed=1)
    for side in (theirs, ours):
        side.start(prompts)
    assert relative_error(theirs.logits(tokens, tmp_path), ours.logits(tokens, tmp_path)) < 0.05
    assert len(theirs.steps(random_tokens(VOCABULARY, 5, 3))) == 5


@with_llama
def test_other_weights_are_not_timed(model, gguf):
    other = copy.deepcopy(model)
    other.model.layers[1].self_attn.q_proj.weight.mul_(3)
    other.lm_head.weight.copy_(other.lm_head.weight.roll(1, 0))
    with (
        Contest({"bf16": model, "int8": other}, ["int8"], [LLAMA], context=16, threads=1) as contest,
        pytest.raises(RuntimeError, match=r"fastdecode with int8 weights has other logits .* nothing was timed"),
    ):
        contest.check()


@with_llama
def test_steps_leave_the_prompts_as_they_were(model, gguf, tmp_path: Path):
    write_gguf(model, "BF16", tmp_path / "model.gguf")
    tokens = random_tokens(VOCABULARY, 2, seed=1)
    with LlamaSteps(LLAMA, tmp_path / "model.gguf", 2) as side:
        side.start(random_tokens(VOCABULARY, 2, 16))
        first = side.logits(tokens, tmp_path)
        assert first.shape == (2, VOCABULARY)
        assert len(side.steps(random_tokens(VOCABULARY, 16, 2))) == 16
        assert torch.equal(side.logits(tokens, tmp_path), first)
        with pytest.raises(RuntimeError, match="error: more steps than there is room for"):
            side.steps(random_tokens(VOCABULARY, 17, 2))
    assert side.process.returncode == 1


@with_llama
def test_a_file_that_is_no_model(tmp_path: Path):
    (tmp_path / "model.gguf").write_text("nothing")
    with pytest.raises(RuntimeError, match=r"error: cannot load .*model\.gguf"):
        LlamaSteps(LLAMA, tmp_path / "model.gguf", 1)


def test_what_is_built_is_not_built_again(tmp_path: Path):
    script = (llama_rival.ROOT / "tools" / "build_llama.sh").read_text()
    [number] = re.findall(r"^VERSION=(.+)$", script, re.MULTILINE)
    for name, built in (("llama", number), ("llama-openmp", f"{number} with OpenMP")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".version").write_text(f"{built}\n")
    assert llama_rival.build_all(tmp_path) == [tmp_path / "llama", tmp_path / "llama-openmp"]


def test_a_build_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_SDIST", str(tmp_path / "nowhere.tar.gz"))
    with pytest.raises(RuntimeError, match=r"tools/build_llama\.sh fails:(?s:.*)nowhere\.tar\.gz"):
        llama_rival.build_all(tmp_path)


def test_a_folder_without_llama(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"has no include/llama\.h, lib/libllama\.so, \.version: fill it with"):
        llama_rival.version(tmp_path)


@with_llama
def test_a_run_writes_its_files(gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench_llamacpp, "Memory", Memory)
    files = ["--json", tmp_path / "found.json", "--plot", tmp_path / "found.png"]
    sizes = ["--model", "tiny", "--layers", 1, "--weights", "bf16", "--sequences", 1, 2, "--context", 16]
    few = ["--turns", 1, "--steps", 3, "--product-rows", 1, "--llama", LLAMA]
    bench_llamacpp.main([str(word) for word in (*sizes, *few, *files)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["floor"] == bench_llamacpp.METHOD
    assert [row["sequences"] for row in found["steps"]] == [1, 2]
    assert (found["layers"], found["context"], len(found["products"])) == (1, 16, 4)
    with Image.open(tmp_path / "found.png") as chart:
        assert min(chart.size) > 300
    assert "llama.cpp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "64"], "--steps 64: must be fewer than --context 64"),
        (["--turns", "0"], "must be 1 or more"),
        (["--sequences", "2", "0"], "must be 1 or more"),
        (["--plot", "chart.txt"], "the name must end in"),
        (["--weights", "int3"], "invalid choice: 'int3'"),
    ],
)
def test_options_that_cannot_be(gguf, words: list[str], message: str, capsys):
    with pytest.raises(SystemExit):
        bench_llamacpp.arguments(words)
    assert message in capsys.readouterr().err


# --- products ---------------------------------------------------------------------------------------------------


def test_products_are_measured():
    rows = llama_products.measure_products(SIZES["tiny"], [1, 3], seconds=0.001)
    assert [(row["matrix"], row["rows"]) for row in rows] == [
        (name, count) for name in ("qkv", "gate_up", "down", "head") for count in (1, 3)
    ]
    for row in rows:
        assert {"bf16", "torch bf16", "torch int4"} <= row["us"].keys() == row["bytes"].keys()
        assert min(row["us"].values()) > 0
        assert row["bytes"]["bf16"] == 2 * row["features"] * row["k"]
        assert row["bytes"]["torch int4"] == row["features"] * row["k"] * (0.5 + 4 / 32)
    assert len({len(line) for line in llama_products.product_table(rows).splitlines()}) == 1


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = llama_products.ops.linear
    monkeypatch.setattr(llama_products.ops, "linear", lambda x, weight: right(x, weight) + 1)
    with pytest.raises(RuntimeError, match="bf16: the product qkv of 1 rows is wrong by"):
        llama_products.measure_products(SIZES["tiny"], [1])
