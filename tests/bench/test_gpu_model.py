"""The model of a GPU step: what it records is what a step launches, and it says that it is a model."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import jit

from benchmarks import gpu_model, recorded_step
from benchmarks.gpu_devices import DEVICES
from benchmarks.gpu_model import HEADING, START, bytes_time, cycles_of, time_of
from benchmarks.gpu_work import WORK, Work, work_of
from benchmarks.models import IMAGE_IDS, SIZES
from benchmarks.recorded_step import Launch, Memory, Step, record, step_of
from fastdecode.ops import attend
from fastdecode.ops.backends import _interpreted
from fastdecode.triton_kernels.disassemble import Listing

pytestmark = pytest.mark.skipif(_interpreted(), reason="the interpreter compiles nothing")

H200 = DEVICES["h200"]
TINY = "tiny bfloat16"


@pytest.fixture(scope="module")
def step() -> Step:
    return step_of(TINY, 2, "bf16", H200)


def of_kernels(launches) -> Counter[str]:
    return Counter(launch.name for launch in launches if launch.kernel is not None)


def test_it_records_every_launch(monkeypatch: pytest.MonkeyPatch):
    """Counted where a launch begins, and where the step calls an operation of torch."""
    begun: Counter[str] = Counter()
    begin = jit.KernelInterface.__getitem__

    def counting(self, grid):
        begun[self.__name__] += 1
        return begin(self, grid)

    copied, copy = [], torch.Tensor.index_copy_

    def counting_copies(self, *given):
        copied.append(self.dtype)
        return copy(self, *given)

    monkeypatch.setattr(jit.KernelInterface, "__getitem__", counting)
    monkeypatch.setattr(torch.Tensor, "index_copy_", counting_copies)
    launches = record(TINY, 2, "bf16", H200, 2)
    assert begun.total() > 15
    assert of_kernels(launches) == begun
    found = [launch["0"].dtype for launch in launches if launch.name == "torch index_copy_"]
    assert found == [str(dtype).removeprefix("torch.") for dtype in copied]
    assert len(found) == 3


def test_layers_are_alike(step: Step):
    """What two layers and a third say of four is what four launch."""
    recorded = record(TINY, 2, "bf16", H200, 4)
    four = Counter(
        launch for launch in recorded if launch.name != "torch fill_"
    )  # of conftest.py, which poisons memory
    whole = step.whole + step.layer + step.layer
    assert step.layers == 2
    assert whole == four
    assert step.layer.total() * 4 < four.total()


def test_products_read_every_weight_once(step: Step):
    size = SIZES[TINY]
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.mlp
    elements = size.layers * layer + len(IMAGE_IDS) * size.hidden
    products = {launch: count for launch, count in step.whole.items() if launch.name.startswith("linear")}
    assert sum(work_of(launch, 9).stored * count for launch, count in products.items()) == 2 * elements


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_weights_of_one_byte(weights: str):
    launches = record(TINY, 1, weights, H200, 1)
    products = [launch for launch in launches if launch.name == "linear_parts"]
    hidden, first = SIZES[TINY].hidden, products[0]
    assert first["PAIRS"]
    assert first["CONVERTS"] == (weights == "float8")
    assert work_of(first, 9).stored == 3 * hidden * hidden + 3 * hidden * 4


def test_what_was_pretended_is_over(step: Step):
    assert not torch.zeros(1).is_cuda
    found = attend(
        torch.zeros(1, 1, 16), torch.zeros(1, 1, 8, 16), torch.ones(1, 1, 8, 16), torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([3]),
    )  # fmt: skip
    assert torch.equal(found, torch.ones(1, 1, 16))


def test_no_recording_in_the_interpreter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"^TRITON_INTERPRET is set, so kernels are not compiled; unset it"):
        record(TINY, 2, "bf16", H200, 2)


def test_every_kernel_of_a_step_is_known(step: Step):
    for launch in step.whole:
        work = work_of(launch, 9)
        assert work.bytes >= work.stored >= 0
        assert launch.kernel is None or 1 <= work.programs <= launch.grid


def test_an_unknown_kernel():
    with pytest.raises(ValueError, match=r"^the step launches the kernel 'other', .* add a function to WORK in "):
        work_of(Launch("other", 1, (), kernel=object()), 9)


def test_more_tokens_than_pages(step: Step):
    launch = next(launch for launch in step.whole if launch.name == "attend")
    with pytest.raises(ValueError, match=r"^tokens = 100000: the page table of this launch has room for \d+;"):
        work_of(launch, 100000)


def test_arguments_that_are_not_there():
    with pytest.raises(KeyError, match="linear has no argument 'k'; it has K"):
        Launch("linear", 1, (("K", 5),))["k"]


def copy_of(elements: int) -> Launch:
    memory = Memory("float32", (elements,), 4)
    return Launch("torch copy_", 0, (("0", memory), ("1", memory)))


def test_more_bytes_take_longer():
    times = [time_of(copy_of(n), H200, 9).seconds for n in (1, 10**4, 10**6, 10**8)]
    assert times == sorted(times)
    assert times[0] > START
    assert times[3] == pytest.approx(2 * 4e8 / H200.reads, rel=0.02)
    assert time_of(copy_of(1), H200, 9).bound == "launch"
    assert time_of(copy_of(10**8), H200, 9).bound == "bytes"


def test_few_bytes_in_flight_take_longer():
    """An H200 needs about 33 KB of them on each multiprocessor, as its products found; by Little's law 19 KB."""
    times = [bytes_time(Work(1e9, 1e9, 132, 1, flight=flight), H200, 1) for flight in (1e3, 1e4, 3.3e4, 1e6)]
    assert times[0] > 5 * times[1] > 5 * times[2]
    assert times[2] == times[3]


