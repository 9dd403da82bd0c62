"""Whatever stops a job, and whatever happens to its files: the next run goes on, and ends with the same files."""

import errno
import fcntl
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_files import JOB, by, contents, counts, write

from fastdecode.jobs import Row, read_rows, run
from fastdecode.jobs.files import UNFINISHED, CannotWrite, write_folder
from fastdecode.jobs.worker import Worker

KILLED = """
import sys
from pathlib import Path
from fastdecode.jobs import read_rows, run
from tests.jobs.job_files import JOB
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


@pytest.mark.parametrize("torn", [0, 1, 511, 512, 700, 1536, 2500])
def test_the_torn_end_of_a_part_of_a_tar_does_not_count(rows, tmp_path, torn):
    """A process that is killed while it adds an item leaves any number of its bytes."""
    run(JOB, rows, tmp_path / "whole", per_tar=6)

    def three_and_no_more(todo):
        yield from Worker(JOB).items(todo[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(JOB, rows, tmp_path / "out", per_tar=6, maker=by(three_and_no_more))
    part = tmp_path / "out" / ".items-00000.tar"
    whole = (tmp_path / "whole" / "items-00000.tar").read_bytes()
    with open(part, "ab") as opened:
        opened.write(whole[whole.index(b"r5.json") :][:torn])
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=6)) == (3, 0, 3, 0)
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


def test_ctrl_c_when_a_folder_has_just_been_made_leaves_nothing(tmp_path, monkeypatch):
    make = os.mkdir

    def made_and_stopped(path, *more):
        make(path, *more)
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdecode.jobs.files.os.mkdir", made_and_stopped)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "item", {"item.json": b"{}"})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
