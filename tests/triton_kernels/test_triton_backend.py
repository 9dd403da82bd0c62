"""How the triton backend is chosen, in processes with a working Triton and without Triton."""

import subprocess
import sys

import pytest
import torch
from devices import INTERPRETED

from fastdecode.ops import available_backends, sample, unavailable
from fastdecode.ops.backends import choose_backend

NO_GPU = not INTERPRETED and not torch.cuda.is_available()


@pytest.mark.skipif(not NO_GPU, reason="here it is available")
def test_without_a_gpu_it_says_what_is_missing():
    pytest.importorskip("triton")
    assert "triton" not in available_backends()
    assert unavailable("triton") == "no GPU that torch can use, and TRITON_INTERPRET=1 is not set"
    with pytest.raises(ValueError, match="backend = 'triton': not available: no GPU"):
        sample(torch.zeros(1, 4), backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors on the CPU")
def test_on_the_cpu_it_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastdecode.ops.backends._triton_unavailable", lambda interpreted: None)
    assert choose_backend(None, "cuda") == "triton"
    assert choose_backend(None, "cpu") == "cpu"
    with pytest.raises(ValueError, match="backend = 'triton': needs tensors on a GPU, logits are on cpu"):
        choose_backend("triton", "cpu")


def test_triton_is_imported_when_it_is_used_and_not_before():
    code = (
        "import sys, fastdecode.ops as ops; assert 'triton' not in sys.modules; ops.unavailable('triton');"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_machine_without_triton():
    code = (
        "import os, sys; sys.modules['triton'] = None\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "from fastdecode.ops import sample, unavailable; import torch\n"
        "assert unavailable('triton') == 'the package triton is not installed'\n"
        "assert sample(torch.zeros(1, 4)).status.item() == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
