"""Tensors of 4 bits that torchao has made: the same numbers as torchao's, and which of them are left to torchao."""

import copy

import pytest
import torch
from models_for_tests import text_ids, tiny_model
from torch import nn

import fastdecode
from fastdecode import ops
from fastdecode.decoder import Decoder
from fastdecode.decoder.choice import decoder_for
from fastdecode.decoder.quantised import (
    matrix_of,
    of_small,
    small_of,
    unsupported_bytes,
    unsupported_small,
    unsupported_stored,
)
from fastdecode.decoder.support import unsupported_by_triton, unsupported_reason
from fastdecode.models.families import vocabulary_of

quantization = pytest.importorskip("torchao.quantization")
from torchao.quantization.quant_primitives import MappingType  # noqa: E402
from torchao.quantization.quantize_.workflows import Int4PlainInt32Tensor, Int4Tensor  # noqa: E402

SYMMETRIC, ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC


def config(bits: int = 4, group: int = 32, mapping=SYMMETRIC, scale=torch.float16):
    return quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=quantization.PerGroup(group),
        mapping_type=mapping,
        scale_dtype=scale,
    )


def unpacked(seed: int, k: int = 128, dtype=torch.float32, **how):
    torch.manual_seed(seed)
    linear = nn.Linear(k, 24, bias=False).to(dtype)
    with torch.no_grad():
        linear.weight += 0.05
    quantization.quantize_(linear, config(**how))
    return linear.weight


def packed(weight: torch.Tensor, group: int, **more) -> tuple[Int4Tensor, torch.Tensor]:
    """An ``Int4Tensor`` and the numbers that it stands for, by the definition of FBGEMM's ``int4_row_quantize_zp`` and
    ``pack_int4``, which make them on a GPU.
    """
    grouped = weight.float().view(len(weight), -1, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = (high - low).clamp(min=1e-6) / 15
    zero = low + scale * 8
    values = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15) - 8
    scale, zero = scale.to(weight.dtype), zero.to(weight.dtype)
    exact = (values * scale.float()[..., None] + zero.float()[..., None]).view(weight.shape)
    signed = values.to(torch.int8).view(weight.shape)
    data = torch.bitwise_or(signed[:, ::2] & 0xF, signed[:, 1::2] << 4).contiguous()
    return Int4Tensor(data, scale.t().contiguous(), zero.t().contiguous(), [1, group], weight.shape, **more), exact


@pytest.mark.parametrize("mapping", [SYMMETRIC, ASYMMETRIC])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 4])
def test_unpacked_values_are_torchaos(mapping, group: int, bits: int):
    weight = unpacked(group + bits, bits=bits, group=group, mapping=mapping)
    assert of_small(weight)
    assert unsupported_small(weight) is None
    small = small_of(weight)
    assert (small.type, small.group, (small.offset is None)) == ("int4", group, not bool(weight.zero_point.any()))
    torch.testing.assert_close(small.values(), weight.dequantize().float(), rtol=2e-7, atol=1e-8)


def test_unpacked_values_of_bfloat16_are_torchaos():
    weight = unpacked(1, dtype=torch.bfloat16, scale=None, mapping=ASYMMETRIC)
    assert weight.scale.dtype == torch.bfloat16
    assert unsupported_small(weight) is None
    assert torch.equal(small_of(weight).values().to(torch.bfloat16), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 64])
def test_packed_values_are_exact(group: int, dtype):
    torch.manual_seed(group)
    weight, exact = packed(torch.randn(24, 128).to(dtype), group)
    assert of_small(weight)
    assert unsupported_small(weight) is None
    small = small_of(weight)
    assert (small.type, small.group, small.shape) == ("int4", group, (24, 128))
    assert torch.equal(small.values(), exact)


def test_a_copy_is_kept_until_the_values_change():
    weight = unpacked(3)
    first = small_of(weight)
    assert small_of(weight) is first
    weight.qdata.copy_(weight.qdata.flip(1))
    second = small_of(weight)
    assert not torch.equal(second.data, first.data)
    torch.testing.assert_close(second.values(), weight.dequantize().float(), rtol=2e-7, atol=1e-8)


def test_a_model_is_decoded_by_the_fast_step():
    model = tiny_model(3, resolution=16, sizes={"hidden_size": 64, "intermediate_size": 128})
    quantization.quantize_(model.model.layers, config())
    quantization.quantize_(model.lm_head, config(mapping=ASYMMETRIC))
    assert unsupported_reason(model) is None
    decoder = decoder_for(model)
    assert isinstance(decoder, Decoder)
    assert decoder.uses_cpu_step
    exact = copy.deepcopy(model)
    for module in exact.modules():
        if isinstance(module, nn.Linear) and of_small(module.weight):
            module.weight = nn.Parameter(module.weight.dequantize())
    ids = torch.tensor([[1, *text_ids(model, 0, 5)]])
    drawing = {"input_ids": ids, "multimodal_generation_mode": "image-only", "seed": 1, "do_sample": True}
    out = fastdecode.generate(model, **drawing, guidance=2.0)
    assert out.shape == (1, 6 + vocabulary_of(model).image_length + 2)
    hidden = torch.randn(3, 64)
    mine, its = decoder.logits(hidden, None), Decoder(exact).logits(hidden, None)
    assert (mine - its).norm() <= 0.02 * its.norm()


