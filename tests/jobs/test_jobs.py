"""Jobs: rows in, items out, each made once whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from fastdecode.jobs.items import Item, key_of
from fastdecode.jobs.rows import Row, read_rows, seed_of
from fastdecode.jobs.run import run
from fastdecode.jobs.store import UNFINISHED
from fastdecode.jobs.worker import Job, Worker

parquet = pytest.importorskip("pyarrow.parquet")

JOB = Job(options={"mode": "image-only", "guidance": 3.0, "image": {"temperature": 0.7, "top_p": 0.9}}, max_rows=8)


def write(file, count):
    rows = [{"id": f"r{n}", "prompt": f"Draw: In column {n % 3 + 1} a red circle."} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def contents(folder):
    """All files that a job wrote, by their names; the index as a table."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = file.read_bytes()
    assert not [name for name in found if UNFINISHED in name]
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"id": 1, "prompt": "a", "seed": 5, "top_k": 3, "note": "x"}\n\n{"id": "b", "prompt": "ü"}\n'),
        ("rows.csv", "id,prompt,seed,top_k,note\n1,a,5,3,x\nb,ü,,,\n"),
    ],
)
def test_rows_are_the_same_from_each_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    first, second = read_rows(tmp_path / name)
    assert first == Row("1", "a", 5, options={"top_k": 3}, more={"note": "x"})
    assert second == Row("b", "ü", seed_of("b"))


