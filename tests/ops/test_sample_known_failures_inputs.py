"""Failures of other samplers: range, memory, shape, NaN, guidance. `tests/known_failures.md` lists all of them."""

import math

import pytest
import torch
from cases import SIZES, assert_same_bits
from known_failures import INF, i32, one, randn

from fastdecode.ops import seen_bits

# --- range, memory, shape ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", SIZES)
def test_row_19_lanes_behind_the_end_are_never_drawn(sample, vocab):
    """Every logit is far below the zeros, and far above the -inf, that a padded lane may hold."""
    logits = torch.full((2, vocab + 64), 1e9)[:, :vocab]
    logits[:] = -500.0
    for arguments in ({}, {"top_k": vocab}, {"top_p": 0.5}, {"temperature": 0.0}, {"min_p": 1.0}):
        got = sample(logits, seed=torch.tensor([1, 2]), **arguments)
        assert (got.status == 0).all()
        assert ((got.token >= 0) & (got.token < vocab)).all()
        if arguments.get("temperature") != 0.0:
            assert got.kept.tolist() == [vocab, vocab]


def test_row_21_parameters_are_of_groups_and_rows_of_streams(sample):
    """Six rows, two groups, three streams: rows beyond the number of groups, in an order of their own."""
    logits = randn(21, 6, 400)
    streams = i32([5, 2, 4], [3, -1, 0])
    weights = torch.tensor([[2.0, -0.5, -0.25], [1.5, 7.0, -0.5]])
    arguments = {"temperature": torch.tensor([0.5, 2.0]), "top_k": i32(3, 90), "seed": torch.tensor([7, -7])}
    got = sample(logits, streams=streams, weights=weights, **arguments)
    mixed = torch.stack(
        [2 * logits[5] - 0.5 * logits[2] - 0.25 * logits[4], 1.5 * logits[3] + -0.5 * logits[0]]
    )  # each product is exact, or its sum rounds as the contract says
    assert got.kept.tolist() == [3, 90]
    for g in range(2):
        own = {name: value[g : g + 1] for name, value in arguments.items()}
        alone = sample(logits, streams=streams[g : g + 1], weights=weights[g : g + 1], **own)
        assert_same_bits(alone, one(got, g))
        assert sample(mixed[g : g + 1], **own).token.item() == got.token[g].item()
    for name in arguments:
        per_row = arguments[name].repeat(3)
        with pytest.raises(ValueError, match=rf"{name}.shape = \(6,\): must be \(2,\)"):
            sample(logits, streams=streams, weights=weights, **{**arguments, name: per_row})


def test_row_21_seen_belongs_to_the_group(sample):
    """A group's penalty counts its own seen ids, whatever rows it reads."""
    logits = torch.tensor([[2.0, 1.5], [0.0, 9.0], [1.5, 2.0]])
    seen = seen_bits([[0], [1]], 2)
    got = sample(logits, streams=i32([2], [0]), seen=seen, penalty=torch.tensor([8.0, 8.0]), temperature=0.0)
    assert got.token.tolist() == [1, 0]
    got = sample(logits, streams=i32([0], [2]), seen=seen, penalty=torch.tensor([8.0, 1.0]), temperature=0.0)
    assert got.token.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_row_22_rows_of_a_padded_view_are_the_right_ones(sample, dtype):
    """What lies between the rows is larger than anything in them."""
    dense = (randn(22, 5, 130) * 2).to(dtype)
    wide = torch.full((11, 137), 1000.0, dtype=dtype)
    view = wide[1::2, 3:133]
    view.copy_(dense)
    assert view.stride() == (274, 1)
    for arguments in ({"temperature": 0.0}, {"top_p": 0.9}, {"streams": i32([4, 0], [1, 3])}):
        assert_same_bits(sample(view, seed=3, **arguments), sample(dense, seed=3, **arguments))
    repeated = dense[:1].expand(3, 130)  # a row stride of 0
    assert_same_bits(sample(repeated, seed=3), sample(repeated.clone(), seed=3))


