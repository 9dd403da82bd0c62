"""Jobs on a real cluster of Ray, on this machine: the same items as in one process, whatever dies meanwhile."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data
import torch
from ray.cluster_utils import Cluster

from fastdecode.jobs import Job, Row, Summary, run
from fastdecode.jobs.rows import seed_of
from fastdecode.ray import Painter, RayMaker
from fastdecode.ray import cluster as of_ray
from fastdecode.ray.maker import in_words, tables
from tests.jobs.job_files import OPTIONS, contents

pytestmark = pytest.mark.xdist_group("ray")

JOB = Job(options=OPTIONS, max_rows=16)


def rows_of(count: int) -> list[Row]:
    return [Row(f"r{n}", f"Draw: In column {n % 3 + 1} a red circle.", seed_of(f"r{n}")) for n in range(count)]


@pytest.fixture
def machines() -> Iterator[Cluster]:
    """A cluster of one machine with two CPUs; this process is connected."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last bits of a painted picture depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Disturbed(RayMaker):
    """``acts[n]`` is called after n items have come."""

    def __init__(self, acts: dict[int, Callable[[], None]], *given, **options) -> None:
        super().__init__(*given, **options)
        self.acts, self.came = dict(acts), list[str]()

    def items(self, rows):
        for items in super().items(rows):
            yield items
            self.came += [item.id for item in items]
            for count in [count for count in self.acts if count <= len(self.came)]:
                self.acts.pop(count)()


def engines() -> list[int]:
    """The processes of the actors of Ray Data."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"ray::" in title and b"MapWorker" in title:
                found.append(int(folder.name))
    return found


def kill_an_engine() -> None:
    deadline = time.monotonic() + 60
    while not engines():
        assert time.monotonic() < deadline, "no engine runs"
        time.sleep(0.05)
    os.kill(engines()[0], signal.SIGKILL)


def disturbed_run(count: int, tmp_path: Path, machines: Cluster) -> Summary:
    """Two engines, of which one is killed; a machine comes, and goes with its engine."""
    made: list[Disturbed] = []
    new = []
    acts = {
        count // 8: kill_an_engine,
        count // 4: lambda: new.append(machines.add_node(num_cpus=1)),
        count // 2: lambda: machines.remove_node(new[0], allow_graceful=False),
    }

    def maker() -> Disturbed:
        made.append(Disturbed(acts, JOB, actors=2, cpus=1, batch=4))
        return made[0]

    done = run(JOB, rows_of(count), tmp_path / "out", maker=maker, progress=False)
    [own] = made
    assert not own.acts, "not everything happened"
    assert sorted(own.came) == sorted({row.id for row in rows_of(count)})
    return done


def test_an_engine_and_a_machine_die_and_the_items_are_those_of_one_process(tmp_path, machines, one_thread):
    done = disturbed_run(48, tmp_path, machines)
    assert (done.made, done.failed, done.there) == (48, 0, 0)
    alone = run(JOB, rows_of(48), tmp_path / "alone", progress=False)
    assert alone.tokens == done.tokens
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.long
def test_300_rows(tmp_path, machines, one_thread):
    done = disturbed_run(300, tmp_path, machines)
    assert (done.made, done.failed, done.there) == (300, 0, 0)
    run(JOB, rows_of(300), tmp_path / "alone", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_dataset_of_ray_and_what_is_refused(tmp_path, machines):
    """`Painter` in ``map_batches``, with engines of one thread each; and all that a cluster can lack."""
    columns = [{"id": row.id, "prompt": row.prompt, "seed": row.seed} for row in rows_of(8)]
    painted = ray.data.from_items(columns).map_batches(
        Painter,
        fn_constructor_kwargs={"job": JOB, "threads": 1},
        batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    found = {row["id"]: row for row in painted.take_all()}
    here = Painter(JOB)(_columns(columns))
    assert len(found) == 8
    for row in here.to_pylist():
        assert list(found[row["id"]]["tokens"]) == row["tokens"]
        assert json.loads(found[row["id"]]["item"])["seed"] == row["seed"]

    refused = partial(run, JOB, rows_of(2), tmp_path / "no", progress=False)
    for sizes, message in (
        ({"cpus": 9}, "no machine of the cluster has 9 CPUs and 0 GPUs for one engine: the largest have 2 CPUs"),
        ({"gpus": 1}, "1 GPUs for each engine, which works on the CPU: give --device cuda too"),
        ({"actors": 3, "cpus": 1}, "3 engines of 1 CPUs and 0 GPUs do not fit: .* have room for 2"),
    ):
        with pytest.raises(ValueError, match=message):
            refused(maker=partial(RayMaker, JOB, **sizes))
    wrong = Job(options={**OPTIONS, "top_q": 1})
    with pytest.raises(ValueError, match=r"the row 'r0' cannot be made: .*top_q"):
        run(wrong, rows_of(4), tmp_path / "no", maker=partial(RayMaker, wrong, cpus=1))
    assert not (tmp_path / "no").exists()


def _columns(rows):
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("error", [MemoryError(), ValueError("the reason why")])
def test_what_an_engine_raises_is_told_in_a_line(machines, error):
    class Broken:
        def __call__(self, batch):
            raise error

    data = ray.data.from_items([{"id": 1}]).map_batches(Broken, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
    with pytest.raises(RuntimeError, match=f"^the cluster failed: {type(error).__name__}(: {error})?$"), in_words():
        list(tables(data))


def test_machines_with_other_versions_are_refused(tmp_path, machines, monkeypatch):
    monkeypatch.setattr(of_ray, "versions", lambda: {"fastdecode": "0.0", "torch": torch.__version__})
    with pytest.raises(ValueError, match=r"the machine [\d.]+ of the cluster has fastdecode .*, and this one has 0\.0"):
        RayMaker(JOB)
    monkeypatch.setattr(of_ray, "versions", lambda: {"torch": "0.0"})
    RayMaker(JOB, any_version=True)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:1",
            r"no cluster of Ray answers at 127\.0\.0\.1:1: .*refused; `ray status` on a machine of it says",
        ),
        ("here", "'here' is no address of a cluster: give HOST:PORT, such as"),
        ("10.0.0.1:x", r"'10\.0\.0\.1:x' is no address of a cluster"),
    ],
)
def test_addresses_that_do_not_answer(address, message):
    with pytest.raises(ValueError, match=message):
        of_ray.connect(address)
    assert not ray.is_initialized()


def test_engines_that_cannot_start_end_the_job_with_a_sentence(tmp_path, machines):
    maker = RayMaker(JOB, actors=1, cpus=1)
    name = next(name for name in maker.expected.files if name.endswith(".safetensors"))
    maker.expected = replace(maker.expected, files={**maker.expected.files, name: "0"})
    message = f"{name} of blocks is not on this machine what it is where the job was begun"
    with pytest.raises(ValueError, match=message):
        run(JOB, rows_of(3), tmp_path / "out", maker=lambda: maker, progress=False)
    assert not (tmp_path / "out").exists()
    maker.check = lambda rows: None  # as if a machine had come later
    with pytest.raises(RuntimeError, match=f"the cluster failed: .*{message}"):
        run(JOB, rows_of(3), tmp_path / "out", maker=lambda: maker, progress=False)
    assert sorted(contents(tmp_path / "out")) == ["manifest.json"]
