"""`quantise`: which weights become small, what it refuses, and what the small weights can and cannot do."""

import copy
import io
import sys

import pytest
import torch
from models_for_tests import text_ids, tiny_model
from safetensors.torch import save_model
from text_models import text_model
from torch import nn

import fastdecode
from fastdecode import ops
from fastdecode.decoder import Decoder
from fastdecode.decoder.choice import decoder_for
from fastdecode.decoder.support import unsupported_reason
from fastdecode.models.quantise import modules_to_shrink

SIZES = {"intermediate_size": 64}


def model_of(seed: int = 0, **settings):
    return tiny_model(seed, sizes=SIZES, **settings)


def small_names(model) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if type(p) is ops.SmallTensor}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("make", [model_of, lambda: text_model("qwen3", 1), lambda: text_model("gemma", 1)])
def test_the_language_models_matrices_become_small(make, kind: str):
    model, plain = make(), make()
    assert fastdecode.quantise(model, kind) is model
    linears = {f"model.layers.{name}" for name, m in model.model.layers.named_modules() if isinstance(m, nn.Linear)}
    wanted = {f"{name}.weight" for name in ("model.embed_tokens", "lm_head", *linears)}
    assert small_names(model) == wanted
    for (name, found), (_, given) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if name not in wanted:
            assert torch.equal(found, given), name
            continue
        exact = ops.quantise(given.detach(), "int8x16" if kind == "int8" else kind)
        assert found.small.type == exact.type, name
        assert torch.equal(found.small.data, exact.data), name
        assert torch.equal(found.small.scale, exact.scale), name
        assert found.dtype == given.dtype
    decoder = decoder_for(model)
    assert isinstance(decoder, Decoder)
    assert unsupported_reason(model) is None


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_group_and_offset_reach_the_weights(group: int, symmetric: bool):
    model = tiny_model(0, sizes={"hidden_size": 64, "intermediate_size": 128})
    fastdecode.quantise(model, "int4", group=group, symmetric=symmetric)
    small = model.model.layers[1].mlp.down_proj.weight.small
    assert small.group == group
    assert small.scale.shape == (4, 128 // group, 16)
    assert (small.offset is None) == symmetric


@pytest.mark.parametrize("make", [model_of, lambda **settings: text_model("gemma", 2, **settings)])
def test_a_tied_head_stays_tied(make):
    model = fastdecode.quantise(make(tie_word_embeddings=True), "int4")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert copy.deepcopy(model).lm_head.weight is not model.lm_head.weight


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": "int2"}, "weights='int2': give 'int8' or 'int4'"),
        ({"weights": ["int8"]}, "give 'int8' or 'int4'"),
        ({"weights": None}, "give 'int8' or 'int4'"),
        ({"weights": "int4", "group": 16}, "group=16: give 32 or a multiple of 64"),
        ({"weights": "int4", "group": 96}, "group=96: give 32 or a multiple of 64"),
        ({"weights": "int4", "group": 0}, "group=0"),
        ({"weights": "int4", "group": 32.0}, "group=32.0"),
        ({"weights": "int4", "group": True}, "group=True"),
        ({"weights": "int4", "group": 64}, "32 columns, which groups of 64 do not divide"),
        ({"weights": "int4", "symmetric": 1}, "symmetric=1: give True or False"),
        ({"weights": "int8", "group": 64}, "group and symmetric are for int4"),
        ({"weights": "int8", "symmetric": False}, "group and symmetric are for int4"),
    ],
)
def test_arguments_that_are_refused(arguments: dict, said: str):
    model = model_of()
    with pytest.raises(ValueError, match=said):
        fastdecode.quantise(model, **arguments)
    assert small_names(model) == set()


