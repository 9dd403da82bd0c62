"""From ordinary weights to small ones: how far they may be off, and what is refused."""

import re

import numpy as np
import pytest
import torch

from fastdecode.ops import SmallWeights, quantise

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVERY = [("int4", {"symmetric": False})] + [(type, {}) for type in ("int8", "int8x16", "int4", "q8_0", "q4_0")]
HALF_ROUNDING = 2.0**-11
"""Of a scale in float16, relative."""


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def groups(weight: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [weight[:, i : i + size] for i in range(0, weight.shape[1], size)]


def steps(small: SmallWeights) -> torch.Tensor:
    """The scale of each weight (features, k)."""
    features, k = small.shape
    if small.type in ("q8_0", "q4_0"):
        scale = small.data.view(features, k // 32, -1)[..., :2].contiguous().view(torch.float16).float()
        return scale.expand(-1, -1, 32).reshape(features, k).abs()
    group = small.group if small.type == "int4" else k
    return scales(small).repeat_interleave(group, 1)[:, :k].abs()


def scales(small: SmallWeights) -> torch.Tensor:
    """Of each group (features, groups)."""
    scale = small.scale.float()
    return scale[:, None] if small.type == "int8" else scale.view(len(scale), -1, 16).mT.flatten(0, 1)[: len(small)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [32, 96, 256])
def test_int8_and_q8_0_are_half_a_step_off_at_most(k: int, dtype: torch.dtype):
    weight = (randn(9, k) * 0.05).to(dtype)
    weight[3] = 0.0
    weight[4] *= 1e-3
    for type in ("int8", "int8x16", "q8_0"):
        small = quantise(weight, type)
        assert small.shape == (9, k)
        assert small.type == type
        step = steps(small)
        # A scale that is rounded down cuts the largest values. Below 2^-14 float16 has steps of 2^-24.
        cut = 127 * (HALF_ROUNDING * step).clamp_min(2.0**-25) if type == "q8_0" else 0.0
        assert ((small.values() - weight.float()).abs() <= 0.5001 * step + cut).all()
        assert not small.values()[3].any()
        parts = groups(weight.float(), 32 if type == "q8_0" else k)
        most = torch.cat([part.abs().amax(1, keepdim=True).expand(part.shape) for part in parts], 1)
        assert torch.allclose(step, most / 127, rtol=1e-3, atol=6e-8)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("k", [32, 96, 256])
def test_int4_with_offsets_is_half_a_step_off_at_most(k: int, group: int):
    weight = randn(9, k) * 0.05 + 3.0  # far from 0, which no group has to reach
    weight[3] = -2.5
    small = quantise(weight, "int4", group=group, symmetric=False)
    assert (small.group, small.offset.dtype) == (group, torch.float32)
    step = steps(small)
    assert ((small.values() - weight).abs() <= (0.5001 + 15 * HALF_ROUNDING) * step + 1e-6).all()
    assert torch.allclose(small.values()[3], weight[3])
    for i, part in enumerate(groups(weight, group)):
        width = part.amax(1) - part.amin(1)
        assert torch.allclose(scales(small)[:, i], width / 15, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("type", "group"), [("int4", 32), ("int4", 64), ("int4", 128), ("q4_0", 32)])
@pytest.mark.parametrize("k", [32, 96, 256])
def test_int4_is_no_worse_than_its_widest_range(k: int, type: str, group: int):
    weight = randn(9, k) * 0.05
    weight[2, :5] = 1.0  # outliers
    small = quantise(weight, type, group=group)
    step = steps(small)
    values = (small.values() / torch.where(step == 0, 1.0, step)).abs()
    assert values.max() <= 8.001
    for i, part in enumerate(groups(weight, group)):
        got = small.values()[:, i * group : i * group + group]
        farthest = part.gather(1, part.abs().argmax(1, keepdim=True))
        scale = (farthest / -8).half().float()
        widest = (part / scale).round().clamp(-8, 7) * scale
        error, allowed = ((x - part).square().sum(1) for x in (got, widest))
        assert (error <= allowed * 1.0001 + 1e-12).all()
    uncut = small.values().abs() < 6.5 * step
    assert ((small.values() - weight).abs()[uncut] <= 0.501 * step[uncut]).all()


@pytest.mark.parametrize("type", ["int8", "int8x16", "int4", "q8_0", "q4_0"])
def test_what_is_on_the_grid_stays_as_it_is(type: str):
    numbers = torch.arange(-8, 8.0) if type in ("int4", "q4_0") else torch.arange(-127, 128.0)[::17]
    weight = numbers[torch.arange(5 * 64) % len(numbers)].view(5, 64) * 0.25
    weight[:, [0, 32]] = numbers[0] * 0.25
    assert torch.equal(quantise(weight, type).values(), weight)
    assert torch.equal(quantise(torch.zeros(3, 64), type).values(), torch.zeros(3, 64))


def test_ties_go_to_the_even_value():
    weight = torch.zeros(1, 64)
    weight[0, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    for type in ("int8", "q8_0"):
        assert quantise(weight, type).values()[0, :6].tolist() == [127.0, 0.0, 2.0, 2.0, 0.0, -2.0]


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch):
    """A large matrix is quantised part by part."""
    weight, module = randn(39, 64), __import__("fastdecode.ops.quantise", fromlist=["_PART"])
    for type, options in EVERY:
        whole = quantise(weight, type, **options)
        monkeypatch.setattr(module, "_PART", 1024)
        parts = quantise(weight, type, **options)
        monkeypatch.undo()
        assert torch.equal(whole.values(), parts.values())
        assert quantise(weight[:0], type, **options).values().shape == (0, 64)


def test_tiny_weights_become_zeros_not_nan():
    weight = torch.full((2, 64), 1e-44)
    weight[1] = 1e-12
    for type, options in EVERY:
        values = quantise(weight, type, **options).values()
        assert values.isfinite().all()
        assert (values - weight).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        ([[1.0]], {}, "weight: must be a tensor, got list"),
        (torch.ones(3), {}, "weight.shape = (3,): must be (features, k)"),
        (torch.ones(3, 0), {}, "weight.shape = (3, 0): k must be at least 1"),
        (torch.ones(3, 4).double(), {}, "weight.dtype = torch.float64: must be float32, bfloat16 or float16"),
        (torch.ones(32, 3).t(), {}, "weight: must be dense, as .contiguous() makes it"),
        (torch.ones(3, 32), {"type": "int2"}, "type = 'int2': must be one of int8, int8x16, int4, q8_0, q4_0"),
        (torch.ones(3, 32), {"type": None}, "type = None: must be one of int8, int8x16, int4, q8_0, q4_0"),
        (
            torch.ones(3, 33),
            {"type": "q8_0"},
            "weight.shape = (3, 33): k must be a multiple of 32 for q8_0 weights",
        ),
        (
            torch.ones(3, 16),
            {"type": "int4"},
            "weight.shape = (3, 16): k must be a multiple of 32 for int4 weights",
        ),
        (torch.ones(3, 32), {"type": "int4", "group": 48}, "group = 48: must be 32 or a multiple of 64"),
        (torch.ones(3, 32), {"type": "int4", "group": 0}, "group = 0: must be 32 or a multiple of 64"),
        (torch.ones(3, 32), {"type": "int4", "group": "a"}, "group = 'a': must be a whole number"),
    ],
    ids=str,
)
def test_wrong_arguments(weight, options: dict, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quantise(weight, **options)


@pytest.mark.parametrize(
    "options", [{"type": t} for t in ("int8", "int8x16", "int4", "q8_0", "q4_0")] + [{"symmetric": False}]
)
def test_what_no_scale_can_hold(options: dict):
    options = {"type": "int4", **options}
    for bad in (torch.nan, torch.inf, -torch.inf):
        weight = randn(3, 64)
        weight[2, 63] = bad
        with pytest.raises(ValueError, match=r"^weight: must be finite, but it has infinity or NaN$"):
            quantise(weight, **options)
    large = randn(3, 64) * 1e9
    if options["type"].startswith("int8"):  # whose scales are float32
        values = quantise(large, **options).values()
        assert (values - large).abs().max() <= 0.51 * large.abs().max() / 127
    else:
        with pytest.raises(ValueError, match=r"^weight: its largest scale, .*, is beyond float16$"):
            quantise(large, **options)


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_blocks_are_those_of_gguf(type: str):
    """Its own package reads them, and writes the same bytes of q8_0 but for the rounding of its scales."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[type.upper()]
    weight = randn(7, 96)
    small = quantise(weight, type)
    assert np.array_equal(gguf.dequantize(small.data.numpy(), kind), small.values().numpy())
    theirs = torch.from_numpy(gguf.quantize(weight.numpy(), kind))
    assert theirs.shape == small.data.shape
    read = SmallWeights(type, 96, theirs)
    assert np.array_equal(gguf.dequantize(theirs.numpy(), kind), read.values().numpy())
    errors = [float((x.values() - weight).square().mean()) for x in (small, read)]
    assert errors[0] <= 1.02 * errors[1]


def test_a_group_larger_than_a_feature_takes_no_memory():
    weight = randn(3, 96)
    assert torch.equal(quantise(weight, "int4", group=1 << 30).values(), quantise(weight, "int4", group=128).values())