def test_what_is_left_to_torchao():
    assert unsupported_small(unpacked(0, bits=8)) == "of int8, not of 4 bits"
    assert unsupported_small(unpacked(0, k=96, group=96)).startswith(
        "of blocks of (1, 96) weights in rows of 96: groups"
    )
    assert unsupported_small(unpacked(0, k=64, group=16)).startswith("of blocks of (1, 16) weights")
    assert unsupported_small(unpacked(0, scale=torch.float32)).startswith("with scales that are no float16 numbers")
    weight = unpacked(0)
    weight.activation_quantization = "int8_asym_per_token"
    assert unsupported_small(weight) == "with activations made smaller too, which is not weight-only"
    assert unsupported_bytes(weight, "cpu") == "not of int8 or float8_e4m3fn"
    values = torch.randn(8, 64).to(torch.bfloat16)
    for more in ({"act_pre_scale": torch.ones(64)}, {"activation_dtype": torch.float8_e4m3fn}):
        assert unsupported_small(packed(values, 32, **more)[0]).startswith("with activations made smaller too")
    short = packed(values, 32)[0]
    short.scale = short.scale[:1]
    assert unsupported_small(short) == "with scales of (1, 8), not (2, 8)"


def test_what_a_gpus_kernels_read():
    """In place. On a GPU the weights' device is another, so the checks are told that it is the CPU."""
    torch.manual_seed(0)
    values = torch.randn(24, 128).to(torch.bfloat16)
    weight, exact = packed(values, 64)
    assert unsupported_stored(weight, "cpu") is None
    linear = nn.Linear(128, 24)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    matrix = matrix_of(linear)
    read = matrix.weight
    assert [t.data_ptr() for t in read.tensors] == [
        t.data_ptr() for t in (weight.qdata, weight.scale, weight.zero_point)
    ]
    assert torch.equal(read.values(), exact)
    assert torch.equal(read[3:9].values(), exact[3:9])
    assert torch.equal(matrix.bias, linear.bias)
    assert unsupported_stored(packed(values.float(), 64)[0], "cpu") is None  # scales of float32 too
    assert unsupported_stored(weight, "cuda") == "not dense on cuda"
    told = "with a byte for each value: on a GPU Int4Tensor is read, whose bytes hold two"
    assert unsupported_stored(unpacked(0), "cpu") == told
    small = ops.SmallTensor(ops.quantise(torch.randn(32, 64), "int4"))
    told = "of int4 on cpu: fastdecode's own small weights are for CPUs"
    assert unsupported_stored(small, "cuda") == told
    for more in ({"act_pre_scale": torch.ones(128)}, {"activation_dtype": torch.float8_e4m3fn}):
        assert unsupported_stored(packed(values, 64, **more)[0], "cpu").startswith("with activations made smaller too")
    for name, change, told in (
        ("scale", lambda t: t.t().contiguous().t(), "not dense on cpu"),
        ("scale", lambda t: t[:1], "with scales of (1, 24), not (2, 24)"),
        ("zero_point", lambda t: t.half(), "with scales and zero points of bfloat16 and float16, not both of float32"),
        ("zero_point", lambda t: t.char(), "with scales and zero points of bfloat16 and int8, not both of float32"),
        ("qdata", lambda t: torch.cat((t.flatten(), t[0, :1]))[1:].view(t.shape), "that begins at an odd address"),
        ("block_size", lambda _: [1, 96], "of blocks of (1, 96) weights in rows of 128: groups of 32"),
    ):
        changed = packed(values, 64)[0]
        setattr(changed, name, change(getattr(changed, name)))
        assert unsupported_stored(changed, "cpu").startswith(told), name


def test_a_model_of_a_gpu_names_what_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastdecode.decoder.support.unavailable", lambda backend: None)
    model = tiny_model(3, sizes={"hidden_size": 64, "intermediate_size": 128}).bfloat16()
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(packed(module.weight.detach(), 32)[0], requires_grad=False)
    model.to("meta")
    assert unsupported_by_triton(model) is None
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(unpacked(0, k=64).to("meta"), requires_grad=False)
    wanted = (
        "layers.1: mlp.up_proj.weight is a IntxUnpackedToInt8Tensor with a byte for each value: on a GPU Int4Tensor"
    )
    assert unsupported_by_triton(model).startswith(wanted)
    small = ops.SmallTensor(ops.quantise(torch.randn(128, 64), "int4"))
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(small, requires_grad=False)
    wanted = "layers.1: mlp.up_proj.weight is a SmallTensor of int4 on cpu: fastdecode's own small weights are for CPUs"
    assert unsupported_by_triton(model) == wanted


def test_other_classes_are_named():
    model = tiny_model(3, sizes={"hidden_size": 64, "intermediate_size": 128})
    quantization.quantize_(model.model.layers, config())
    scale, shape = torch.ones(2, 128, dtype=torch.bfloat16), torch.Size((128, 64))
    weight = Int4PlainInt32Tensor(torch.zeros(128, 8, dtype=torch.int32), scale, scale.char(), [1, 32], shape)
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(weight, requires_grad=False)
    wanted = "layers.1: mlp.up_proj.weight is a Int4PlainInt32Tensor, not dense float32, bfloat16 or float16 on the CPU"
    assert unsupported_reason(model) == wanted
