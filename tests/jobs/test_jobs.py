"""A job: items of rows, each made once, whatever stops it."""

import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import fastdecode
from fastdecode.jobs import Job, Row, read_rows, run
from fastdecode.jobs.files import UNFINISHED, CannotWrite
from fastdecode.jobs.items import key_of
from fastdecode.jobs.worker import Worker

parquet = pytest.importorskip("pyarrow.parquet")

OPTIONS = {
    "multimodal_generation_mode": "image-only",
    "guidance": 3.0,
    "image": {"temperature": 0.7, "top_p": 0.9},
}
JOB = Job(options=OPTIONS, max_rows=8)


LOADED = {}


@pytest.fixture(autouse=True)
def load_once(monkeypatch):
    """The tests of this process share their models."""

    def load(name, **options):
        key = (name, tuple(options.items()))
        if key not in LOADED:
            LOADED[key] = fastdecode.load(name, **options)
        return LOADED[key]

    monkeypatch.setattr("fastdecode.jobs.worker.load", load)


def by(items):
    """A maker whose items these are."""
    return lambda: SimpleNamespace(items=items, check=lambda rows: None)


def write(file, count):
    rows = [{"id": f"r{n}", "prompt": f"Draw: In column {n % 3 + 1} a red circle."} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def rows(tmp_path):
    return read_rows(write(tmp_path / "rows.jsonl", 6))


def contents(folder):
    """All files that a job wrote, by their names."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not [name for name in found if UNFINISHED in name]
    return found


def index(folder):
    return parquet.read_table(folder / "index.parquet").to_pylist()


def counts(summary):
    return summary.made, summary.failed, summary.there, summary.failed_before


def test_items_are_what_the_engine_makes_alone(rows, tmp_path):
    assert counts(run(JOB, rows, tmp_path / "out")) == (6, 0, 0, 0)
    model, processor = fastdecode.load("blocks")
    table = index(tmp_path / "out")
    assert [each["id"] for each in table] == [row.id for row in rows]
    for row, each in zip(rows, table, strict=True):
        engine = fastdecode.Engine(model, processor, deterministic=True)
        handle = engine.submit(row.prompt, seed=row.seed, **OPTIONS)
        [picture] = handle.document()
        file = tmp_path / "out" / each["files"] / "picture-1.png"
        with Image.open(file) as made:
            assert made.tobytes() == picture.tobytes()
            told = json.loads(made.text["fastdecode"])
        assert (told["id"], told["prompt"], told["seed"], told["picture"]) == (row.id, row.prompt, row.seed, 1)
        assert (each["prompt"], each["seed"], each["error"]) == (row.prompt, row.seed, None)
        assert (each["tokens"], each["pictures"], each["text"]) == (len(handle.tokens), ["picture-1.png"], "")
        facts = json.loads((file.parent / "item.json").read_text())
        assert facts["parts"] == [{"picture": "picture-1.png", "bytes": file.stat().st_size}]


@pytest.mark.parametrize("per_tar", [None, 4])
def test_nothing_is_made_twice(rows, tmp_path, per_tar):
    def make(todo):
        raise AssertionError("there is nothing to be made")

    run(JOB, rows, tmp_path / "out", per_tar=per_tar)
    before = contents(tmp_path / "out")
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=per_tar, maker=by(make))) == (0, 0, 6, 0)
    assert contents(tmp_path / "out") == before


def test_tars_hold_the_rows_in_their_order(rows, tmp_path):
    run(JOB, rows[:5], tmp_path / "out", per_tar=2)
    run(JOB, rows[:5], tmp_path / "folders")
    tars = [f"items-0000{n}.tar" for n in range(3)]
    assert sorted(contents(tmp_path / "out")) == ["index.parquet", *tars, "manifest.json"]
    assert [each["files"] for each in index(tmp_path / "out")] == [tars[n // 2] for n in range(5)]
    with tarfile.open(tmp_path / "out" / tars[1]) as tar:
        assert tar.getnames() == ["r2.json", "r2.1.png", "r3.json", "r3.1.png"]
        assert {member.mtime for member in tar} == {0}
        picture = tar.extractfile("r3.1.png").read()
    assert picture == (tmp_path / "folders" / "items" / "r3" / "picture-1.png").read_bytes()
    assert [each["pictures"] for each in index(tmp_path / "out")] == [[f"r{n}.1.png"] for n in range(5)]


def test_items_in_tars_have_their_pictures_in_order(tmp_path):
    """More than nine of them: 10 comes after 9, not after 1."""
    from fastdecode.jobs.items import Item

    picture = Image.new("RGB", (4, 4))

    def make(todo):
        yield [Item(row.id, ["a", *[picture] * 11], {"prompt": row.prompt, "seed": row.seed}) for row in todo]

    run(JOB, [Row("a", "", 0)], tmp_path / "out", per_tar=1, maker=by(make))
    with tarfile.open(tmp_path / "out" / "items-00000.tar") as tar:
        assert tar.getnames() == ["a.json", *(f"a.{n}.png" for n in range(1, 12))]
    [facts] = index(tmp_path / "out")
    assert facts["pictures"] == [f"a.{n}.png" for n in range(1, 12)]
    assert facts["text"] == "a"


def test_ids_that_cannot_be_names_of_files_get_others():
    names = ["a", "a/b", "a.b", "a b", "..", ".", "x" * 300, "ü", "é", "e\u0301", "a~b", UNFINISHED]
    keys = [key_of(name) for name in names]
    assert keys[0] == "a"
    assert len({key.lower() for key in keys}) == len(names)
    assert all(key.isascii() and len(key) <= 100 and not set(key) & set("/. ") for key in keys)


# --- what stops a job -------------------------------------------------------------------------------------------


KILLED = """
import sys
from pathlib import Path
from fastdecode.jobs import read_rows, run
from tests.jobs.test_jobs import JOB
run(JOB, read_rows(Path(sys.argv[1])), Path(sys.argv[2]), per_tar=int(sys.argv[3]) or None)
"""


def start(file, out, per_tar):
    """A process that does the job."""
    return subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(out), str(per_tar)])


def there(out):
    """How much is in ``out``: items as folders, or bytes of parts of tars."""
    folder = out / "items"
    names = os.listdir(folder) if folder.is_dir() else []
    parts = sum(file.stat().st_size for file in out.glob(".items-*.tar") if file.exists())
    return parts + len([name for name in names if not name.startswith(UNFINISHED)])


def wait_for(ready, process):
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("per_tar", [0, 5])
def test_a_killed_job_ends_as_if_it_had_not_been(tmp_path, per_tar):
    file, out = write(tmp_path / "rows.jsonl", 18), tmp_path / "out"
    rows = read_rows(file)
    run(JOB, rows, tmp_path / "whole", per_tar=per_tar or None)
    for tars in (0, 1):
        before = there(out)
        with start(file, out, per_tar) as process:
            wait_for(lambda at=before, n=tars: (out / f"items-0000{n - 1}.tar").exists() or there(out) > at, process)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "index.parquet").exists()
    summary = run(JOB, rows, out, per_tar=per_tar or None)
    assert summary.there > 0
    assert summary.made > 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("per_tar", [0, 40])
def test_a_job_of_300_rows_is_killed_five_times_at_random(tmp_path, per_tar):
    file, out = write(tmp_path / "rows.jsonl", 300), tmp_path / "out"
    rows = read_rows(file)
    run(JOB, rows, tmp_path / "whole", per_tar=per_tar or None)
    moments = random.Random(17)
    for _ in range(5):
        with start(file, out, per_tar) as process:
            begun = out / "manifest.json"
            wait_for(begun.exists, process)
            time.sleep(moments.uniform(3.0, 8.0))  # loading takes seconds
            process.kill()
        assert process.returncode == -signal.SIGKILL, "the job ended before it was killed: give it more rows"
    made = []

    def counted(todo):
        for items in Worker(JOB).items(todo):
            made.extend(item.id for item in items)
            yield items

    summary = run(JOB, rows, out, per_tar=per_tar or None, maker=by(counted))
    assert summary.there > 0
    assert len(made) == len(set(made)) == 300 - summary.there
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("per_tar", [None, 3])
def test_an_item_that_lacks_a_part_of_a_file_is_made_again(rows, tmp_path, per_tar):
    run(JOB, rows, tmp_path / "out", per_tar=per_tar)
    before = contents(tmp_path / "out")
    if per_tar is None:
        items = tmp_path / "out" / "items"
        os.truncate(items / "r0" / "picture-1.png", 9)
        os.truncate(items / "r1" / "item.json", 9)
        (items / "r2" / "picture-1.png").unlink()
    else:
        file = tmp_path / "out" / "items-00000.tar"
        os.truncate(file, file.stat().st_size // 3)  # one item of three is whole
    made = 3 if per_tar is None else 2
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=per_tar)) == (made, 0, 6 - made, 0)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("torn", [0, 1, 511, 512, 700, 3000, 10_000])
def test_the_torn_end_of_a_part_of_a_tar_does_not_count(rows, tmp_path, torn):
    """A process that is killed while it adds an item leaves any number of its bytes."""
    run(JOB, rows, tmp_path / "whole", per_tar=6)

    def two_and_no_more(todo):
        for number, items in enumerate(Worker(JOB).items(todo[:3])):
            yield items
            if number == len(todo):
                return
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(JOB, rows, tmp_path / "out", per_tar=6, maker=by(two_and_no_more))
    part = tmp_path / "out" / ".items-00000.tar"
    size = part.stat().st_size
    with open(part, "ab") as opened:
        opened.write((tmp_path / "whole" / "items-00000.tar").read_bytes()[:torn].replace(b"r0", b"r5"))
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=6)) in [(3, 0, 3, 0), (2, 0, 4, 0)]
    assert size > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not part.exists()


@pytest.mark.parametrize("per_tar", [None, 2])
def test_a_full_disk_ends_the_job_with_a_sentence(rows, tmp_path, monkeypatch, per_tar):
    left = [7 if per_tar is None else 3]

    def full(file, content):
        left[0] -= 1
        if left[0] < 0:
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        file.write(content)

    run(JOB, rows, tmp_path / "whole", per_tar=per_tar)
    monkeypatch.setattr("fastdecode.jobs.files._write_all", full)
    with pytest.raises(CannotWrite, match="cannot be written: No space left on device; the items that are there stay"):
        run(JOB, rows, tmp_path / "out", per_tar=per_tar)
    monkeypatch.undo()
    contents(tmp_path / "out")  # nothing is unfinished
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=per_tar)) == (3, 0, 3, 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_processes_do_not_work_on_one_job(rows, tmp_path):
    def make(todo):
        with pytest.raises(ValueError, match=r"another process works on the job in .*out: wait for it"):
            run(JOB, rows, tmp_path / "out", maker=by(make))
        yield from Worker(JOB).items(todo)

    assert counts(run(JOB, rows, tmp_path / "out", maker=by(make))) == (6, 0, 0, 0)


# --- items that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tar", [None, 2])
def test_a_broken_item_is_recorded_and_made_again_when_asked(tmp_path, per_tar):
    good = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(good, "png")
    (tmp_path / "broken.png").write_bytes(good.getvalue()[:90])
    prompts = ["Draw: In column 1 a red circle."] * 4
    lines = [{"id": f"r{n}", "prompt": prompt} for n, prompt in enumerate(prompts)]
    lines[1] |= {"prompt": "Paint the circle of <image> green.", "pictures": ["broken.png"]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, rows = tmp_path / "out", read_rows(file)
    assert counts(run(JOB, rows, out, per_tar=per_tar)) == (4, 1, 0, 0)
    errors = [each["error"] for each in index(out)]
    assert [error is None for error in errors] == [True, False, True, True]
    assert "broken.png' is not a picture that can be read" in errors[1]
    before = contents(out)
    assert counts(run(JOB, rows, out, per_tar=per_tar)) == (0, 0, 4, 1)
    assert counts(run(JOB, rows, out, per_tar=per_tar, retry_failed=True)) == (1, 1, 3, 0)
    assert contents(out) == before


def test_an_error_that_is_no_items_own_ends_the_job_and_records_nothing(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdecode.models.documents.decode_pictures", out_of_memory)
    monkeypatch.setattr("fastdecode.generation.handle.to_documents", out_of_memory)
    with pytest.raises(MemoryError):
        run(JOB, rows, tmp_path / "out")
    monkeypatch.undo()
    assert counts(run(JOB, rows, tmp_path / "out")) == (6, 0, 0, 0)


def out_of_memory(*_, **__):
    raise MemoryError("too large")


# --- what is refused --------------------------------------------------------------------------------------------


def test_another_job_is_refused_before_anything_changes(rows, tmp_path, monkeypatch):
    run(JOB, rows, tmp_path / "out")
    before = contents(tmp_path / "out")
    others = {
        "other parameters: parameters.options.guidance was 3.0 and is 2.0": (
            Job(options={**OPTIONS, "guidance": 2.0}),
            rows,
            None,
        ),
        "other parameters: parameters.seed was 0 and is 1": (Job(options=OPTIONS, seed=1), rows, None),
        "another model or other weights: model.dtype was not given and is": (
            Job(options=OPTIONS, dtype="bfloat16"),
            rows,
            None,
        ),
        "other rows: input.rows was 6 and is 1": (JOB, rows[:1], None),
        "another form of output: output.items per tar was not given and is 2": (JOB, rows, 2),
    }
    for words, (job, some, per_tar) in others.items():
        with pytest.raises(ValueError, match=words):
            run(job, some, tmp_path / "out", per_tar=per_tar)
    monkeypatch.setattr("fastdecode.jobs.manifest.versions", lambda: {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"other versions: versions.fastdecode was .* or give --any-version"):
        run(JOB, rows, tmp_path / "out")
    assert run(JOB, rows, tmp_path / "out", any_version=True).there == 6
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("letter.txt", "mine", r"holds letter.txt and no manifest.json, so it is of no job"),
        ("manifest.json", "{", r"does not say what job this is"),
        ("manifest.json", "{}", r"is not as this version of fastdecode writes it"),
    ],
)
def test_a_folder_of_something_else_is_refused(rows, tmp_path, name, content, sentence):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        run(JOB, rows, out)
    assert os.listdir(out) == [name]
    assert (out / name).read_text() == content


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": 1e400}, "guidance"),
        ({"image": {"top_p": 2}}, "top_p"),
        ({"multimodal_generation_mode": "draw"}, "multimodal_generation_mode='draw' is unknown"),
        ({"task": "paint"}, "paint"),
        ({"image_size": (7, 7)}, "7"),
        ({"top_k": "many"}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"text": {"top_k": 1}}, "text says how text is sampled, and image-only writes none"),
    ],
)
def test_options_that_no_row_can_have_are_refused_before_anything_is_written(tmp_path, options, sentence):
    rows = [Row(f"r{n}", "Draw: In column 1 a red circle.", n, options=options) for n in range(4)]
    good = [Row("good", "Draw: In column 1 a red circle.", 9)]
    for some in (rows, rows[:1], good + rows):
        with pytest.raises(ValueError, match="the row 'r0' cannot be made: ") as caught:
            run(JOB, some, tmp_path / "out")
        assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_of_a_row_go_before_those_of_the_job():
    worker = Worker(Job(options=OPTIONS, usual={"text": {"top_p": 0.5}}))
    prompt = "Build a tree in column 2."
    _, options = worker.request(Row("a", prompt, 3, options={"temperature": 0.0, "max_new_tokens": 7}))
    assert options == {
        "multimodal_generation_mode": "image-only",
        "guidance": 3.0,
        "image": {"temperature": 0.0, "top_p": 0.9},
        "max_new_tokens": 7,
        "seed": 3,
    }
    mode = {"multimodal_generation_mode": "text-only"}
    inputs, options = worker.request(Row("a", prompt, 3, options=mode))
    room = worker.model.config.max_position_embeddings - inputs["input_ids"].shape[1]
    assert options == {**mode, "guidance": 3.0, "text": {"top_p": 0.5}, "max_new_tokens": room, "seed": 3}


def test_shards_share_the_rows(rows, tmp_path):
    found = []
    for number in (1, 2, 3, 4):
        run(JOB, rows, tmp_path / "out", shard=(number, 4))
        found.append([each["id"] for each in index(tmp_path / "out" / f"shard-{number}-of-4")])
    assert found == [["r0", "r4"], ["r1", "r5"], ["r2"], ["r3"]]
    run(JOB, rows, tmp_path / "whole")
    whole, part = tmp_path / "whole" / "items", tmp_path / "out" / "shard-2-of-4" / "items"
    assert contents(part / "r5") == contents(whole / "r5")
    with pytest.raises(ValueError, match="shard 7 of 7 has no rows"):
        run(JOB, rows, tmp_path / "out", shard=(7, 7))


# --- rows with faults of their own, and options that cannot be followed -----------------------------------------


def test_damaged_pictures_stop_no_job_however_many(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    pictures = ["bad.png"] * 4 + ["good.png"]
    rows = [Row(f"r{n}", "<image>Draw it.", 1, (name,), folder=tmp_path) for n, name in enumerate(pictures)]
    summary = run(JOB, rows, tmp_path / "out")
    assert (summary.made, summary.failed) == (5, 4)
    assert summary.first_error.startswith("'r0': ValueError: the picture ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": {"temperature": -1}}, "the row 'bad' cannot be made: .*temperature"),
        ({"multimodal_generation_mode": "image_only"}, "the row 'bad' cannot be made: .*image_only"),
        ({"max_new_tokens": "5"}, "the row 'bad' cannot be made: .*max_new_tokens"),
    ],
)
def test_one_row_with_wrong_options_is_told_before_anything_is_written(rows, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(JOB, [*rows, Row("bad", "x", 1, options=options)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_is_there_only_with_all_its_items(rows, tmp_path, monkeypatch):
    bad = Row("bad", "<image>", 1, (str(tmp_path / "bad.png"),))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert run(JOB, [*rows, bad], tmp_path / "out").failed == 1
    assert (tmp_path / "out" / "index.parquet").exists()

    def interrupted(self, ids):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdecode.jobs.folders.Folders.forget", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(JOB, [*rows, bad], tmp_path / "out", retry_failed=True)
    assert not (tmp_path / "out" / "index.parquet").exists()


def test_where_folders_cannot_be_locked_a_file_is(rows, tmp_path, monkeypatch):
    flock = fcntl.flock

    def only_files(number, how):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return flock(number, how)

    monkeypatch.setattr("fastdecode.jobs.manifest.fcntl.flock", only_files)

    def make(todo):
        with pytest.raises(ValueError, match=r"another process works on the job in .*out: wait for it"):
            run(JOB, rows, tmp_path / "out", maker=by(make))
        yield from Worker(JOB).items(todo)

    assert counts(run(JOB, rows, tmp_path / "out", maker=by(make))) == (6, 0, 0, 0)
    assert counts(run(JOB, rows, tmp_path / "out")) == (0, 0, 6, 0)
    contents(tmp_path / "out")  # nothing is left


def test_an_item_that_is_another_ones_is_made_again(rows, tmp_path):
    run(JOB, rows, tmp_path / "out")
    before = contents(tmp_path / "out")
    items = tmp_path / "out" / "items"
    shutil.rmtree(items / "r0")
    shutil.copytree(items / "r1", items / "r0")
    assert counts(run(JOB, rows, tmp_path / "out")) == (1, 0, 5, 0)
    assert contents(tmp_path / "out") == before


def test_a_folder_whose_name_is_not_utf_8(rows, tmp_path):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff"))
    assert counts(run(JOB, rows, out)) == (6, 0, 0, 0)
    assert (out / "index.parquet").exists()


def test_a_users_file_is_not_taken_for_a_draft(rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{UNFINISHED}thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds \.unfinished-thesis\.txt and no manifest\.json"):
        run(JOB, rows, tmp_path / "out")
    assert (tmp_path / "out" / f"{UNFINISHED}thesis.txt").read_text() == "mine"