def test_devices():
    for device in DEVICES.values():
        assert 80 <= device.arch <= 90
        assert 0.5 < device.achieved <= device.summed < 1
        assert 1e12 < device.bandwidth < 5e12
        assert 1e9 < device.clock < 3e9
        assert 64 * 1024 < device.shared < 256 * 1024
        assert 100 < device.multiprocessors < 150
        # m16n8k16: 4,096 operations
        assert 1e14 < device.multiprocessors * 4 * 4096 / device.multiply * device.clock < 1.1e15


def test_instructions_of_loops_count_as_often_as_they_run():
    code = Listing(["MOV R1, R2", "FADD R1, R1, R3", "BAR.SYNC 0x0", "@P0 BRA `(.L_x_0)", "EXIT"], [range(1, 4)])
    assert code.runs([8]) == [1, 8, 8, 8, 1]
    with pytest.raises(ValueError, match=r"^trips: 2 numbers, and the kernel has 1 loops; must be as many"):
        code.runs([8, 2])
    outer = Listing([*code.instructions[:4], "BRA `(.L_x_1)", "EXIT"], [range(1, 4), range(0, 5)])
    assert outer.runs([8, 100]) == [1, 8, 8, 8, 1, 1]
    slow = gpu_model.SLOW_CYCLES
    assert cycles_of(["LDS.128", "FADD", "LDS", "BAR.SYNC", "LDS"]) == [slow, 2, 2, slow, slow]


def test_a_kernel_is_compiled(step: Step):
    """The norm of the last layer, which is launched as usual."""
    launch = next(launch for launch in step.whole if launch.name == "rms_norm")
    time = time_of(launch, H200, 9)
    assert time.code is not None
    assert time.code.stack == 0
    assert 16 <= time.code.registers <= 255
    assert time.code.residents(H200) == 64 // time.code.warps
    assert set(time.parts) == {"launch", "bytes", "instructions", "tensor cores", "latency"}
    assert time.seconds > START
    dependent = replace(launch, options=tuple((dict(launch.options) | {"launch_pdl": True}).items()))
    assert time_of(dependent, H200, 9).parts["launch"] < time.parts["launch"]


def written(capsys, tmp_path, *arguments: str) -> tuple[str, dict]:
    file = tmp_path / "model.json"
    assert gpu_model.main([*arguments, "-o", str(file)]) == 0
    return capsys.readouterr().out, json.loads(file.read_text())


def test_it_says_that_it_is_a_model(step: Step, capsys, tmp_path, monkeypatch: pytest.MonkeyPatch):
    few = {launch: n for launch, n in step.whole.items() if launch.kernel is None or launch.name == "rms_norm"}
    monkeypatch.setattr(gpu_model, "step_of", lambda *given: replace(step, whole=Counter(few), layer=Counter()))
    text, found = written(capsys, tmp_path, "--model", "tiny bfloat16", "--tokens", "9")
    assert text.startswith(f"# {HEADING}: {TINY}, bf16, 2 rows of 9 tokens, H200 SXM")
    assert "took" not in text, "nothing was measured of this model"
    assert found["what"] == HEADING
    assert found["launches"] == sum(few.values())
    assert found["ms per step"] * 1e3 == pytest.approx(sum(row["us per step"] for row in found["kernels"]), rel=1e-3)


def test_a_measurement_stands_beside_the_model():
    found = {"device": H200.name, "weights": "bf16", "model": "7B", "rows": 2, "ms per step": 4.5}
    found["kernels"] = [{"kernel": "rms_norm", "us per step": 250.0, "launches": 65}]
    run = gpu_model.measured(found)
    assert run is not None
    text = gpu_model.beside(found, run)
    assert "took 4.39 ms on an H200 at commit db305cf; the model of this checkout says 4.50 ms: +2.5%" in text
    assert "| rms_norm | 212 | 225 | -6% |" in text
    for other in ({"rows": 5}, {"weights": "int8"}, {"device": "H100 SXM"}, {"model": "34B"}):
        assert gpu_model.measured(found | other) is None


@pytest.mark.parametrize("wrong", ["--rows=0", "--tokens=-1", "--device=v100", "--weights=int4"])
def test_wrong_arguments(wrong: str, capsys):
    with pytest.raises(SystemExit):
        gpu_model.main([wrong])
    assert wrong.split("=")[0] in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_table(device: str, capsys, tmp_path):
    text, found = written(capsys, tmp_path, "--model", "tiny bfloat16", "--device", device, "--tokens", "40")
    kernels = {row["kernel"].split()[0] for row in found["kernels"]}
    assert set(WORK) - kernels == {"linear", "rope_append", "swiglu"}, "these are of many rows, and of other weights"
    assert all(row["us"] > START * 1e6 * gpu_model.DEPENDENT for row in found["kernels"])
    assert 0 < found["bandwidth_fraction"] < 1
    assert DEVICES[device].name in text


@pytest.mark.long
@pytest.mark.parametrize("rows", [3, 32])
def test_other_numbers_of_rows(rows: int):
    found = Counter(launch.name for launch in record(TINY, rows, "bf16", H200, 2))
    assert ("torch mm" in found) == (rows > 16)


def test_recording_needs_a_captured_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recorded_step, "draw", lambda *given: None)
    with pytest.raises(RuntimeError, match="captured no step of tiny bfloat16 with 2 rows, so nothing was recorded"):
        record(TINY, 2, "bf16", H200, 2)
