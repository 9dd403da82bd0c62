"""The probe of read bandwidth, and the compiling that it needs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import compiling, read_bandwidth
from benchmarks.read_bandwidth import NEVER, Floors, Memory, ways


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(3 << 20, threads=2, rounds=1)


def test_every_way_has_a_speed(memory: Memory):
    assert memory.size == 4 << 20
    assert set(memory.speeds) == set(ways())
    assert all(1e6 < speed < 1e13 for speed in memory.speeds.values())


def test_reading_uses_the_best_ways(memory: Memory):
    speeds = sorted(memory.speeds.values(), reverse=True)
    assert [memory.speeds[way] for way in memory.best] == speeds[: Memory.KEPT]
    assert 1e6 < memory.read(1) < 1e13


def test_a_floor_is_that_of_the_memory_around_a_run():
    speeds = iter((100, 300, 50, 350))
    floors = Floors(SimpleNamespace(read=lambda: next(speeds)), 400)
    for seconds in (4.0, 8.0):
        floors.begin()
        floors.end(seconds)
    assert floors.row() == {
        "weight bytes": 400,
        "read bandwidth GB/s": 200 / 1e9,
        "floor ms": 2000,
        "bandwidth_fraction": (2 / 4 + 2 / 8) / 2,
        "shares of the repeats": [2 / 8, 2 / 4],
    }


def test_ways_differ_and_say_what_they_are():
    every = list(ways())
    assert len({*every}) == len({str(way) for way in every}) == len(every)
    for what in ("2 MB pages", "4 KB pages", "non-temporal", "8 streams", "no prefetch", "stretches of 1024 KB"):
        assert any(what in str(way) for way in every)
    assert all((way.ahead == 0) == (way.hint == NEVER) for way in every)


def test_caches_of_this_machine():
    assert 0 <= read_bandwidth.last_level_bytes() < 2**40


@pytest.mark.parametrize("options", [{"size": 0}, {"threads": 0}, {"rounds": 0}])
def test_nothing_to_measure_is_an_error(options: dict):
    with pytest.raises(ValueError, match="must all be 1 or more"):
        Memory(**{"size": 1, "threads": 1, **options})


def test_a_source_is_compiled_once(tmp_path: Path):
    source = tmp_path / "one.cpp"
    source.write_text("int main() { return 0; }\n")
    made = compiling.compiled(source, folder=tmp_path)
    stamp = made.stat().st_mtime_ns
    assert compiling.compiled(source, folder=tmp_path) == made
    assert made.stat().st_mtime_ns == stamp
    assert compiling.compiled(source, ("-DOTHER",), folder=tmp_path) != made
    source.write_text("int main() { return 1; }\n")
    assert compiling.compiled(source, folder=tmp_path) != made


def test_what_the_compiler_says_is_in_the_error(tmp_path: Path):
    source = tmp_path / "wrong.cpp"
    source.write_text("int main() { return nothing; }\n")
    with pytest.raises(RuntimeError, match=r"g\+\+ cannot compile wrong\.cpp:(?s:.*)nothing"):
        compiling.compiled(source, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [source]


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"read_bandwidth\.cpp must be compiled, and there is no g\+\+"):
        compiling.compiled(Path(read_bandwidth.__file__).with_suffix(".cpp"), folder=tmp_path)
