"""Triton's exp, log, masses, keys and noise against the reference's, bit by bit."""

import pytest
import torch
from devices import DEVICE

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastdecode.ops import numerics as reference
from fastdecode.triton_kernels import numerics

BLOCK = 4096


@triton.jit
def _exp_kernel(x, p, mass, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = numerics.exp_f32(tl.load(x + at))
    tl.store(p + at, value)
    tl.store(mass + at, numerics.mass_of(value))


@triton.jit
def _log_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, numerics.log_f32(tl.load(x + at)))


@triton.jit
def _key_kernel(x, key, back, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = numerics.order_key(tl.load(x + at))
    tl.store(key + at, value)
    tl.store(back + at, numerics.float_of_key(value))


@triton.jit
def _limit_kernel(top_p, total, limit, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(limit + at, numerics.top_p_limit(tl.load(top_p + at), tl.load(total + at)))


@triton.jit
def _noise_kernel(seeds, steps, noise, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    ids = tl.arange(0, BLOCK)
    seed = tl.load(seeds + row)
    tl.store(noise + row * BLOCK + ids, numerics.gumbel_noise(seed, tl.load(steps + row), ids * 977))


@triton.jit
def _read_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, numerics.to_f32(tl.load(x + at)))


def run(kernel, *arguments: torch.Tensor) -> None:
    kernel[(arguments[0].numel() // BLOCK,)](*arguments, BLOCK=BLOCK, enable_fp_fusion=False)


def floats(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int32).view(torch.float32).to(DEVICE)


def assert_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


def spread(lo: int, hi: int, count: int = 1 << 18) -> torch.Tensor:
    """(count,) float32 whose bits run evenly from lo to hi."""
    return floats(torch.linspace(lo, hi, count, dtype=torch.float64).long())


def test_exp_and_masses():
    x = torch.cat([-spread(0, 0x43000000), torch.full((BLOCK,), -torch.inf, device=DEVICE)])
    p, mass = torch.empty_like(x), torch.empty_like(x, dtype=torch.int64)
    run(_exp_kernel, x, p, mass)
    assert_bits(p, reference.exp_f32(x))
    assert torch.equal(mass, reference.mass_of(p))


def test_log():
    x = spread(0x00800000, 0x7F7FFFFF)
    y = torch.empty_like(x)
    run(_log_kernel, x, y)
    assert_bits(y, reference.log_f32(x))


def test_keys_order_as_floats_do():
    positive = spread(0, 0x7F800000)
    x = torch.cat([-positive.flip(0)[:-1], positive, positive[-1:]])
    key, back = torch.empty_like(x, dtype=torch.int64), torch.empty_like(x)
    run(_key_kernel, x, key, back)
    assert ((key[1:] > key[:-1]) == (x[1:] > x[:-1])).all()
    assert_bits(back, x)
    assert key.abs().max() < 2**31


def test_limits_of_top_p():
    generator = torch.Generator().manual_seed(0)
    total = torch.randint(1, 1 << 62, (8 * BLOCK,), generator=generator) >> torch.randint(
        0, 60, (8 * BLOCK,), generator=generator
    )
    top_p = torch.rand(8 * BLOCK, generator=generator)
    top_p[:64], total[64:128] = 0.0, 1
    total, top_p = total.to(DEVICE), top_p.to(DEVICE)
    limit = torch.empty_like(total)
    run(_limit_kernel, top_p, total, limit)
    assert torch.equal(limit, torch.ceil(top_p.double() * total.double()).long().clamp_min(1))


def test_noise():
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(-(2**63), 2**63 - 1, (16,), generator=generator).to(DEVICE)
    steps = torch.randint(0, 2**62, (16,), generator=generator).to(DEVICE)
    noise = torch.empty(16, BLOCK, device=DEVICE)
    _noise_kernel[(16,)](seeds, steps, noise, BLOCK=BLOCK, enable_fp_fusion=False)
    ids = torch.arange(BLOCK, device=DEVICE) * 977
    assert_bits(noise, reference.gumbel_noise(seeds.unsqueeze(1), steps.unsqueeze(1), ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_read_right(dtype: torch.dtype):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(DEVICE)
    y = torch.empty(x.shape, device=DEVICE)
    run(_read_kernel, x, y)
    expected = x.float()
    assert torch.equal(y.isnan(), expected.isnan())
    assert_bits(y.nan_to_num(0), expected.nan_to_num(0))
