"""Products with weights of 4 bits through Triton, against float64 and the reference; see test_triton_step.py."""

import pytest
import torch
from devices import DEVICE
from step_cases import close
from test_step_ops import randn
from torch.nn import functional as F

pytest.importorskip("triton")

from fastdecode.ops import Int4Rows, Matrix, joint_linear, last_backend, linear

LONG = pytest.mark.long


def weights(
    features: int, k: int, group: int, dtype: torch.dtype = torch.bfloat16, *, offset: bool = True, seed: int = 0
) -> Int4Rows:
    """Every byte, and scales and offsets of both signs."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(-128, 128, (features, k // 2), generator=generator).to(torch.int8)
    shape = (-(-k // group), features)
    scale, zero = randn(*shape, seed=seed + 1).to(dtype), randn(*shape, seed=seed + 2).to(dtype) * 3
    return Int4Rows(data, scale, zero if offset else None, group)


def moved(weight: Int4Rows) -> Int4Rows:
    data, scale, *offset = (part.to(DEVICE) for part in weight.tensors)
    return Int4Rows(data, scale, offset[0] if offset else None, weight.group)


def run(x: torch.Tensor, *matrices: Matrix) -> torch.Tensor:
    """The products by Triton, on the device; the result on the CPU."""
    there = [Matrix(moved(m.weight), None if m.bias is None else m.bias.to(DEVICE)) for m in matrices]
    found = joint_linear(x.to(DEVICE), there, backend="triton")
    assert last_backend() == "triton"
    return found.cpu()


@pytest.mark.parametrize("place", range(8))
def test_every_value(place: int):
    """In each place of two int16, which a GPU takes apart together."""
    data = torch.zeros(16, 16, dtype=torch.uint8)
    data[:, place // 2] = torch.arange(16, dtype=torch.uint8) << place % 2 * 4
    weight = Int4Rows(data.view(torch.int8), torch.ones(1, 16), None, 32)
    x = torch.zeros(1, 32)
    x[0, place] = 1
    expected = torch.tensor([*range(8), *range(-8, 0)]).float()
    assert torch.equal(weight.values()[:, place], expected)
    assert torch.equal(run(x, Matrix(weight))[0], expected)


@pytest.mark.parametrize("rows", [1, 5, pytest.param(17, marks=LONG)])
@pytest.mark.parametrize(
    ("k", "group", "dtype"),
    [
        *(pytest.param(256, group, torch.bfloat16, marks=LONG) for group in (32, 64, 128)),
        (96, 32, torch.float32),
        (320, 64, torch.float16),
        (416, 128, torch.bfloat16),  # the last group has 32
        pytest.param(576, 192, torch.bfloat16, marks=LONG),
        pytest.param(512, 256, torch.float32, marks=LONG),
        (32, 64, torch.bfloat16),
    ],
    ids=str,
)
def test_linear_of_int4(rows: int, k: int, group: int, dtype: torch.dtype):
    x = randn(rows, k)
    for offset, some, bias in (
        (True, slice(0, 67), None),
        (False, slice(0, 67), randn(67)),
        (True, slice(5, 38), None),
    ):
        weight = weights(67, k, group, dtype, offset=offset)[some]
        exact = F.linear(x.double(), weight.values().double(), None if bias is None else bias.double())
        close(run(x, Matrix(weight, bias)), linear(x, weight, bias, backend="reference"), exact)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_neither_weights_nor_x_are_rounded(group: int):
    """Each product to 2⁻²² of itself, whatever the magnitudes: no part of a number is lost."""
    k = 128
    x = randn(3, k) * torch.logspace(15, -15, k)
    data = torch.zeros(k, k // 2, dtype=torch.uint8)
    i = torch.arange(k)
    data[i, i // 2] = ((i % 7 + 1) << i % 2 * 4).to(torch.uint8)
    weight = Int4Rows(data, randn(k // group, k, seed=1).bfloat16(), None, group)
    exact = x.double() * weight.values().double().diagonal()
    found = run(x, Matrix(weight))
    assert ((found - exact).abs() <= 2.0**-22 * exact.abs()).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_row_has_the_same_bits_for_any_number_of_rows(group: int):
    x, matrix = randn(19, 320) * torch.logspace(-3, 3, 19)[:, None], Matrix(weights(70, 320, group))
    all_rows = run(x, matrix)
    for begin, rows in ((16, 1), (5, 4), (3, 16)):
        some = slice(begin, begin + rows)
        assert torch.equal(run(x[some], matrix), all_rows[some]), (begin, rows)


@pytest.mark.parametrize("rows", [1, pytest.param(17, marks=LONG)])
def test_matrices_side_by_side(rows: int):
    """The bits of each alone, in one launch or in several: of other groups, dtypes and biases, and beside bytes."""
    x, many = randn(rows, 128), []
    kinds = ((64, 0, True), (64, 0, True), (64, 0, True), (64, 0, True), (32, 0, True), (32, 1, True), (32, 1, False))
    for number, (group, dtype, offset) in enumerate(kinds):
        features = (67, 32, 1, 33, 5, 64, 2)[number]
        weight = weights(features, 128, group, (torch.bfloat16, torch.float16)[dtype], offset=offset, seed=number)
        many.append(Matrix(weight, randn(features, seed=number) if number != 3 else None))
    alone = [run(x, matrix) for matrix in many]
    assert torch.equal(run(x, *many), torch.cat(alone, 1))
    assert run(x[:0], *many).shape == (0, 204)
    assert torch.equal(run(x, many[0], Matrix(weights(0, 128, 64)), many[1]), torch.cat(alone[:2], 1))
    byte = Matrix(torch.randint(-128, 128, (7, 128), generator=torch.Generator().manual_seed(1)).to(torch.int8))
    mixed = [Matrix(moved(many[4].weight), many[4].bias.to(DEVICE)), Matrix(byte.weight.to(DEVICE))]
    found = joint_linear(x.to(DEVICE), mixed, backend="triton").cpu()
    assert torch.equal(found[:, :5], alone[4])
    close(found[:, 5:], linear(x, byte.weight, backend="reference"), F.linear(x.double(), byte.weight.double()))
