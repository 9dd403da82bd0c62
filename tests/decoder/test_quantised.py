"""Models that torchao has quantised: our kernels read the weights if they can; otherwise torchao does."""

import copy

import pytest
import torch
from models_for_tests import drawing_model, text_ids
from test_classes import text_model
from test_cpu_step import run
from torch import nn
from traces import IMAGE_ONLY, Traces, both, prompts_of

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.decoder.quantised import matrix_of, of_torchao, unsupported_bytes
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.models.families import vocabulary_of

quantization = pytest.importorskip("torchao.quantization")

CONFIGS = {"int8": quantization.Int8WeightOnlyConfig, "float8": quantization.Float8WeightOnlyConfig}
DTYPES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}


def quantised(model, config):
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.lm_head.weight[(made.lm_head.weight == 0).all(1)] = 0.01  # torchao makes NaN of float8 zeros
    quantization.quantize_(made, config)
    return made


def dequantised(model):
    """The same numbers in plain float32."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            data, _, scale = matrix_of(module)
            module.weight = nn.Parameter(data.float() * scale[:, None])
    return made


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("make", [lambda: drawing_model(3, resolution=16), lambda: text_model("qwen2", 2)])
def test_a_step_of_our_kernels(make, kind: str):
    model = quantised(make(), CONFIGS[kind]())
    exact = dequantised(model)
    read, plain = Decoder(model), Decoder(exact)
    read._take_steps_by(TritonStep(model.model, read.swin, "reference"))
    matrix = read._fast_step.layers[0].down
    assert matrix.weight.dtype == DTYPES[kind]
    assert matrix.weight.data_ptr() == model.model.layers[0].mlp.down_proj.weight.qdata.data_ptr()
    rows = [[5, 6, 7, 3, 4, 9, 8], [8, 9, 3, 4, 5]]
    found, wanted = run(read, rows, 3), run(plain, rows, 3)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    for spans in (None, [(3, 9), (20, 27)]):
        mine, its = read.logits(wanted[-1], spans), plain.logits(wanted[-1], spans)
        for lo, hi in spans or [(0, mine.shape[1])]:
            assert mine.dtype == torch.float32
            assert (mine[:, lo:hi] - its[:, lo:hi]).norm() <= 1e-5 * its[:, lo:hi].norm()


@pytest.mark.parametrize("kind", CONFIGS)
def test_generate_and_what_is_told(kind: str, monkeypatch: pytest.MonkeyPatch):
    """On a CPU our kernels read int8, and float8 is left to torchao; where kernels read both, nothing is said."""
    model = quantised(drawing_model(3, resolution=16), CONFIGS[kind]())
    options = {"input_ids": torch.tensor([[1, *text_ids(model, 0, 5)]]), "multimodal_generation_mode": "image-only"}
    ids = fastdecode.generate(model, **options, seed=1, do_sample=True, guidance=2.0)
    assert ids.shape == (1, 6 + vocabulary_of(model).image_length + 2)
    reasons = [r for r in fastdecode.explain(model, **options).why_not_faster if "layers" in r]
    assert len(reasons) == (kind == "float8")
    if reasons:
        wanted = "the layers cannot be run as one: layers.0: self_attn.q_proj.weight is a Float8Tensor of float8_e4m3fn"
        assert reasons[0].startswith(f"{wanted}, not int8")
    monkeypatch.setattr("fastdecode.decoder.support.unavailable", lambda backend: None)
    monkeypatch.setattr("fastdecode.decoder.support._read", lambda device: device)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert unsupported_bytes(weight, "cpu") is None
    assert unsupported_bytes(weight, "cuda") == "not dense on cuda"


def test_int8_of_torchao_by_the_cpu_step():
    """As the same numbers in plain float32, but for the rounding of a product's inputs to 255 steps."""
    model = quantised(text_model("llama", 2), CONFIGS["int8"]())
    rows = [[5, 6, 7, 3, 4, 9, 8], [8, 9, 3, 4, 5]]
    read, plain = Decoder(model), Decoder(dequantised(model))
    assert read.uses_cpu_step
    found, wanted = run(read, rows, 3), run(plain, rows, 3)
    assert (found - wanted).norm() <= 0.03 * wanted.norm()
    mine, its = read.logits(wanted[-1]), plain.logits(wanted[-1])
    assert (mine - its).norm() <= 0.02 * its.norm()


def test_other_kinds_are_refused():
    model = drawing_model(3, resolution=16)
    weight = quantised(model, quantization.Int8DynamicActivationInt8WeightConfig()).lm_head.weight
    assert unsupported_bytes(weight, "cpu") == "with activations made smaller too, which is not weight-only"
    weight = quantised(model, quantization.Int8WeightOnlyConfig()).lm_head.weight
    weight.act_pre_scale = torch.ones(weight.shape[1])
    assert unsupported_bytes(weight, "cpu") == "with activations made smaller too, which is not weight-only"
    weight.act_pre_scale = None
    assert unsupported_bytes(weight, "cpu") is None
    weight.zero_point.fill_(3)
    assert unsupported_bytes(weight, "cpu") == "with zero points"
    weight.block_size = [1, 16]
    assert unsupported_bytes(weight, "cpu") == "of blocks of (1, 16) weights, not with one scale for each feature"
    assert not of_torchao(torch.zeros(2, 2))
    assert not of_torchao(None)


def test_captured(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = quantised(drawing_model(5, resolution=16), CONFIGS["int8"]())
    options = {**prompts_of(model), **IMAGE_ONLY, "kv_pool": fastdecode.new_pool(model)}
    first = both(model, traces, monkeypatch, **options)
    assert traces.captures == 1
    assert torch.equal(both(model, traces, monkeypatch, **options), first)
    assert traces.captures == 0
    model.lm_head.weight.qdata.copy_(model.lm_head.weight.qdata.flip(1))
    assert not torch.equal(both(model, traces, monkeypatch, **options), first)
    assert traces.captures == 0
