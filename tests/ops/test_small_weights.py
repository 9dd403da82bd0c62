"""Weights of 8 and 4 bits in the CPU kernels, against float64, and what `SmallWeights` and `round_to_int8` say."""

import re
from dataclasses import replace

import pytest
import torch
from isas import DECODE_ISAS, assert_runs_with, each
from small_cases import KINDS, assert_close, decoded, product, small, with_feature, with_scales, with_values

from fastdecode.ops import Matrix, SmallWeights, embed, joint_linear, last_backend, linear, round_to_int8
from fastdecode.ops.backends import core
from fastdecode.ops.pointers import address, stored
from fastdecode.ops.small_weights import ROUNDED_BLOCK

LENGTHS = (32, 64, 96, 160, 256, 288, 416, 2080)
ODD_LENGTHS = (1, 3, 15, 31, 33, 63, 65, 127, 129, 191, 255, 257, 300)  # of int8 only
FEATURES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 35)
ROWS = (0, 1, 2, 3, 4, 5, 7, 16, 33)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lengths_of(kind: str) -> tuple[int, ...]:
    return LENGTHS + ODD_LENGTHS if kind == "int8" else LENGTHS


def by_library(x: torch.Tensor, weights: SmallWeights, bias: torch.Tensor | None, stride: int, threads: int):
    """The C function, whose rows of results are ``stride`` apart, on poisoned memory (rows, stride)."""
    out = torch.full((len(x), stride), torch.nan)
    core().linear(*stored(weights), address(bias), address(x), *x.shape, len(weights), address(out), stride, threads)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_header(kind: str):
    for k in (32, 96, 160) if kind != "int8" else (1, 33, 96):
        weights = small(kind, 5, k, seed=k)
        scaled, offset = (torch.from_numpy(part) for part in decoded(weights))
        values = weights.values()
        assert values.dtype == torch.float32
        assert torch.equal(values, scaled.float() + offset.float())
        assert weights.shape == values.shape == (5, k)
        assert torch.equal(weights[1:3].values(), values[1:3])
        assert torch.equal(weights.of(torch.tensor([4, 0, 4])).values(), values[[4, 0, 4]])
        assert weights[2:2].values().shape == (0, k)


