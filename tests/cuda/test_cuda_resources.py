"""`tools/cuda_resources.py` finds a spill, a stack frame and a function that was not inlined."""

import shutil

import pytest

from tools import cuda_resources
from tools.cuda_resources import Function, parse

KERNEL = "void fastdecode::(anonymous namespace)::kernel<fastdecode::(anonymous namespace)::{}, 128, X>(X)"


def log(kernel: str, frame: str, used: str) -> str:
    """As `nvcc -Xptxas -v` writes it."""
    name = KERNEL.format(kernel)
    return (
        "ptxas info    : 0 bytes gmem\n"
        f"ptxas info    : Compiling entry function '{name}' for 'sm_80'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    {frame}\n"
        f"ptxas info    : Used {used}\n"
    )


NOTHING = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


def test_parses_what_ptxas_says():
    text = log("Mix<float>", NOTHING, "83 registers, used 1 barriers, 24656 bytes smem, 848 bytes cmem[0]")
    text += log("Advance", "16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads", "255 registers")
    mix, advance = parse(text)
    assert mix == Function("Mix<float>, 128", "sm_80", 0, 0, 83, 24656)
    assert mix.good
    assert advance == Function("Advance, 128", "sm_80", 16, 12, 255, 0)
    assert not advance.good


def test_a_function_that_is_not_inlined_is_none_of_ours():
    text = log("Mix<float>", NOTHING, "83 registers")
    text += f"ptxas info    : Function properties for helper(int)\n    {NOTHING}\n"
    assert [f.good for f in parse(text)] == [True, False]


@pytest.mark.parametrize(
    ("frame", "status"), [(NOTHING, 0), (NOTHING.replace("0 bytes spill s", "4 bytes spill s"), 1)]
)
def test_fails_on_a_spill(frame: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: "nvcc")
    text = log("Advance", frame, "40 registers")
    monkeypatch.setattr(cuda_resources, "compile_log", lambda _, arch: text.replace("sm_80", f"sm_{arch}"))
    assert cuda_resources.main() == status
    said = capsys.readouterr()
    assert "Advance, 128                 sm_90         40       0      0" in said.out
    assert ("Advance, 128 on sm_80: must have no stack frame and no spills" in said.err) == (status == 1)


def test_says_that_nvcc_is_missing(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert cuda_resources.main() == 0
    assert capsys.readouterr().out == "nvcc is not installed: the CUDA kernels are not compiled\n"
