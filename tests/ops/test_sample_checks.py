"""Every wrong argument: a ValueError that names it, the value and the index, on every backend."""

import math
import re
import subprocess
import sys

import pytest
import torch

from fastdecode.ops import TokenSets, available_backends, sample, unavailable
from fastdecode.ops.backends import BACKENDS

NAN, INF = math.nan, math.inf


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


WRONG = [
    # shapes, dtypes, devices
    ({"logits": [[1.0]]}, "logits: must be a tensor, got list"),
    ({"logits": torch.zeros(8)}, r"logits.shape = \(8,\)"),
    ({"logits": torch.zeros(2, 8).double()}, "logits.dtype = torch.float64"),
    ({"logits": torch.zeros(2, 16)[:, ::2]}, r"logits.stride\(1\) = 2"),
    ({"logits": torch.zeros(1, 2**22 + 1)}, r"logits.shape\[1\] = 4194305: must be in"),
    ({"streams": i32(0, 1)}, r"streams.shape = \(2,\)"),
    ({"streams": torch.zeros(2, 0, dtype=torch.int32)}, r"streams.shape = \(2, 0\)"),
    ({"streams": torch.zeros(2, 1)}, "streams.dtype = torch.float32"),
    ({"streams": [[0]]}, "streams: must be a tensor, got list"),
    ({"weights": f32(1, 1)}, r"weights.shape = \(2,\): must be \(2, 1\)"),
    ({"weights": torch.ones(2, 1).double()}, "weights.dtype = torch.float64"),
    ({"set_index": torch.zeros(2, dtype=torch.int64)}, "set_index.dtype = torch.int64"),
    ({"temperature": f32(1, 1, 1)}, r"temperature.shape = \(3,\): must be \(2,\)"),
    ({"temperature": f32(1, 1).double()}, "temperature.dtype"),
    ({"temperature": "warm"}, "temperature = 'warm'"),
    ({"temperature": f32(1, 1).to("meta")}, "temperature.device = meta: must be cpu"),
    ({"top_k": f32(1, 1)}, "top_k.dtype = torch.float32"),
    ({"top_k": 1.5}, "top_k = 1.5: must be an integer"),
    ({"top_k": True}, "top_k = True: must be an integer"),
    ({"temperature": True}, "temperature = True: must be a number"),
    ({"top_k": 2**31}, "top_k = 2147483648: must fit"),
    ({"top_p": i32(1, 1)}, "top_p.dtype = torch.int32"),
    ({"seed": 2**63}, "seed = 9223372036854775808: must fit"),
    ({"seed": i32(1, 2)}, "seed.dtype = torch.int32"),
    ({"step": torch.zeros(1, dtype=torch.int64)}, r"step.shape = \(1,\): must be \(2,\)"),
    ({"seen": torch.zeros(2, 2, dtype=torch.int32)}, r"seen.shape = \(2, 2\): must be \(2, 1\)"),
    ({"penalty": 1.2}, "seen = None: penalty needs"),
    ({"noise": torch.zeros(2, 7)}, r"noise.shape = \(2, 7\): must be \(2, 8\)"),
    ({"noise": torch.zeros(2, 16)[:, ::2]}, r"noise.stride\(1\) = 2"),
    ({"noise": torch.zeros(2, 8).double()}, "noise.dtype"),
    ({"contrast": 0.1}, "contrast = 0.1: must be"),
    ({"contrast": (1.5, 1)}, r"contrast\[0\] = 1.5"),
    ({"contrast": (NAN, 1)}, r"contrast\[0\] = nan"),
    ({"contrast": (0.1, 0)}, r"contrast\[1\] = 0"),
    ({"allowed": [[(0, 9)]]}, r"allowed\[0\]\[0\] = \(0, 9\): leaves the vocabulary of 8"),
    ({"allowed": TokenSets([[], [(3, 9)]])}, r"allowed\[1\]\[0\] = \(3, 9\): leaves"),
    ({"allowed": TokenSets([[(0, 1)]], device="meta")}, "allowed.device = meta"),
    # values
    ({"streams": i32([0], [2])}, r"streams\[1, 0\] = 2: must be a row in \[0, 2\), or -1"),
    ({"streams": i32([0, 0], [1, -2])}, r"streams\[1, 1\] = -2"),
    ({"weights": f32([1], [NAN])}, r"weights\[1, 0\] = nan: must be finite"),
    ({"weights": f32([INF], [1])}, r"weights\[0, 0\] = inf: must be finite"),
    ({"set_index": i32(0, 1)}, r"set_index\[1\] = 1: must be in \[0, 1\)"),
    ({"allowed": [[], []], "set_index": i32(-1, 1)}, r"set_index\[0\] = -1: must be in \[0, 2\)"),
    ({"temperature": -1}, "temperature = -1: must be finite and >= 0"),
    ({"temperature": NAN}, "temperature = nan"),
    ({"temperature": INF}, "temperature = inf"),
    ({"temperature": f32(1, -0.5)}, r"temperature\[1\] = -0.5: must be finite and >= 0"),
    ({"top_p": 1.01}, r"top_p = 1.01: must be in \[0, 1\]"),
    ({"top_p": f32(0.5, NAN)}, r"top_p\[1\] = nan: must be in \[0, 1\]"),
    ({"min_p": f32(-0.25, 0)}, r"min_p\[0\] = -0.25: must be in \[0, 1\]"),
    ({"min_p": NAN}, "min_p = nan"),
    ({"penalty": 0.0, "seen": torch.zeros(2, 1, dtype=torch.int32)}, "penalty = 0: must be"),
    (
        {"penalty": f32(1, INF), "seen": torch.zeros(2, 1, dtype=torch.int32)},
        r"penalty\[1\] = inf: must be finite and > 0",
    ),
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[f"{m}" for _, m in WRONG])
def test_wrong_arguments(wrong, message, backend):
    arguments = {"logits": torch.zeros(2, 8), **wrong}
    with pytest.raises(ValueError, match=message):
        sample(arguments.pop("logits"), backend=backend, **arguments)


