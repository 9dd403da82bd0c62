"""The GPU measurements without a GPU: a dry run uses the same code on the CPU and writes every figure."""

import json
import math
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastdecode
from benchmarks import gpu_kernels, gpu_report, gpu_step, gpu_threads
from benchmarks.bench_decode import weight_bytes
from benchmarks.gpu_bandwidth import bandwidth
from benchmarks.gpu_results import Results, slug
from benchmarks.gpu_step import Block, Configuration, Watch, watched
from benchmarks.gpu_timing import ROUNDS, seconds_of
from benchmarks.models import IMAGE_IDS, SIZES, random_model, text_prompts
from benchmarks.rivals import StaticChameleon
from fastdecode.decoder import Decoder
from fastdecode.decoder.step_operations import FEW_ROWS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"

pytest.importorskip("triton")


def environment(folder: Path, **more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {**plain, "OUT": str(folder), "PYTHON": sys.executable, "COMMIT": "0123abc", **more}


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run of the whole script leaves, and says."""
    folder = tmp_path_factory.mktemp("dry")
    run = subprocess.run(
        [str(SCRIPT), "--dry-run"], env=environment(folder), capture_output=True, text=True, timeout=400
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    (name,) = {file.name for file in folder.glob("dry-*.json")}
    parts = {part: json.loads(next(folder.glob(f"{part}-dry-*.json")).read_text()) for part in gpu_report.PARTS}
    text = (folder / name.replace(".json", ".md")).read_text()
    return {"whole": json.loads((folder / name).read_text()), "parts": parts, "text": text, "said": run.stdout}


def assert_positive(row: dict[str, Any], *names: str) -> None:
    for name in names:
        assert isinstance(row[name], (int, float)), (name, row)
        assert row[name] > 0, (name, row)
        assert math.isfinite(row[name]), (name, row)


@pytest.mark.long
def test_every_part_says_what_it_measured(dry):
    for part, found in dry["parts"].items():
        assert found["part"] == part
        facts = found["machine"]
        assert facts["commit"] == "0123abc"
        assert set(facts) >= {"device", "driver", "cuda", "torch", "triton", "transformers", "date"}
        speeds = found["bandwidth"]
        assert_positive(speeds, "copy", "read", "best")
        assert speeds["best"] == max(speeds["copy"], speeds["read"])
        assert "left out" not in found


@pytest.mark.long
def test_every_configuration_of_the_step_is_there(dry):
    rows = dry["parts"]["step"]["configurations"]
    assert [Configuration(row["sequences"], row["streams"]) for row in rows] == gpu_step.DRY_CONFIGURATIONS
    best = dry["parts"]["step"]["bandwidth"]["best"]
    for row in rows:
        assert "error" not in row
        assert row["rows"] == row["sequences"] * row["streams"]
        assert row["rows, captured"] == {20: 24}.get(row["rows"], row["rows"])
        assert_positive(row, "ms per step", "ms per step, not captured", "capture seconds", "tokens/s", "floor ms")
        assert_positive(row, "picture seconds", "picture floor seconds", "picture bandwidth_fraction")
        assert row["bandwidth_fraction"] == pytest.approx(row["floor ms"] / row["ms per step"])
        assert row["floor ms"] > 1e3 * row["weight bytes"] / best
        assert row["captures"] == 1
        assert row["same ids captured and not"] == 8
        assert row["picture ids"] == 16
        assert row["picture seconds"] > row["picture floor seconds"]
        assert_positive(row, "picture capture seconds")
        if row["sequences"] <= gpu_step.FEW:
            assert_positive(row, "next picture seconds", "next picture bandwidth_fraction")
            assert row["next picture capture seconds"] == 0
    assert dry["parts"]["step"]["small model"] == [{"ids compared": 3 * 2 * 18}]
    kernels = dry["parts"]["step"]["kernels of a step"]
    assert len(kernels) > 5
    assert all(kernel["calls per step"] > 0 for kernel in kernels)


@pytest.mark.long
def test_every_operation_is_timed_by_every_backend(dry):
    found = dry["parts"]["kernels"]
    shape = gpu_kernels.SHAPES["dry"]
    assert [row["operation"] for row in found["operations"]] == list(gpu_kernels.Operations(shape, 2, "cpu").all())
    matrices = ("q", "gate", "down", "q, k, v", "gate, up", "head")
    assert [(row["weights"], row["operation"], row["rows"]) for row in found["linear"]] == [
        *(("bfloat16", what, rows) for what in matrices for rows in (1, 2)),
        *((name, what, 1) for what in ("gate, up", "down") for name in ("int8", "float8_e4m3fn")),
    ]
    for row in (*found["operations"], *found["linear"]):
        assert "error" not in row
        assert row["backend"] == ("reference" if row.get("weights") == "float8_e4m3fn" else "cpu")
        assert_positive(row, "bytes", "fastdecode", "fastdecode, triton", "torch", "floor", "bandwidth_fraction")
        assert row["distances"].keys() == {"torch", "fastdecode", "triton"}
        assert row["distances"]["triton"] < 1e-5


@pytest.mark.long
def test_rivals_are_measured_beside_ours(dry):
    found = dry["parts"]["rivals"]
    rows = found["rivals"]
    assert [(row["rival"], row["sequences"], row["streams"]) for row in rows] == [
        ("static, compiled", 1, 2),
        ("transformers", 1, 2),
        ("static, autotuned", 1, 2),
        ("transformers", 1, 1),
    ]
    assert found["greedy ids until they part"] == 16
    for row in rows:
        assert_positive(row, "ms per step", "fastdecode ms per step", "timed steps")
        assert math.isfinite(row["set-up seconds"])  # a difference: below 0 where the first steps were fast by chance
        assert row["ratio"] == pytest.approx(row["ms per step"] / row["fastdecode ms per step"])
        picture = row["set-up seconds"] + 16 * row["ms per step"] / 1e3
        assert row["picture seconds, extrapolated"] == pytest.approx(picture)
    assert [row.get("mode") for row in rows] == ["reduce-overhead", None, "max-autotune-no-cudagraphs", None]
    assert rows[0]["cache slots"] == rows[2]["cache slots"] == gpu_step.PROMPT + 1 + 16


@pytest.mark.long
def test_threads_are_compared_with_one(dry):
    rows = dry["parts"]["threads"]["threads"]
    assert [row["thread"] for row in rows] == list(range(8))
    for row in rows:
        assert "error" not in row
        picture = gpu_step.PROMPT + 2 + 16
        assert row["numbers compared"] == 4 * row["groups"] + row["sequences"] * picture


@pytest.mark.long
def test_draws_are_measured(dry):
    rows = dry["parts"]["sample"]["draws"]
    assert [row["filter"] for row in rows] == ["greedy", "top_p 0.9", "top_k 50"]
    for row in rows:
        assert_positive(row, "fastdecode", "transformers", "torch", "softmax", "floor", "bandwidth_fraction")


@pytest.mark.long
def test_one_file_has_every_configuration(dry):
    whole, parts = dry["whole"], dry["parts"]
    counts = {
        ("kernels", "operations"): len(parts["kernels"]["operations"]),
        ("kernels", "linear"): len(parts["kernels"]["linear"]),
        ("step", "configurations"): len(gpu_step.DRY_CONFIGURATIONS),
        ("sample", "draws"): 3,
        ("rivals", "rivals"): 4,
    }
    rows = whole["configurations"]
    assert {key: sum((row["part"], row["table"]) == key for row in rows) for key in counts} == counts
    assert len(rows) == sum(counts.values())
    for row in rows:
        assert_positive(row, "bandwidth_fraction")
    assert [(check["part"], check["status"]) for check in whole["checks"]] == [
        (part, "0") for part in ("threads", "kernels", "step", "sample", "rivals")
    ]
    assert whole["other machines"] == {}


@pytest.mark.long
def test_the_tables_are_whole(dry):
    text = dry["text"]
    assert "commit 0123abc" in text
    for _, _, title, _ in gpu_report.TABLES:
        lines = text.split(f"## {title}\n")[1].split("\n## ")[0].strip().splitlines()
        assert len({line.count("|") for line in lines}) == 1, title
        assert len(lines) > 2
    assert text.count("| tiny bfloat16 |") == len(gpu_step.DRY_CONFIGURATIONS)
    assert "failed" not in text.replace("0 failed", "")
    assert "## Steps and pictures" in dry["said"]


# --- the script -------------------------------------------------------------------------------------------------


def script(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    given = {"env": environment(folder, **more), "capture_output": True, "text": True, "timeout": 100}
    return subprocess.run([str(SCRIPT), *arguments], **given)


def test_a_part_that_is_none_is_named(tmp_path: Path):
    run = script(tmp_path, "--dry-run", "kernel")
    assert run.returncode == 2
    assert "there is no part kernel" in run.stderr


@pytest.mark.long
def test_a_part_that_fails_loses_no_other(tmp_path: Path):
    """An interpreter that fails, then hangs: all parts are begun, and each says how it ended."""
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *gpu_step*) sleep 60;; *gpu_kernels*) echo broken; exit 3;; esac\necho fine\n'
    )
    fake.chmod(0o755)
    run = script(tmp_path, "--dry-run", "kernels", "step", "sample", PYTHON=str(fake), SECONDS_LEFT="17")
    assert run.returncode == 1
    checks = {check["part"]: check for check in gpu_report.read_checks(tmp_path)}
    assert (checks["kernels"]["status"], checks["kernels"]["last line"]) == ("3", "broken")
    assert checks["step"]["status"] == "124"
    assert checks["step"]["last line"].startswith("stopped after ")
    assert checks["sample"]["status"] in ("0", "left out")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_a_sanitizer_without_a_library_is_left_out(tool: str, tmp_path: Path):
    if list((ROOT / "fastdecode" / "lib").glob("libfastdecode_cuda.so*")):
        pytest.skip("the library was built here")
    assert script(tmp_path, "--dry-run", tool).returncode == 0
    (check,) = gpu_report.read_checks(tmp_path)
    assert (check["part"], check["status"]) == (tool, "left out")
    assert check["last line"] == "libfastdecode_cuda.so was not built"


# --- the pieces -------------------------------------------------------------------------------------------------


def test_rows_are_written_as_they_come(tmp_path: Path, capsys):
    results = Results("step", tmp_path, {"device": "NVIDIA H200", "date": "2026-01-02"}, seconds=0)
    assert results.file.name == "step-h200-2026-01-02.json"
    results.add("rows", {"a": 1 / 3})
    assert json.loads(results.file.read_text())["rows"] == [{"a": 1 / 3}]
    assert results.out_of_time("the rest")
    results.seconds = 60
    assert not results.out_of_time("what is short", needed=10)
    assert results.out_of_time("what is long", needed=70)
    assert json.loads(results.file.read_text())["left out"] == ["the rest", "what is long"]
    assert '{"a": 0.3333}' in capsys.readouterr().out


def test_names_of_devices():
    assert slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert slug("dry run on a processor") == "dry"


def test_a_report_is_of_one_device(tmp_path: Path):
    def write(name: str, part: str, device: str, age: int) -> None:
        machine = {"device": device, "date": "2026-01-02", "commit": "abc"}
        file = tmp_path / name
        rows = [{"bandwidth_fraction": 0.5, "model": "7B"}, {"model": "34B", "error": "it | broke"}]
        file.write_text(json.dumps({"part": part, "machine": machine, "configurations": rows}))
        os.utime(file, (1000 - age, 1000 - age))

    write("step-h200-2026-01-02.json", "step", "NVIDIA H200", 3)
    write("kernels-h100-2026-01-02.json", "kernels", "NVIDIA H100", 2)
    write("step-h200-2026-01-03.json", "step", "NVIDIA H200", 1)
    (tmp_path / "step-cpu-2026-01-02.json").write_text('{"step": []}')
    found = gpu_report.whole(tmp_path)
    assert list(found["parts"]) == ["step"]
    assert found["machine"]["device"] == "NVIDIA H200"
    assert [row["model"] for row in found["configurations"]] == ["7B"]
    assert "failed: it \\| broke" in gpu_report.markdown(found)


def test_a_report_of_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_report", str(tmp_path)])
    assert gpu_report.main() == 2
    assert "has no figures" in capsys.readouterr().err


def test_bandwidth_of_this_machine():
    found = bandwidth("cpu", 2**20)
    assert all(1e8 < speed < 1e13 for speed in found.values())


def test_a_time_is_a_median():
    timing = seconds_of(lambda: sum(range(1000)), "cpu")
    assert 0 < timing.seconds < 1
    assert not timing.captured


class Device:
    """Stands in for torch.cuda: events count calls, a graph replays what ran while it was captured."""

    def __init__(self, waits: bool = False, capturable: bool = True) -> None:
        self.waits, self.capturable = waits, capturable
        self.calls, self.captured, self.replays, self.capturing, self.strict = 0, 0, 0, False, False

    def run(self) -> None:
        if (self.waits and self.strict) or (self.capturing and not self.capturable):
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing:
            self.captured += 1
        else:
            self.calls += 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.calls = device.calls

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, later: "Event") -> float:
                return 1000.0 * (later.calls - self.calls)

        class Graph:
            def replay(self) -> None:
                device.replays += 1
                device.calls += device.captured

        @contextmanager
        def graph(_: Graph):
            device.capturing = True
            try:
                yield
            finally:
                device.capturing = False

        def set_mode(mode: str) -> None:
            device.strict = mode == "error"

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "Stream": lambda: stream,
            "stream": lambda _: nullcontext(),
            "current_stream": lambda: stream,
            "synchronize": lambda: None,
            "set_sync_debug_mode": set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_calls_are_captured_and_replayed(monkeypatch: pytest.MonkeyPatch):
    device = Device()
    device.install(monkeypatch)
    timing = seconds_of(device.run, "cuda", calls=7, seconds=0)
    assert timing == (1.0, True)  # an event counts a second for each call
    assert device.replays == 1 + 1 + ROUNDS[0]
    assert not device.strict


@pytest.mark.parametrize("kind", [{"waits": True}, {"capturable": False}], ids=str)
def test_what_cannot_be_captured_is_timed_as_it_is(kind: dict, monkeypatch: pytest.MonkeyPatch):
    device = Device(**kind)
    device.install(monkeypatch)
    assert seconds_of(device.run, "cuda", calls=7, seconds=0) == (1.0, False)
    assert device.replays == 0
    assert not device.strict
    device.run()


@pytest.fixture(scope="module")
def model():
    return random_model("tiny bfloat16")


def test_the_static_rival_draws_what_we_draw():
    """Greedily in float32, from prompts whose streams have different lengths."""
    model = random_model("tiny")
    prompts = text_prompts(model, 2, 12)
    rival = StaticChameleon(model, prompts, 3.0, {"temperature": 0.0}, lambda step: step)
    drawn = fastdecode.generate(
        model,
        prompts,
        attention_mask=torch.ones_like(prompts),
        multimodal_generation_mode="image-only",
        guidance=3.0,
        do_sample=False,
    )
    for _ in range(2):  # its cache begins anew
        assert torch.equal(rival.run(16), drawn[:, 13:29])


def test_keys_and_values_that_a_step_reads(model):
    assert gpu_step.kv_bytes_per_id(model) == 2 * 2 * 32 * 2
    block = Block(3, 1.0, [10, 4], [])
    assert block.kv_ids() == (11 + 12 + 13 + 5 + 6 + 7) / 3  # the new id's too
    floor = gpu_step.floor_of(model, [block], 1e9)
    assert floor == pytest.approx((weight_bytes(model) + 18 * 256) / 1e9)


def test_a_run_ends_after_its_blocks_and_frees_its_pages(model):
    with gpu_step.as_on_a_gpu(), watched("cpu", most=2, steps=4) as watch:
        drawn, _ = gpu_step.draw(model, Configuration(2), watch, Configuration(2).prompts(model))
    assert drawn is None
    assert [block.steps for block in watch.blocks] == [4, 4]
    assert watch.blocks[1].lengths == [length + 4 for length in watch.blocks[0].lengths]
    assert all(i in IMAGE_IDS for block in watch.blocks for ids in block.ids for i in ids)
    assert Decoder(model).captured is None


def test_other_ids_are_not_timed(model):
    def watch(*ids: int, captured: int = 1, rows: int = 1) -> Watch:
        return Watch("cpu", blocks=[Block(len(ids), 1.0, [5] * rows, [[i] for i in ids])], captured_blocks=captured)

    assert gpu_step.check_captured(watch(5, 6, 7), watch(5, 6)) == 2
    with pytest.raises(RuntimeError, match=r"^step 1 drew \[8\], and without a capture \[6\]$"):
        gpu_step.check_captured(watch(5, 6), watch(5, 8))
    for rows in (7, 16, 24):
        with pytest.raises(RuntimeError, match=r"^step 1 drew \[8\]"):
            gpu_step.check_captured(watch(5, 6, rows=rows), watch(5, 8, rows=rows))
    assert gpu_step.check_captured(watch(5, 6, rows=20), watch(5, 8, rows=20)) == 1  # captured as 24 rows
    with pytest.raises(RuntimeError, match="not all image ids"):
        gpu_step.check_captured(watch(5, 3), watch(5, 3))
    with pytest.raises(RuntimeError, match="0 of 1 blocks were captured"):
        gpu_step.check_captured(watch(5), watch(5, captured=0))


def test_a_device_that_draws_other_ids_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_step, "random_model", lambda name: random_model(name, seed=next(seeds)))
    seeds = iter(range(6))
    found = gpu_step.same_as_on_the_cpu("cpu")
    assert found["ids compared"] == 3 * 2 * 18
    assert found["error"] == "Configuration(sequences=2, streams=3): cpu draws as the CPU does for 1 ids of 18"


def test_a_thread_that_finds_something_else_is_told(monkeypatch: pytest.MonkeyPatch):
    """Three threads at once: one as alone, one with another number, one that fails."""
    works = gpu_threads.WORK[:3]
    alone = [torch.tensor([1, 2]), torch.tensor([3.0])]

    def results_of(work: Any, model: int, device: str, rounds: int) -> list[torch.Tensor]:
        assert (device, rounds) == ("cpu", 4)
        assert threading.current_thread() is not threading.main_thread()
        if model == 2:
            raise RuntimeError("it broke")
        return [torch.tensor([1, 2 + model]), torch.tensor([3.0])]

    monkeypatch.setattr(gpu_threads, "results_of", results_of)
    found = [gpu_threads.compared(its, alone) for its in gpu_threads.at_once(works, [0, 1, 2], "cpu", 4)]
    assert found == [
        {"numbers compared": 3},
        {"error": "result 0 of 2 is [1, 3], alone [1, 2]"},
        {"error": "RuntimeError: it broke"},
    ]
    assert len(gpu_threads.WORK) == 8
    rows = [work.configuration.sequences * work.configuration.streams for work in gpu_threads.WORK]
    assert max(rows) <= FEW_ROWS  # with more the bits of a row may depend on the others


def test_captured_steps_that_fail_leave_the_other_figures(model, monkeypatch: pytest.MonkeyPatch):
    def failing(self, *args: Any) -> None:
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr(gpu_step.CapturedSteps, "get", failing)
    with gpu_step.as_on_a_gpu():
        row = gpu_step.measure(model, Configuration(1), "cpu", 1e9)
    assert row["error"] == "captured: RuntimeError: cannot be captured"
    assert row["ms per step, not captured"] > 0
    assert "bandwidth_fraction" not in row


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    operation = gpu_kernels.Operations(gpu_kernels.SHAPES["dry"], 2, "cpu").linear(64, 64, 1)
    right = gpu_kernels.ops.joint_linear
    monkeypatch.setattr(
        gpu_kernels.ops,
        "joint_linear",
        lambda x, w, backend=None: right(x, w, backend=backend) * (1 + (backend is None)),
    )
    with pytest.raises(RuntimeError, match=r"fastdecode is 1(\.0)? from the reference; nothing was timed"):
        gpu_kernels.measure("linear", operation, "cpu", 1e9)


def test_shapes_are_chameleons():
    """Parameters of the whole models, as their names say."""
    for name, billions in (("7B", 7.0), ("34B", 34.3)):
        size = SIZES[name]
        kv = size.hidden // size.heads * (size.kv_heads or size.heads)
        layer = 2 * size.hidden * (size.hidden + kv) + 3 * size.hidden * size.mlp
        assert size.layers * layer + 2 * size.vocab * size.hidden == pytest.approx(billions * 1e9, rel=0.01)
    shape, size = gpu_kernels.SHAPES["7B"], SIZES["7B"]
    assert (shape.hidden, shape.inner, shape.heads, shape.layers) == (size.hidden, size.mlp, size.heads, size.layers)
