"""How many engines a cluster has room for, and what each takes."""

import pytest

from fastdecode.ray import cluster
from fastdecode.ray.cluster import Sizes, sizes

CPUS = [{"CPU": 8.0}, {"CPU": 4.0}, {}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]


def having(monkeypatch, machines):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}})
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)


@pytest.mark.parametrize(
    ("machines", "asked", "found"),
    [
        (CPUS, (None, None, None, None), Sizes(2, 4, 0)),
        (CPUS, (None, None, None, "cpu"), Sizes(2, 4, 0)),
        (CPUS, (4, None, None, None), Sizes(4, 2, 0)),
        (CPUS, (None, 2, None, None), Sizes(6, 2, 0)),
        (CPUS, (3, 3, None, None), Sizes(3, 3, 0)),
        (GPUS, (None, None, None, None), Sizes(3, 2, 0)),
        (GPUS, (None, None, None, "cuda"), Sizes(6, 1, 1)),
        (GPUS, (None, 4, None, "cuda"), Sizes(4, 4, 1)),
        (GPUS, (None, None, 0.5, "cuda"), Sizes(10, 1, 0.5)),
        (GPUS, (2, None, 2, "cuda:0"), Sizes(2, 1, 2)),
    ],
)
def test_engines_fill_the_cluster(monkeypatch, machines, asked, found):
    having(monkeypatch, machines)
    assert sizes(*asked) == found


@pytest.mark.parametrize(
    ("machines", "asked", "message"),
    [
        ([{}], (None, None, None, None), "no machine of the cluster has CPUs to give"),
        (CPUS, (None, 9, None, None), "has 9 CPUs and 0 GPUs for one engine: the largest have 8 CPUs and 0 GPUs"),
        (CPUS, (None, None, None, "cuda"), "has 1 CPUs and 1 GPUs for one engine: the largest have 8 CPUs and 0 GPUs"),
        (CPUS, (7, 2, None, None), "7 engines of 2 CPUs and 0 GPUs do not fit: .* room for 6"),
        (GPUS, (None, None, 1, None), "1 GPUs for each engine, which works on the CPU: give --device cuda too"),
        (GPUS, (None, None, 0, "cuda"), "no GPU for each engine, which works on cuda: give --gpus 1"),
    ],
)
def test_what_the_cluster_cannot_give_is_told(monkeypatch, machines, asked, message):
    having(monkeypatch, machines)
    with pytest.raises(ValueError, match=message):
        sizes(*asked)