@pytest.mark.parametrize("kind", KINDS)
def test_linear(kind: str):
    for k in lengths_of(kind):
        weights, bias = small(kind, 13, k, seed=k), randn(13, seed=1)
        x = randn(max(ROWS), k, seed=k)
        exact, size = product(x, weights, bias)
        for rows in ROWS if k <= 416 else (1, 4, 5):
            got = linear(x[:rows], weights, bias)
            assert last_backend() == "cpu"
            assert_close(got, exact[:rows], size[:rows])


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_features(kind: str):
    for k in (32, 160):
        weights, x = small(kind, 35, k, seed=2), randn(5, k)
        exact, size = product(x, weights)
        for features in FEATURES:
            assert_close(linear(x, weights[:features]), exact[:, :features], size[:, :features])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_on_any_threads(kind: str):
    for k in (32, 96, 2080) if kind != "int8" else (33, 96, 2080):
        weights, x, bias = small(kind, 300, k, seed=k), randn(33, k), randn(300, seed=1)
        together = linear(x, weights, bias)
        for r in range(33):
            assert torch.equal(linear(x[r : r + 1], weights, bias), together[r : r + 1])
        for rows in ROWS[1:]:
            assert torch.equal(linear(x[-rows:], weights, bias), together[-rows:])
        for threads in (1, 2, 3, 7):
            wide = by_library(x, weights, bias, 305, threads)
            assert torch.equal(wide[:, :300], together)
            assert wide[:, 300:].isnan().all()
        for first in (1, 2, 5, 7, 17, 32):  # features that lie elsewhere in a tile
            assert torch.equal(linear(x, weights[first:], bias[first:]), together[:, first:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_is_added_to_the_same_sum(kind: str):
    weights, x, bias = small(kind, 7, 96), randn(5, 96), randn(7, seed=3)
    assert torch.equal(linear(x, weights, bias), linear(x, weights) + bias)


def test_matrices_of_several_types_side_by_side():
    x = randn(5, 96)
    matrices = [Matrix(small(kind, 3 + i, 96, seed=i), randn(3 + i)) for i, kind in enumerate(KINDS)]
    matrices += [Matrix(randn(4, 96).to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    alone = [linear(x, *matrix) for matrix in matrices]
    assert torch.equal(joint_linear(x, matrices), torch.cat(alone, 1))


# --- extreme values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0x81, 0xFF, 0x0F, 0xF0])
def test_extreme_weights_are_summed_exactly(kind: str, byte: int):
    """With x of ±127 times one factor no product of two pairs may saturate 16 bits."""
    weights = with_values(small(kind, 5, 192), byte)
    for x in (torch.ones(3, 192), -torch.ones(3, 192), randn(3, 192).sign() * 127.0):
        assert_close(linear(x, weights), *product(x, weights))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 6e-8, 1e-6, -0.5, 65504.0])
def test_extreme_scales(kind: str, scale: float):
    weights = with_scales(small(kind, 5, 96), scale)
    x = randn(3, 96)
    got = linear(x, weights)
    assert_close(got, *product(x, weights))
    if scale == 0.0 and weights.offset is None:
        assert not got.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_no_numbers_stay_in_their_feature(kind: str, scale: float):
    good, x = small(kind, 9, 96), randn(5, 96)
    bad = with_scales(good, scale)
    got, expected = linear(x, with_feature(good, bad, 3)), linear(x, good)
    others = [f for f in range(9) if f != 3]
    assert torch.equal(got[:, others], expected[:, others])
    assert not got[:, 3].isfinite().any()


def test_a_subnormal_scale_of_int8():
    weights = with_scales(small("int8", 4, 64), 1e-40)
    x = randn(2, 64) * 1e5
    exact, size = product(x, weights)
    assert ((linear(x, weights).double() - exact).abs() <= 2e-6 * size + 2e-45).all()


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_x(kind: str):
    weights = with_scales(small(kind, 5, 160, seed=1), 2.0**-8)
    if weights.offset is not None:
        weights.offset.mul_(2.0**-8)
    for size in (1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e34):
        x = randn(3, 160) * size
        assert_close(linear(x, weights), *product(x, weights))
    for zero in (torch.zeros(3, 160), -torch.zeros(3, 160), torch.full((3, 160), 2.0**-101)):
        assert not linear(zero, weights).any()
    assert linear(torch.full((3, 160), 2.0**-100), weights).any()
    # Blocks of very different magnitudes have factors of their own.
    long = small(kind, 5, 2 * ROUNDED_BLOCK + 96, seed=2)
    x = randn(3, long.k) * torch.tensor([1e-20] * ROUNDED_BLOCK + [1.0] * ROUNDED_BLOCK + [1e-9] * 96)
    assert_close(linear(x, long), *product(x, long))
    x[:, ROUNDED_BLOCK:] = 0.0
    assert_close(linear(x, long), *product(x, long))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_x_that_is_no_number_stays_in_its_row(kind: str, value: float):
    weights, good = small(kind, 9, 416), randn(9, 416)
    expected = linear(good, weights)
    for row, place in ((0, 0), (3, 255), (8, 415), (4, 300)):
        x = good.clone()
        x[row, place] = value
        got = linear(x, weights)
        assert got[row].isnan().all()
        others = [r for r in range(9) if r != row]
        assert torch.equal(got[others], expected[others])
    zeros = with_scales(with_values(weights, 0x88 if weights.type[-2:] != "_0" else 0), 0.0)
    x = torch.full((2, 416), value)
    assert linear(x, zeros).isnan().all()


# --- rounding


def test_rounding_is_that_of_the_kernels():
    """Through a unit matrix: a value is a whole number times its block's factor."""
    k = ROUNDED_BLOCK + 44
    unit = SmallWeights("int8", k, torch.eye(k, dtype=torch.int8), torch.ones(k))
    magnitude = 10.0 ** torch.empty(10_000, 1).uniform_(-31, 30, generator=torch.Generator().manual_seed(0))
    x = randn(10_000, k) * magnitude
    x[:100] = torch.arange(k) % 255 * 0.5  # many ties
    assert torch.equal(linear(x, unit), round_to_int8(x))


def test_rounding():
    end = ROUNDED_BLOCK
    x = torch.zeros(1, end + 6)
    x[0, :5] = torch.tensor([127.0, 0.5, 1.5, -2.5, 126.5])
    x[0, end:] = torch.tensor([1.0, 0.004, -1.0, 0.0039, 0.5, 2.0 / 127])
    rounded = round_to_int8(x)
    assert rounded[0, :5].tolist() == [127.0, 0.0, 2.0, -2.0, 126.0]
    assert torch.allclose(rounded[0, end:] * 127, torch.tensor([127.0, 1.0, -127.0, 0.0, 64.0, 2.0]))
    x = randn(50, 2 * end + 2)
    factor = torch.nn.functional.pad(x, (0, end - 2)).view(50, 3, end).abs().amax(-1) / 127
    error = (round_to_int8(x) - x).abs()
    assert (error <= 0.5001 * factor.repeat_interleave(end, 1)[:, : 2 * end + 2]).all()
    tiny = torch.tensor([[2.0**-101, -(2.0**-101)]])
    assert not round_to_int8(tiny).any()
    broken = torch.ones(2, end + 6)
    broken[0, 3], broken[1, end + 5] = torch.inf, torch.nan
    assert round_to_int8(broken).isnan().tolist() == [[True] * end + [False] * 6, [False] * end + [True] * 6]
    assert round_to_int8(torch.zeros(0, 5)).shape == (0, 5)


# --- embeddings


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_embed(kind: str, backend: str):
    for k in (32, 160) if kind != "int8" else (1, 37, 160):
        weights = small(kind, 9, k, seed=k)
        tokens = torch.tensor([8, 0, 3, 3, 1])
        got = embed(tokens, weights, backend=backend)
        assert last_backend() == backend
        assert torch.equal(got, weights.values()[tokens])
        assert embed(tokens[:0], weights, backend=backend).shape == (0, k)
        with pytest.raises(ValueError, match=r"^tokens\[1\] = 9: must be a token in \[0, 9\)$"):
            embed(torch.tensor([0, 9]), weights, backend=backend)


# --- the other backend, and what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_does_not_round_x(kind: str):
    weights, x, bias = small(kind, 5, 96), randn(3, 96), randn(5)
    got = linear(x, weights, bias, backend="reference")
    assert last_backend() == "reference"
    exact = x.double() @ weights.values().double().T + bias
    assert (got - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_copies_and_slices_keep_their_kind():
    weights = small("int4 with offsets", 6, 64)
    copy = weights.to("cpu", copy=True)
    copy.data.zero_()
    assert copy.scale is not weights.scale
    assert weights.data.any()
    assert weights.to("cpu").data is weights.data
    assert weights[1:4].data.data_ptr() == weights.data.data_ptr()
    assert weights.nbytes == 16 * (32 + 2 * 2 + 2 * 4)
    assert len(weights) == 6
    wide = small("int4 with offsets", 70, 64)
    part = wide[20:40]
    assert part.data.data_ptr() == wide.data[1:].data_ptr()
    assert (len(part.data), part.first, len(part)) == (2, 4, 20)
    assert torch.equal(part[3:15].values(), wide.values()[23:35])
    for wrong in (slice(None, None, 2), slice(None, None, -1), 3, None, [1, 2], slice(1.5, 3), slice("a")):
        with pytest.raises(ValueError, match="must be a slice of whole numbers with steps of 1"):
            wide[wrong]


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_there_are_not(kind: str):
    weights = small(kind, 20, 64)[2:19]
    for wrong, message in [
        (torch.tensor([0, -1]), "features: has -1; must be in [0, 17)"),
        (torch.tensor([17]), "features: has 17; must be in [0, 17)"),
        (torch.tensor([999]), "features: has 999; must be in [0, 17)"),
        (torch.ones(17, dtype=torch.bool), "features: must be (n,) int64"),
        (torch.zeros(2, 2, dtype=torch.int64), "features: must be (n,) int64"),
        ([1, 2], "features: must be (n,) int64, got [1, 2]"),
        (None, "features: must be (n,) int64, got None"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            weights.of(wrong)
    assert torch.equal(weights.of(torch.tensor([16, 0])).values(), weights.values()[[16, 0]])


def test_panels_as_plain_tensors():
    """What a graph holds: int8 in panels, with scales of panels."""
    weights, x = small("int8x16", 40, 96), randn(3, 96)
    assert torch.equal(linear(x, weights.data, None, weights.scale), linear(x, replace(weights, features=48)))
    assert torch.equal(torch.ops.fastdecode.linear(x, weights.data, None, weights.scale)[:, :40], linear(x, weights))
    bias = randn(48, seed=1)
    got = linear(x, weights.data, bias, weights.scale)
    assert got.shape == (3, 48)
    assert torch.equal(got[:, :40], linear(x, weights, bias[:40]))
    with pytest.raises(
        ValueError, match=r"^data\.shape = \(3, 1536\): must be \(panels, 1024\) for k = 64 of int8x16$"
    ):
        linear(x[:, :64], weights.data, None, weights.scale)
    with pytest.raises(ValueError, match=r"^scale\.shape = \(2, 16\): must be \(3, 16\)$"):
        linear(x, weights.data, None, weights.scale[:2])
    with pytest.raises(ValueError, match=r"^data\.dtype = torch\.float32: must be torch\.int8$"):
        linear(x, weights.data.float(), None, weights.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_panels_hold_the_same_weights(kind: str):
    weights = small(kind, 21, 96)
    panels = weights.panels()
    assert panels.type == {"int8": "int8x16", "q4_0": "int4"}.get(weights.type, weights.type)
    assert torch.equal(panels.values(), weights.values())
    if kind == "int8":
        assert small(kind, 5, 33).panels().type == "int8"
        assert torch.equal(panels.rows().data, weights.data)
        assert torch.equal(panels.rows().scale, weights.scale)
    elif kind != "int8x16":
        with pytest.raises(ValueError, match="must be 'int8x16'"):
            weights.rows()


U8, HALF = torch.uint8, torch.float16
WRONG = [
    ({"type": "int2"}, "type = 'int2': must be one of int8, int8x16, int4, q8_0, q4_0"),
    ({"type": ["int4"]}, "type = ['int4']: must be one of int8, int8x16, int4, q8_0, q4_0"),
    ({"k": 0}, "k = 0: must be a multiple of 32 for int4 weights"),
    ({"k": 33}, "k = 33: must be a multiple of 32 for int4 weights"),
    ({"k": -32}, "k = -32: must be a multiple of 32 for int4 weights"),
    ({"k": 64.0}, "k = 64.0: must be a whole number"),
    ({"data": [[1]]}, "data: must be a tensor, got list"),
    ({"data": torch.zeros(3, 32)}, "data.dtype = torch.float32: must be torch.uint8"),
    ({"data": torch.zeros(3, 31, dtype=U8)}, "data.shape = (3, 31): must be (panels, 512) for k = 64 of int4"),
    ({"data": torch.zeros(32, dtype=U8)}, "data.shape = (32,): must be (panels, bytes)"),
    ({"data": torch.zeros(32, 3, dtype=U8).t()}, "data: must be dense, as .contiguous() makes it"),
    ({"scale": None}, "scale = None: must be (3, 2, 16) torch.float16 for int4 weights"),
    ({"scale": torch.ones(3, 2, 16)}, "scale.dtype = torch.float32: must be torch.float16"),
    ({"scale": torch.ones(3, 1, 16, dtype=HALF)}, "scale.shape = (3, 1, 16): must be (3, 2, 16)"),
    ({"offset": torch.ones(2, 2, 16)}, "offset.shape = (2, 2, 16): must be (3, 2, 16)"),
    ({"offset": torch.ones(3, 2, 16, dtype=HALF)}, "offset.dtype = torch.float16: must be torch.float32"),
    ({"group": 0}, "group = 0: must be 32 or a multiple of 64 for int4 weights"),
    ({"group": 96}, "group = 96: must be 32 or a multiple of 64 for int4 weights"),
    ({"group": 2**31}, "group = 2147483648: must be 32 or a multiple of 64 for int4 weights"),
    ({"group": -64}, "group = -64: must be 32 or a multiple of 64 for int4 weights"),
    ({"group": 32.0}, "group = 32.0: must be a whole number"),
    ({"type": "q4_0", "data": torch.zeros(3, 36, dtype=U8)}, "group and offset: are for int4 weights, not for q4_0"),
    (
        {"type": "q4_0", "data": torch.zeros(3, 36, dtype=U8), "group": 0},
        "scale: must be None for q4_0 weights, whose blocks hold theirs",
    ),
    (
        {"type": "int8", "k": 0, "data": torch.zeros(3, 0, dtype=torch.int8), "group": 0},
        "k = 0: must be at least 1",
    ),
    ({"first": 16}, "first = 16: must be in [0, 16) for int4 weights"),
    ({"first": -1}, "first = -1: must be in [0, 16) for int4 weights"),
    ({"features": 49}, "features = 49, first = 0: data.shape = (3, 512) has 48 features"),
    ({"features": 48, "first": 1}, "features = 48, first = 1: data.shape = (3, 512) has 48 features"),
    ({"features": 32}, "features = 32, first = 0: data.shape = (3, 512) has 48 features"),
    ({"features": -1}, "features = -1, first = 0: data.shape = (3, 512) has 48 features"),
    (
        {"type": "q4_0", "data": torch.zeros(3, 36, dtype=U8), "group": 0, "scale": None, "first": 1},
        "first = 1: must be in [0, 1) for q4_0 weights",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=str)
def test_what_is_no_small_weight(change: dict, message: str):
    good = {"type": "int4", "k": 64, "data": torch.zeros(3, 512, dtype=U8), "scale": torch.ones(3, 2, 16, dtype=HALF)}
    good["group"] = 32
    SmallWeights(**good)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SmallWeights(**{**good, **change})


def test_what_linear_and_embed_refuse():
    weights, x = small("q8_0", 3, 64), torch.ones(2, 64)
    tokens = torch.tensor([0])
    for call, message in [
        (lambda: linear(x[:, :63], weights), "weight.shape = (3, 64): must be (features, 63)"),
        (lambda: linear(x, weights, torch.ones(4)), "bias.shape = (4,): must be (3,)"),
        (lambda: linear(x, weights, None, torch.ones(3)), "scale: must be None for SmallWeights, which have theirs"),
        (lambda: linear(x, weights.to("meta")), "weight.device = meta: must be cpu, as for x"),
        (lambda: embed(tokens, weights.to("meta")), "weight.device = meta: must be cpu, as for tokens"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize("isa", each(DECODE_ISAS))
def test_every_instruction_set(isa: str):
    assert_runs_with(
        isa,
        "import test_small_weights as t\n"
        "for kind in t.KINDS:\n"
        "    t.test_linear(kind), t.test_every_number_of_features(kind), t.test_embed(kind, 'cpu')\n"
        "    t.test_a_row_has_the_same_bits_alone_in_any_batch_and_on_any_threads(kind)\n"
        "    t.test_extreme_x(kind), t.test_a_bias_is_added_to_the_same_sum(kind)\n"
        "    for byte in (0, 127, 128, 129, 255, 15, 240): t.test_extreme_weights_are_summed_exactly(kind, byte)\n"
        "    for scale in (0.0, 6e-8, 1e-6, -0.5, 65504.0): t.test_extreme_scales(kind, scale)\n"
        "    for value in (float('nan'), float('inf'), -float('inf')):\n"
        "        t.test_scales_that_are_no_numbers_stay_in_their_feature(kind, value)\n"
        "        t.test_x_that_is_no_number_stays_in_its_row(kind, value)\n"
        "t.test_rounding_is_that_of_the_kernels(), t.test_a_subnormal_scale_of_int8()\n"
        "t.test_matrices_of_several_types_side_by_side()\n",
    )