def test_rows_of_parquet(tmp_path):
    import pyarrow

    columns = {
        "id": ["1", "b"],
        "prompt": ["a", "ü"],
        "seed": [5, None],
        "image": [{"top_p": 0.5, "top_k": None}, None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    first, second = read_rows(tmp_path / "rows.parquet")
    assert first == Row("1", "a", 5, options={"image": {"top_p": 0.5}})
    assert second == Row("b", "ü", seed_of("b"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a"}', "line 2: the id is missing"),
        ('{"id": "0", "prompt": "a"}', "line 2: the id '0' is that of line 1 too"),
        ('{"id": "1"}', "line 2: there is no prompt"),
        ('{"id": "1", "prompt": 3}', "line 2: the prompt is an int: give text"),
        ('{"id": "1", "prompt": "a", "temprature": 3}', "'temprature', which looks like 'temperature' misspelt"),
        ('{"id": "1", "prompt": "a", "seed": 1.5}', "line 2: the seed is 1.5"),
        ('{"id": "1", "prompt": "a", "pictures": 3}', "line 2: pictures is an int"),
        ('{"id": "1", "prompt": "a", "guidance": "much"}', "line 2: guidance is 'much'"),
        ('{"id": "1", "prompt": "a", "image_size": "big"}', "line 2: image_size is "),
        ('{"id": "1", "prompt": "a", "num_return_sequences": 2}', "num_return_sequences', which a row cannot set"),
        ("[1]", "line 2 is a list: give an object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, line, sentence):
    (tmp_path / "rows.jsonl").write_text(f'{{"id": "0", "prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl") as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert sentence in str(caught.value)


def test_ids_that_are_no_names_of_files_get_names_of_their_own():
    names = ["a", "a/b", "a.b", "..", "x" * 300, "ü", ""]
    keys = [key_of(name) for name in names]
    assert keys[0] == "a"
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 100 and not set(key) & set("/.") for key in keys)


def test_a_job_makes_what_the_engine_makes_and_nothing_twice(tmp_path):
    rows = read_rows(write(tmp_path / "rows.jsonl", 6))
    summary = run(JOB, rows, tmp_path / "out")
    assert (summary.made, summary.failed, summary.there) == (6, 0, 0)
    table = parquet.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["id"] for row in table] == [row.id for row in rows]
    worker = Worker(JOB)
    handle = worker.submit(rows[4])
    [picture] = handle.document()
    item = Item("r4", [picture], {"prompt": rows[4].prompt, "seed": rows[4].seed})
    assert item.files()["picture-1.png"][:8] == b"\x89PNG\r\n\x1a\n"
    from PIL import Image

    with Image.open(tmp_path / "out" / table[4]["files"] / "picture-1.png") as made:
        assert made.tobytes() == picture.tobytes()
    before = contents(tmp_path / "out")
    again = run(JOB, rows, tmp_path / "out")
    assert (again.made, again.there) == (0, 6)
    assert contents(tmp_path / "out") == before


def test_shards_hold_the_rows_in_their_order(tmp_path):
    rows = read_rows(write(tmp_path / "rows.jsonl", 5))
    run(JOB, rows, tmp_path / "out", per_shard=2)
    assert sorted(contents(tmp_path / "out")) == [
        "index.parquet",
        "manifest.json",
        *(f"shard-0000{n}.tar" for n in range(3)),
    ]
    with tarfile.open(tmp_path / "out" / "shard-00001.tar") as tar:
        assert tar.getnames() == ["r2.json", "r2.1.png", "r3.json", "r3.1.png"]


def test_a_broken_item_is_recorded_and_the_rest_is_made(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [{"id": f"r{n}", "prompt": "Draw: In column 1 a red circle."} for n in range(3)]
    lines[1] |= {"prompt": "What is in <image>?", "pictures": ["broken.png"]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run(JOB, read_rows(file), tmp_path / "out", per_shard=3)
    assert (summary.made, summary.failed) == (3, 1)
    errors = [row["error"] for row in parquet.read_table(tmp_path / "out" / "index.parquet").to_pylist()]
    assert errors[0] is None
    assert errors[2] is None
    assert "broken.png" in errors[1]


KILLED = """
import sys
from pathlib import Path
from fastdecode.jobs.rows import read_rows
from fastdecode.jobs.run import run
from tests.jobs.test_jobs import JOB
print("begun", flush=True)
run(JOB, read_rows(Path(sys.argv[1])), Path(sys.argv[2]), per_shard=int(sys.argv[3]) or None)
"""


@pytest.mark.parametrize("per_shard", [0, 4])
def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been(tmp_path, per_shard):
    file = write(tmp_path / "rows.jsonl", 18)
    rows = read_rows(file)
    run(JOB, rows, tmp_path / "whole", per_shard=per_shard or None)
    for items in (3, 9):
        command = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "out"), str(per_shard)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            folder = tmp_path / "out" / ("items" if not per_shard else "")
            deadline = time.monotonic() + 120
            wanted = items if not per_shard else items // per_shard + 1
            pattern = "r*" if not per_shard else "shard-*"
            while process.poll() is None and len(list(folder.glob(pattern))) < wanted:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() in (0, -signal.SIGKILL)
    summary = run(JOB, rows, tmp_path / "out", per_shard=per_shard or None)
    assert summary.there > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_job_is_refused_before_anything_changes(tmp_path):
    file = write(tmp_path / "rows.jsonl", 2)
    rows = read_rows(file)
    run(JOB, rows, tmp_path / "out")
    before = contents(tmp_path / "out")
    others = {
        "other parameters": (Job(options={"mode": "image-only"}), rows, None),
        "other rows": (JOB, rows[:1], None),
        "another form of output": (JOB, rows, 2),
    }
    for words, (job, some, per_shard) in others.items():
        with pytest.raises(ValueError, match=words):
            run(job, some, tmp_path / "out", per_shard=per_shard)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"letter\.txt"):
        run(JOB, rows, tmp_path / "foreign")
    assert os.listdir(tmp_path / "foreign") == ["letter.txt"]
    assert contents(tmp_path / "out") == before


def test_an_item_that_lacks_a_part_of_a_file_is_made_again(tmp_path):
    rows = read_rows(write(tmp_path / "rows.jsonl", 4))
    run(JOB, rows, tmp_path / "out")
    before = contents(tmp_path / "out")
    items = tmp_path / "out" / "items"
    os.truncate(items / "r0" / "picture-1.png", 9)
    os.truncate(items / "r1" / "item.json", 9)
    (items / "r2" / "picture-1.png").unlink()
    summary = run(JOB, rows, tmp_path / "out")
    assert (summary.made, summary.there) == (3, 1)
    assert contents(tmp_path / "out") == before