def test_scalars_of_other_kinds_are_taken():
    logits = torch.randn(2, 50)
    expected = sample(logits, temperature=0.5, top_k=5, seed=3).token
    numbers = {"temperature": torch.tensor(0.5), "top_k": torch.tensor(5), "seed": True + 2}
    assert torch.equal(sample(logits, **numbers).token, expected)


def test_backends_are_listed_with_reasons():
    assert available_backends()[:2] == ["reference", "cpu"]  # and triton, where there is a GPU
    for name in BACKENDS:
        assert (unavailable(name) is None) == (name in available_backends())
    with pytest.raises(ValueError, match="backend = 'cuda': not available"):
        sample(torch.zeros(1, 4), backend="cuda")
    with pytest.raises(ValueError, match="backend = 'quantum': unknown; must be one of reference"):
        sample(torch.zeros(1, 4), backend="quantum")


def test_ops_needs_no_transformers():
    code = "import sys, fastdecode.ops; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_is_told_once_and_samples_the_same_tokens():
    code = (
        "import sys, warnings, torch\n"
        "sys.modules['fastdecode._C'] = None\n"
        "from fastdecode import ops\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    tokens = [ops.sample(torch.arange(12.).view(3, 4) % 5, seed=s).token.tolist() for s in range(3)]\n"
        "[warning] = told\n"
        "assert 'because the backend cpu cannot run: fastdecode._C cannot be loaded' in str(warning.message), warning\n"
        "assert ops.last_backend() == 'reference'\n"
        "print(tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [sample(torch.arange(12.0).view(3, 4) % 5, seed=s).token.tolist() for s in range(3)]
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(2, 8), {"backend": ""}, "backend = '': must be one of reference, cpu, triton, cuda, or None"),
        (torch.zeros(2, 8).to_sparse(), {}, "logits.layout = torch.sparse_coo: must be dense (torch.strided)"),
    ],
)
def test_an_empty_backend_and_sparse_logits(logits, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sample(logits, **options)
