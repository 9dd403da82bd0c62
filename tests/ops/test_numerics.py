"""exp, log, Philox and Gumbel noise: known answers, errors in ulp, and C++ against torch."""

import numpy as np
import pytest
import torch
from scipy import stats

from fastdecode import _C
from fastdecode.ops import numerics

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def ulp_error(got: torch.Tensor, exact: np.ndarray) -> float:
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got.double().numpy() - exact) / spacing))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def through_cpp(function, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    function(x.data_ptr(), out.data_ptr(), x.numel())
    return out


def exp_arguments() -> torch.Tensor:
    dense = -torch.logspace(-30, 1.94, 200_000, dtype=torch.float64).float()
    special = torch.tensor([0.0, -0.0, -86.0, -86.00001, -1e30, -float("inf")])
    return torch.cat([dense, special])


def log_arguments() -> torch.Tensor:
    wide = torch.logspace(-37, 38, 200_000, dtype=torch.float64).float()
    near_one = 1 + torch.linspace(-0.3, 0.5, 100_001)
    return torch.cat([wide, near_one, torch.tensor([1.0, 2.0**-126])])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = numerics.philox4x32_10(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(w) for w in words) == expected


def test_exp_is_within_one_ulp():
    x = exp_arguments()
    x = x[x >= -86]
    assert ulp_error(numerics.exp_f32(x), np.exp(x.double().numpy())) <= 1.0


def test_exp_at_the_ends():
    x = torch.tensor([0.0, -0.0, -86.1, -float("inf")])
    assert numerics.exp_f32(x).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_log_is_within_two_ulp():
    x = log_arguments()
    assert ulp_error(numerics.log_f32(x), np.log(x.double().numpy())) <= 2.0


def test_cpp_exp_and_log_have_the_same_bits():
    x = exp_arguments()
    assert torch.equal(bits(through_cpp(_C.exp_f32, x)), bits(numerics.exp_f32(x)))
    x = log_arguments()
    assert torch.equal(bits(through_cpp(_C.log_f32, x)), bits(numerics.log_f32(x)))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 1 << 32])
@pytest.mark.parametrize("step", [0, 1, 2**32, 2**63 - 1])
def test_cpp_noise_has_the_same_bits(seed, step):
    n, first = 3000, 4_000_000
    out = torch.empty(n)
    _C.gumbel_noise(seed, step, first, out.data_ptr(), n)
    expected = numerics.gumbel_noise(torch.tensor(seed), torch.tensor(step), torch.arange(first, first + n))
    assert torch.equal(bits(out), bits(expected))


def test_mass_rounds_to_even_and_sums_exactly():
    p = torch.tensor([0.0, 1.0, 2.0**-40, 2.0**-41, 3 * 2.0**-41, 5 * 2.0**-41, 2.0**-42])
    assert numerics.mass_of(p).tolist() == [0, 2**40, 1, 0, 2, 2, 0]


def test_cpp_mass_has_the_same_bits():
    p = torch.cat([torch.logspace(-45, 0, 100_000, 2, dtype=torch.float64).float(), torch.ones(1)])
    out = torch.empty(len(p), dtype=torch.int64)
    _C.mass_of(p.data_ptr(), out.data_ptr(), len(p))
    assert torch.equal(out, numerics.mass_of(p))


def test_cpp_gumbel_has_the_same_bits_at_both_ends():
    rng = np.random.default_rng(0)
    shift = rng.integers(0, 32, 50_000)
    word0 = (rng.integers(0, 2**32, 50_000) >> shift) | (rng.integers(0, 2, 50_000) << 31)
    word1 = rng.integers(0, 2**32, 50_000) >> rng.integers(0, 33, 50_000)
    words = [torch.from_numpy(w.astype(np.uint32)) for w in (word0, word1)]
    out = torch.empty(50_000)
    _C.gumbel_of(words[0].data_ptr(), words[1].data_ptr(), out.data_ptr(), 50_000)
    expected = numerics.gumbel_of(torch.from_numpy(word0), torch.from_numpy(word1))
    assert torch.equal(bits(out), bits(expected))


def test_gumbel_has_resolution_at_both_ends():
    """Words of the smallest, middle and largest uniforms, against -log(-log u) in float64."""
    upper = 1 << 31
    word0 = torch.tensor([0, 0, upper, upper, upper - 1, 2 * upper - 1, 1 << 20, upper | 1])
    word1 = torch.tensor([0, 2**32 - 1, 0, 2**32 - 1, 0, 0, 12345, 0])
    v = (word0 & (upper - 1)).double().numpy() * 2.0**-32 + (word1 >> 1 | 1).double().numpy() / 2**63
    e = np.where(word0.numpy() >= upper, -np.log1p(-v), -np.log(v))
    got = numerics.gumbel_of(word0, word1)
    assert np.allclose(got.numpy(), -np.log(e), rtol=3e-7, atol=3e-7)
    assert got.isfinite().all()
    assert got[2] > 43.6  # u = 1 - 2^-63
    assert got[0] < -3.77  # u = 2^-63


@pytest.mark.parametrize("side", [0, 1 << 31])
@pytest.mark.parametrize("tail_bits", [0, 20, 28])
def test_gumbel_is_exact_in_the_tails(side, tail_bits):
    """Given that u lies within 2^-(1 + tail_bits) of an end, its distance from it is uniform."""
    rng = np.random.default_rng(tail_bits + side)
    n = 200_000
    word0 = torch.from_numpy(rng.integers(0, 1 << (31 - tail_bits), n)) | side
    word1 = torch.from_numpy(rng.integers(0, 1 << 32, n))
    exponential = np.exp(-numerics.gumbel_of(word0, word1).double().numpy())
    distance = -np.expm1(-exponential) if side else np.exp(-exponential)
    assert stats.kstest(distance * 2.0 ** (1 + tail_bits), "uniform").pvalue > 1e-4


def test_noise_is_gumbel_over_ids_steps_and_seeds():
    n = torch.arange(100_000)
    zero = torch.tensor(0)
    for seed, step, ids in [(zero, zero, n), (zero, n, zero), (n, zero, zero)]:
        noise = numerics.gumbel_noise(seed, step, ids).numpy()
        assert stats.kstest(noise, "gumbel_r").pvalue > 1e-4
        assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
