"""``fastdecode run``: the command, its messages and its exit statuses. `tests/jobs` has what a job does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("pyarrow")

from fastdecode.cli import main
from fastdecode.guidance import Guidance
from fastdecode.jobs import Summary

OPTIONS = ["--mode", "image-only", "--guidance", "3", "--max-rows", "8"]


@pytest.fixture
def rows(tmp_path):
    lines = [{"id": f"r{n}", "prompt": f"Draw: In column {n % 3 + 1} a red circle."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


def test_rows_become_items_once(rows, tmp_path, capsys):
    command = ["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("4 items made in ")
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["failed"], told["there"]) == (0, 0, 4)
    facts = json.loads((tmp_path / "out" / "items" / "r2" / "item.json").read_text())
    assert facts["parts"] == [
        {"picture": "picture-1.png", "bytes": (tmp_path / "out" / "items" / "r2" / "picture-1.png").stat().st_size}
    ]


def test_shards_of_the_rows_are_jobs_of_their_own(rows, tmp_path, capsys):
    command = ["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS]
    assert main([*command, "--shard", "2/3"]) == 0
    assert [each.name for each in (tmp_path / "out" / "shard-2-of-3" / "items").iterdir()] == ["r1"]
    assert "1 item made" in (said := capsys.readouterr().out)
    assert said.endswith(f"written to {tmp_path / 'out' / 'shard-2-of-3'}\n")
    for shard, sentence in (
        ("1/9", "out holds shard-2-of-3, which is none of 9 shards: name another output folder"),
        ("9/9", "shard 9 of 9 has no rows"),
    ):
        assert main([*command, "--shard", shard]) == 2
        assert sentence in capsys.readouterr().err
    assert main(command) == 2
    assert "out holds shard-2-of-3 and no manifest.json" in capsys.readouterr().err
    rows.write_text('{"id": "z", "prompt": "x"}\n' + rows.read_text())
    assert main([*command, "--shard", "1/3"]) == 2
    assert "shard-2-of-3 holds a job with other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "is not a number of at least 0"),
        (["--shard", "0/3"], "'0/3' is not a shard: give I/N such as 1/8"),
        (["--guidance", "much"], "'much' is not understood"),
        (["--text-top-p", "0.5"], "--text-top-p is for text, and --mode image-only makes none"),
        (["--task", "infill"], "infill"),
        (["--device", "cuda:99"], "there is no such GPU"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(rows, tmp_path, capsys, arguments, sentence):
    assert main(["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_items_that_fail_are_told_by_the_exit_status(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [{"id": "a", "prompt": "Draw: a red circle."}, {"id": "b", "prompt": "<image>", "pictures": "broken.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["run", "--input", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out"), *OPTIONS]
    for more, made in (([], 2), ([], 0), (["--retry-failed"], 1)):
        assert main([*command, *more, "--json"]) == 3
        said = capsys.readouterr()
        assert json.loads(said.out)["made"] == made
        assert said.err.endswith("index.parquet says why each did, and --retry-failed tries again\n")
        assert "fastdecode: 1 item failed, 'b': ValueError: the picture '" in said.err


def test_like_is_for_tasks(rows, tmp_path, capsys):
    assert main(["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS, "--like", "Anole"]) == 2
    assert capsys.readouterr().err == (
        "fastdecode: --like needs a task, such as --task text-to-image, or a column task\n"
    )


def test_a_model_that_is_not_there_is_no_fault_of_the_output(rows, tmp_path, capsys):
    command = ["run", "--input", str(rows), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "nowhere")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "nowhere is neither a folder here nor a repository" in error
    assert "cannot be written" not in error
    assert not (tmp_path / "out").exists()


def test_rows_without_a_task_have_what_generate_has(rows, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastdecode.jobs.run", lambda job, *_, **__: seen.append(job) or Summary(0, 0, 0, 0, None, 0, 1.0)
    )
    command = ["run", "--input", str(rows), "-o", str(tmp_path / "out")]
    assert main([*command, "--temperature", "0.5", "--image-top-k", "3", "--guidance", "none"]) == 0
    [job] = seen
    assert job.usual["multimodal_generation_mode"] == "interleaved-text-image"
    assert job.usual["text"] == job.usual["image"] == {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert job.options == {"temperature": 0.5, "image": {"top_k": 3}, "guidance": Guidance.none()}


def test_a_row_of_a_missing_picture_is_refused(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("id,prompt,pictures\na,What is this?,nowhere.png\n")
    assert main(["run", "--input", str(tmp_path / "rows.csv"), "-o", str(tmp_path / "out")]) == 2
    assert "nowhere.png': there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_and_goes_on(tmp_path, number):
    lines = [{"id": f"r{n}", "prompt": f"Draw: In column {n % 3 + 1} a red circle."} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "fastdecode", "run", "--input", str(tmp_path / "rows.jsonl")]
    command += ["-o", str(tmp_path / "out"), *OPTIONS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        items = tmp_path / "out" / "items"
        while not items.is_dir() or len([name for name in os.listdir(items) if not name.startswith(".")]) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.endswith("fastdecode: stopped; the same command goes on from here\n")
    there = [name for name in os.listdir(tmp_path / "out" / "items") if name.startswith(".")]
    assert not there
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["there"] >= 2
    assert told["made"] + told["there"] == 40


def test_sizes_of_engines_are_for_clusters(rows, tmp_path, capsys):
    command = ["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS]
    assert main([*command, "--actors", "2"]) == 2
    assert capsys.readouterr().err == "fastdecode: --actors is for engines on a cluster: give --ray too\n"


def test_without_ray_the_message_says_what_to_install(rows, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray" or name.startswith("fastdecode.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "--input", str(rows), "-o", str(tmp_path / "out"), *OPTIONS, "--ray"]) == 2
    assert "run needs the package ray, which is not installed: pip install 'fastdecode[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
