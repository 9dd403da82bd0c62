"""What Gemma's layers do otherwise than Llama's: scaled embeddings, norms by 1 + weight, GELU; and what is refused."""

from functools import partial

import pytest
import torch
from test_classes import batch, text_model
from test_cpu_step import run
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.decoder.activations import activation_of
from fastdecode.decoder.alterations import altered_reason
from fastdecode.decoder.classes import epsilon_of, factors_of, scale_of
from fastdecode.decoder.layers import RMSNorm
from fastdecode.decoder.support import unsupported_reason
from fastdecode.decoder.triton_step import TritonStep

WIDE = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 256, "num_key_value_heads": 4}
"""As Gemma-7B: more features of heads than hidden ones, whose root is not a float."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GREEDY = {"max_new_tokens": 30, "do_sample": False}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embeddings_are_rounded_as_the_module_rounds_them(dtype: torch.dtype, weights: str | None, tied: bool):
    model = text_model("gemma", 1, tie_word_embeddings=tied, **WIDE).to(dtype)
    if weights is not None:
        fastdecode.quantise(model, weights)
    decoder, tokens = Decoder(model), torch.arange(331)
    assert decoder.uses_cpu_step
    assert decoder._plain_embed
    expected = model.model.embed_tokens(tokens)
    found = decoder._embedded(tokens)
    assert expected.dtype == dtype
    assert torch.equal(found.float(), expected.float())
    assert not torch.equal(found.float(), F.embedding(tokens, model.model.embed_tokens.weight).float())


def test_the_scale_is_read_when_it_is_used():
    model = text_model("gemma", 2)
    decoder, tokens = Decoder(model), torch.arange(9)
    model.model.embed_tokens.embed_scale.fill_(3.0)
    assert torch.equal(decoder._embedded(tokens), model.model.embed_tokens.weight[:9] * 3.0)
    assert scale_of(nn.Embedding(3, 4)) is None


def test_plain_embeddings_in_a_gemma_are_not_scaled():
    model = text_model("gemma", 3)
    weight = model.model.embed_tokens.weight
    model.model.embed_tokens = nn.Embedding(331, 64, _weight=weight.detach() * 8)
    model.lm_head.weight = nn.Parameter(weight.detach())
    options = {**batch(3, [12, 5]), **GREEDY}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))


def test_embeddings_with_a_forward_of_their_own_are_called():
    model = text_model("gemma", 4)
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: output.flip(-1))
    assert not Decoder(model)._plain_embed
    options = {**batch(4, [12, 5]), **GREEDY}
    expected = model.generate(**options)
    assert torch.equal(fastdecode.generate(model, **options), expected)
    assert not torch.equal(expected, text_model("gemma", 4).generate(**options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_norms(dtype: torch.dtype):
    module = text_model("gemma", 5, rms_norm_eps=1e-3).to(dtype).model.norm
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(5)).to(dtype)
    mine, theirs = RMSNorm(module), module(x)
    assert mine.plain == (dtype == torch.float32)
    assert epsilon_of(module) == 1e-3
    assert mine(x).dtype == theirs.dtype == dtype
    assert (mine(x) - theirs).abs().max() <= (1e-6 if dtype == torch.float32 else 0.0)
    assert factors_of(module).dtype == torch.float32
    assert torch.equal(factors_of(module), 1.0 + module.weight.float())
    module.weight += 1.0  # in place
    torch.testing.assert_close(mine(x), module(x))


@pytest.mark.parametrize("backend", [None, "reference"])
@torch.no_grad()
def test_weights_of_norms_that_bfloat16_would_lose_are_kept(backend: str | None):
    """1 + 0.003 is 1 in bfloat16: the C++ step and that of operations multiply by the float32 sum."""
    model, found = text_model("gemma", 5).bfloat16(), []
    for value in (0.0, 0.003):
        model.model.norm.weight.fill_(value)
        decoder = Decoder(model)
        if backend is not None:
            decoder._take_steps_by(TritonStep(model.model, False, backend))
        found.append(run(decoder, [[5, 9, 4, 7], [8, 3, 6]], 2))
    torch.testing.assert_close(found[1], found[0] * (1.0 + model.model.norm.weight[0].float()), rtol=1e-6, atol=0.0)


def test_a_norm_of_another_epsilon_takes_pytorchs_step():
    model = text_model("gemma", 6)
    model.model.layers[1].post_attention_layernorm.eps = 1e-2
    plain = "its norms are not plain GemmaRMSNorms with the epsilon of the last one, or have hooks"
    assert unsupported_reason(model) == f"layers.1: {plain}"
    options = {**batch(6, [9, 4]), **GREEDY}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((ACT2FN[name], "silu") for name in ("silu", "swish")),
        *((ACT2FN[name], "gelu") for name in ("gelu", "gelu_python")),
        *((ACT2FN[name], "gelu_tanh") for name in ("gelu_pytorch_tanh", "gelu_python_tanh")),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        *((ACT2FN[name], "") for name in ("relu", "quick_gelu", "gelu_10", "tanh", "relu2")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_the_activation_of_a_module(module: nn.Module, name: str):
    assert activation_of(module) == name
    if name:
        x = torch.linspace(-6, 6, 50)[None]
        found = fastdecode.ops.swiglu(torch.cat((x, torch.ones_like(x)), 1), activation=name)
        torch.testing.assert_close(found, module(x), rtol=2e-6, atol=1e-6)


def _another_function(activation: nn.Module) -> nn.Module:
    activation.act = partial(F.gelu, approximate="none")
    return activation


def _hooked(activation: nn.Module) -> nn.Module:
    activation.register_forward_hook(lambda module, args, output: output * 0.5)
    return activation


@pytest.mark.parametrize("change", [lambda activation: nn.ReLU(), _another_function, _hooked])
def test_other_activations_take_pytorchs_step(change):
    model = text_model("gemma", 7)
    mlp = model.model.layers[1].mlp
    mlp.act_fn = change(mlp.act_fn)
    reason = f"layers.1: mlp.act_fn is {type(mlp.act_fn).__name__}, not SiLU or GELU, or has hooks"
    assert unsupported_reason(model) == reason
    options = {**batch(7, [9, 4]), **GREEDY}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))


def test_layers_of_several_activations_take_pytorchs_step():
    model = text_model("gemma", 8)
    model.model.layers[1].mlp.act_fn = nn.SiLU()
    assert unsupported_reason(model) == "layers.1: mlp.act_fn is SiLU, and the first layer's GELUTanh"
    options = {**batch(8, [9, 4]), **GREEDY}
    assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))


def test_a_replaced_gelu_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = text_model("gemma", 9)
    assert altered_reason(model) is None
    monkeypatch.setattr(F, "gelu", F.relu)
    assert altered_reason(model) == "functional.gelu was replaced"


def test_a_replaced_forward_of_the_embeddings_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = text_model("gemma", 10)
    monkeypatch.setattr(type(model.model.embed_tokens), "forward", nn.Embedding.forward)
    assert altered_reason(model) == "GemmaTextScaledWordEmbedding.forward was replaced"


def test_steps_stand_in_only_for_those_of_the_same_activation():
    model = text_model("gemma", 11)
    first, same = TritonStep(model.model, False), TritonStep(model.model, False)
    assert first.stand_in_for(same)
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    assert not first.stand_in_for(TritonStep(model.model, False))


def test_tokens_that_see_later_ones_are_refused():
    model = text_model("gemma", 12, use_bidirectional_attention=True)
    with pytest.raises(ValueError, match="is_causal is False"):
        fastdecode.generate(model, torch.tensor([[4, 5]]), max_new_tokens=3, fallback="error")