def test_columns_that_no_group_divides():
    model = tiny_model(0)
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.down_proj\.weight has 48 columns: int4 takes a multiple of 32"
    ):
        fastdecode.quantise(model, "int4")
    assert small_names(model) == set()
    fastdecode.quantise(model, "int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weights_that_are_not_finite_are_named(kind: str, value: float):
    model = model_of()
    model.model.layers[1].self_attn.v_proj.weight.data[3, 5] = value
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.v_proj\.weight cannot .* infinity or NaN"):
        fastdecode.quantise(model, kind)
    assert small_names(model) == set()


def test_weights_beyond_the_scales_of_int4_are_named():
    model = model_of()
    model.lm_head.weight.data[0, 0] = -1e6
    with pytest.raises(ValueError, match=r"lm_head\.weight cannot be made int4"):
        fastdecode.quantise(model, "int4")
    assert small_names(model) == set()
    fastdecode.quantise(model, "int8")


@pytest.mark.parametrize(
    ("kind", "symmetric"),
    [("int8", True), ("int8x16", True), ("int4", True), ("int4", False), ("q8_0", True), ("q4_0", True)],
)
def test_parts_make_the_same_weights(kind: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch):
    weight = torch.randn(50, 96, generator=torch.Generator().manual_seed(1))
    whole = ops.quantise(weight, kind, symmetric=symmetric)
    monkeypatch.setattr(sys.modules["fastdecode.ops.quantise"], "_PART", 17 * 96)
    parts = ops.quantise(weight, kind, symmetric=symmetric)
    for name in ("data", "scale", "offset"):
        mine, its = getattr(parts, name), getattr(whole, name)
        assert (mine is None) == (its is None)
        assert mine is None or torch.equal(mine, its), name
    assert ops.quantise(weight[:0], kind, symmetric=symmetric).shape == (0, 96)


def test_twice_is_refused():
    model = fastdecode.quantise(model_of(), "int8")
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is a SmallTensor already"):
        fastdecode.quantise(model, "int4")


def test_other_models_and_places_are_refused():
    with pytest.raises(TypeError, match="got Linear"):
        fastdecode.quantise(nn.Linear(32, 32), "int8")
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is float64 on cpu"):
        fastdecode.quantise(model_of().double(), "int8")
    hooked = model_of()
    hooked.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight is of a Linear with hooks"):
        fastdecode.quantise(hooked, "int8")
    assert small_names(hooked) == set()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "save",
    [
        lambda model, folder: model.save_pretrained(folder),
        lambda model, folder: save_model(model, str(folder / "model.safetensors")),
        lambda model, folder: torch.save(model, io.BytesIO()),
        lambda model, folder: torch.save(model.state_dict(), io.BytesIO()),
        lambda model, folder: model.share_memory(),
    ],
    ids=["save_pretrained", "safetensors", "torch", "state_dict", "share_memory"],
)
def test_saving_is_refused_in_a_sentence(tmp_path, tied: bool, save):
    model = fastdecode.quantise(model_of(tie_word_embeddings=tied), "int8")
    with pytest.raises(
        ValueError, match=r"weights of int8 cannot be saved.*save the checkpoint that they were made from"
    ):
        save(model, tmp_path)


def test_copies_and_moves_keep_the_weights():
    model = fastdecode.quantise(model_of(), "int8")
    copied = copy.deepcopy(model).to(torch.bfloat16).to("cpu").requires_grad_(False).eval()
    assert small_names(copied) == small_names(model)
    for (name, module), (_, given) in zip(modules_to_shrink(copied), modules_to_shrink(model), strict=True):
        assert torch.equal(module.weight.small.data, given.weight.small.data), name
        assert module.weight.small.data.data_ptr() != given.weight.small.data.data_ptr(), name
        assert (module.weight.dtype, given.weight.dtype) == (torch.bfloat16, torch.float32)
    x = torch.randn(3, 32)
    compiled = torch.compile(model.lm_head, backend="eager")
    assert torch.equal(compiled(x), model.lm_head(x))
    ids = torch.tensor([text_ids(model, 1, 4)])
    torch.testing.assert_close(model(input_ids=ids).logits, copy.deepcopy(model)(input_ids=ids).logits)