@pytest.mark.parametrize("possible", [0, 1, 3])
@pytest.mark.parametrize("where", [0, 8191, 8192, 19_999])
def test_row_23_stretches_of_minus_inf_leave_nothing_unwritten(sample, possible, where):
    """Whole blocks of -inf, and fewer possible ids than top_k asks for. Outputs are poisoned before the call."""
    logits = torch.full((2, 20_000), -INF)
    at = [(where + 9973 * i) % 20_000 for i in range(possible)]
    logits[0, at] = 1.0
    logits[1, 5] = 0.0
    for arguments in ({}, {"top_k": 50}, {"top_p": 0.5}, {"top_k": 50, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0}):
        got = sample(logits, **arguments)
        if possible == 0:
            assert [field[0].item() for field in got] == [-1, -INF, 0, 1]
        else:
            assert got.token[0].item() in at
            assert got.status[0].item() == 0
        assert [field[1].item() for field in got] == [5, 0.0, 1, 0]


# --- NaN, temperature, guidance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}, {"min_p": 0.5}], ids=str)
def test_row_25_a_row_of_nan_is_never_served(sample, arguments):
    logits = randn(25, 3, 20_000)
    healthy = sample(logits, **arguments)
    logits[1] = math.nan
    got = sample(logits, **arguments)
    assert [field[1].item() for field in got] == [-1, -INF, 0, 1]
    for g in (0, 2):
        assert_same_bits(one(got, g), one(healthy, g))
    logits[1] = 0.0
    logits[1, 19_999] = math.nan  # one is enough, wherever it is
    assert sample(logits, **arguments).status.tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.5, 1.0, 3.0, 1e30])
def test_row_26_minus_inf_is_impossible_at_every_temperature(sample, temperature):
    logits = torch.tensor([[-INF, 2e-6, 1e-6, -INF]])
    for seed in range(20):
        got = sample(logits, temperature=temperature, seed=seed)
        assert got.token.item() in (1, 2)
        assert got.kept.item() == (1 if temperature == 0 else 2)
    with pytest.raises(ValueError, match="temperature = -1: must be finite and >= 0"):
        sample(logits, temperature=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [3.0, 0.5, -1.0])
def test_row_27_guidance_on_masked_logits(sample, dtype, scale):
    """-inf in both streams is impossible; finfo.min, in a set that leaves it out, is not read; in the set it may
    overflow, and then no token comes rather than a plausible one."""
    streams, weights = i32([0, 1]), torch.tensor([[scale, 1 - scale]])
    logits = randn(27, 2, 40).to(dtype)
    logits[:, 20:] = -INF
    got = sample(logits, streams=streams, weights=weights)
    assert (got.status.item(), got.kept.item()) == (0, 20)
    assert got.token.item() < 20
    alone = sample(logits[:, :20], streams=streams, weights=weights)
    assert_same_bits(got, alone)
    logits[:, 20:] = torch.finfo(dtype).min
    inside = sample(logits, streams=streams, weights=weights, allowed=[[(0, 20)]])
    assert_same_bits(inside, alone)
    everything = sample(logits, streams=streams, weights=weights)
    assert everything.token.item() < 20
    overflows = dtype != torch.float16 and abs(scale) > 1
    assert everything.status.item() == (1 if overflows else 0)


def test_row_29_greedy_draws_follow_the_guidance(sample):
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 0.0, 0.0]])
    assert sample(logits[:1], temperature=0.0).token.item() == 0
    for temperature in (0.0, 1e-4):
        got = sample(logits, streams=i32([0, 1]), weights=torch.tensor([[3.0, -2.0]]), temperature=temperature, seed=1)
        assert got.token.item() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_row_30_half_precision_streams_are_mixed_in_float32(sample, dtype):
    """Against float64, with the difference of two close streams amplified by 12."""
    conditional = (randn(30, 1, 200) * 3).to(dtype)
    unconditional = (conditional.float() + randn(31, 1, 200) * 0.05).to(dtype)
    z = 13.0 * conditional.double() - 12.0 * unconditional.double()
    exact = z.log_softmax(1)[0]
    got = sample(
        torch.cat([conditional, unconditional]).expand(2, 200),
        streams=i32([0, 1]).expand(50, 2),
        weights=torch.tensor([[13.0, -12.0]]).expand(50, 2),
        step=torch.arange(50),
    )
    assert len(set(got.token.tolist())) > 5
    assert torch.allclose(got.logprob.double(), exact[got.token], atol=2e-5, rtol=0)
