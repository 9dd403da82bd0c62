"""Weights of 4 bits in rows: what they stand for, by the reference, and what is wrong with others."""

import re

import pytest
import torch
from torch.nn import functional as F

from fastdecode.ops import Int4Rows, Matrix, joint_linear, last_backend, linear


def made(**other) -> Int4Rows:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (6, 48), generator=generator).to(torch.uint8)
    scale, offset = (torch.randn(2, 6, generator=generator).bfloat16() for _ in range(2))
    return Int4Rows(**({"data": data, "scale": scale, "offset": offset, "group": 64} | other))


def test_values():
    rows = made()
    assert (len(rows), rows.shape, rows.k) == (6, (6, 96), 96)
    for f, i in ((0, 0), (5, 95), (3, 63), (3, 64), (2, 7)):
        half = int(rows.data[f, i // 2]) >> i % 2 * 4 & 15
        value = half - 16 if half > 7 else half
        exact = value * float(rows.scale[i // 64, f]) + float(rows.offset[i // 64, f])
        assert float(rows.values()[f, i]) == pytest.approx(exact, rel=1e-6, abs=1e-6)
    assert torch.equal(rows[2:5].values(), rows.values()[2:5])
    assert rows[2:5].data.data_ptr() == rows.data[2].data_ptr()
    signed = made(data=rows.data.view(torch.int8))
    assert torch.equal(signed.values(), rows.values())


def test_linear():
    """By the reference, where no backend is named; the CPU's kernels have none."""
    rows, x, bias = made(), torch.randn(3, 96, generator=torch.Generator().manual_seed(1)), torch.ones(6)
    expected = F.linear(x, rows.values(), bias)
    assert torch.equal(linear(x, rows, bias), expected)
    assert last_backend() == "reference"
    assert torch.equal(joint_linear(x, [Matrix(rows, bias), Matrix(rows, bias)]), torch.cat((expected, expected), 1))
    with pytest.raises(
        ValueError, match="backend = 'cpu': has no weights of int4 in rows; must be triton or reference"
    ):
        linear(x, rows, backend="cpu")
    with pytest.raises(ValueError, match=r"weight.shape = \(6, 96\): must be \(features, 64\)"):
        linear(x[:, :64], rows)
    with pytest.raises(ValueError, match="scale: must be None for Int4Rows, which have theirs"):
        linear(x, rows, None, torch.ones(6))


WRONG = [
    ({"group": 48}, "group = 48: must be 32 or a multiple of 64"),
    ({"data": 3}, "data: must be a tensor, got int"),
    ({"data": torch.zeros(6, 48)}, "data.dtype = torch.float32: must be torch.int8"),
    ({"data": torch.zeros(6, 24, dtype=torch.int8)[:, :20]}, "data: must be dense"),
    ({"data": torch.zeros(6, 24, dtype=torch.int8)}, "data.shape = (6, 24): must be (features, k / 2), k a multiple"),
    ({"data": torch.zeros(289, dtype=torch.int8)[1:].view(6, 48)}, "data: must begin at an even address"),
    ({"scale": torch.zeros(1, 6)}, "scale.shape = (1, 6): must be (2, 6)"),
    ({"scale": torch.zeros(2, 6).double()}, "scale.dtype = torch.float64: must be float32, bfloat16 or float16"),
    ({"scale": torch.zeros(6, 2).t()}, "scale: numbers of a row must lie side by side"),
    ({"scale": torch.zeros(2, 6, device="meta")}, "scale.device = meta: must be cpu, as for data"),
    ({"offset": torch.zeros(2, 6).half()}, "offset: must have the dtype of scale, and rows as far apart"),
    ({"offset": torch.zeros(2, 8).bfloat16()[:, :6]}, "offset: must have the dtype of scale, and rows as far apart"),
    ({"offset": 1}, "offset: must be a tensor, got int"),
]


@pytest.mark.parametrize(("other", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_is_wrong(other: dict, told: str):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        made(**other)
