"""Language models from GGUF files: the blocks as they lie, rows in transformers' order, and files that do not fit."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import padded, text_ids, tiny_model, tiny_processor
from safetensors.torch import load_file, save_file
from text_models import text_model

import fastdecode
from fastdecode import ops
from fastdecode.decoder import Decoder
from fastdecode.decoder.choice import decoder_for
from fastdecode.models import memory
from fastdecode.models.gguf import load_matrices
from fastdecode.models.quantise import modules_to_shrink

gguf = pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Kind  # noqa: E402
from gguf_files import write  # noqa: E402

FAMILIES = ["chameleon", "llama", "mistral", "qwen2", "qwen3"]
SMALL = {Kind.Q8_0: "q8_0", Kind.Q4_0: "q4_0"}


def model_of(family: str, seed: int = 0, **more):
    """A model that llama.cpp's converter keeps whole: all heads of a Chameleon share the weights of their norms."""
    if family != "chameleon":
        return text_model(family, seed, **more)
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    model = tiny_model(seed, sizes=sizes, kv_heads=4, **more)
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            for weight in norm.parameters():
                weight.data[:] = weight.data[:1].clone()
    return model


def dequantised(model, kind: Kind):
    """The same model with ordinary weights: the numbers that the file's blocks stand for."""
    made = copy.deepcopy(model)
    for _, module in modules_to_shrink(made):
        blocks = gguf.quants.quantize(module.weight.detach().float().numpy(), kind)
        module.weight = torch.nn.Parameter(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    return made


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_read_as_they_are(tmp_path: Path, family: str, kind: Kind):
    model = model_of(family, 3)
    found = load_matrices(model_of(family, 4), write(tmp_path / "a.gguf", model, kind))
    for (name, module), (_, given) in zip(modules_to_shrink(found), modules_to_shrink(model), strict=True):
        small, weight = module.weight.small, given.weight.detach()
        blocks = gguf.quants.quantize(weight.numpy(), kind)
        if SMALL[kind] == "q4_0":  # the same weights in panels
            assert (small.type, small.group, small.shape) == ("int4", 32, tuple(weight.shape)), name
        else:
            assert (small.type, small.shape) == (SMALL[kind], tuple(weight.shape)), name
            assert np.array_equal(small.data.numpy(), blocks), name
        assert np.array_equal(small.values().numpy(), gguf.quants.dequantize(blocks, kind)), name
    other = {name: p for name, p in found.named_parameters() if type(p) is not ops.SmallTensor}
    for name, parameter in model.named_parameters():
        if name in other and "vqmodel" not in name:
            assert torch.equal(other[name], parameter), name


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, family: str, kind: Kind):
    model = model_of(family, 3)
    exact = dequantised(model, kind)
    found = load_matrices(model_of(family, 4), write(tmp_path / "a.gguf", model, kind))
    assert type(decoder_for(found)) is Decoder
    ids = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    mine, its = found(input_ids=ids).logits, exact(input_ids=ids).logits
    kept = its.abs() < 1e30  # Chameleon's forward bans its image tokens with the lowest number
    assert (mine[kept] - its[kept]).norm() <= 0.05 * its[kept].norm()  # inputs are rounded to int8
    other = dequantised(model_of(family, 5), kind)(input_ids=ids).logits
    assert (mine[kept] - other[kept]).norm() > 0.5 * its[kept].norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_float32_files_give_the_same_model(tmp_path: Path, family: str, tied: bool):
    model = model_of(family, 3, tie_word_embeddings=tied)
    found = load_matrices(model_of(family, 4, tie_word_embeddings=tied), write(tmp_path / "a.gguf", model, Kind.F32))
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    for (name, mine), (_, its) in zip(found.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(mine, its) or "vqmodel" in name, name
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_halves_are_read_in_the_models_dtype(tmp_path: Path, kind: Kind, dtype, into):
    model = model_of("llama", 3)
    found = load_matrices(model_of("llama", 4).to(into), write(tmp_path / "a.gguf", model, kind))
    for (name, mine), (_, its) in zip(found.named_parameters(), model.named_parameters(), strict=True):
        stored = its if its.ndim == 1 else its.to(dtype)
        assert mine.dtype == into, name
        assert torch.equal(mine, stored.to(into)), name


def test_mixed_types(tmp_path: Path):
    """As files often are: a larger head, and embeddings in half precision."""
    model = model_of("qwen2", 3)
    kinds = {"output.weight": Kind.Q8_0, "token_embd.weight": Kind.F32, "blk.1.attn_v.weight": Kind.F32}
    found = load_matrices(model_of("qwen2", 4), write(tmp_path / "a.gguf", model, Kind.Q4_0, kinds=kinds))
    assert found.lm_head.weight.small.type == "q8_0"
    assert torch.equal(found.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert found.model.layers[0].self_attn.v_proj.weight.small.type == "int4"
    assert torch.equal(found.model.layers[1].self_attn.v_proj.weight, model.model.layers[1].self_attn.v_proj.weight)
    out = fastdecode.generate(found, input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=5, do_sample=False)
    assert out.shape[1] > 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Chameleon without the weights of its language model, and beside it in the file ``a.gguf``."""
    model = model_of("chameleon", 3)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    write(tmp_path / "a.gguf", model, Kind.Q8_0)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "vqmodel" in k}, file, {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("gguf_path", ["a.gguf", Path("a.gguf"), "whole"])
def test_load_with_a_file(folder: Path, dtype, gguf_path):
    path = str(folder / "a.gguf") if gguf_path == "whole" else gguf_path
    found, processor = fastdecode.load(folder, gguf=path, dtype=dtype)
    wanted = model_of("chameleon", 3).to(torch.bfloat16 if dtype else torch.float32)
    load_matrices(wanted, folder / "a.gguf")
    mine, its = dict(found.named_parameters()), dict(wanted.named_parameters())
    assert list(mine) == list(its)
    for name, parameter in its.items():
        assert (type(mine[name]), mine[name].dtype) == (type(parameter), parameter.dtype), name
        same = torch.equal(mine[name], parameter)
        assert same, name
    assert not any(module.training for module in found.modules())
    assert found.config.num_hidden_layers == 2
    inputs = padded([text_ids(wanted, seed, 4 + seed) for seed in (1, 2)])
    options = {"multimodal_generation_mode": "image-only", "do_sample": True, "seed": 2, "guidance": 2.0}
    out = fastdecode.generate(found, **inputs, **options)
    assert torch.equal(out, fastdecode.generate(wanted, **inputs, **options))
    documents = fastdecode.to_documents(found, processor, out, start=inputs["input_ids"].shape[1])
    assert [len(document) for document in documents] == [1, 1]


# --- bad input --------------------------------------------------------------------------------------------------


def without(name: str):
    return lambda found: found.pop(name)


def shaped(name: str, *shape: int):
    return lambda found: found.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', and the config is that of a LlamaForCausalLM.*'llama'"),
        ({"change": without("blk.1.ffn_up.weight")}, r"has no tensor blk\.1\.ffn_up\.weight"),
        ({"change": without("output.weight")}, r"has no tensor output\.weight"),
        ({"change": shaped("blk.0.attn_k.bias", 32)}, r"1 tensors that this model has not: blk\.0\.attn_k\.bias"),
        ({"change": shaped("blk.2.attn_k.weight", 32, 64)}, r"this model has not: blk\.2\.attn_k\.weight"),
        (
            {"change": shaped("output.weight", 88, 64)},
            r"output\.weight is \(88, 64\), and the config asks for \(90, 64",
        ),
        ({"change": shaped("blk.0.attn_norm.weight", 32)}, r"attn_norm\.weight is \(32,\), and the config asks for"),
        ({"kinds": {"output.weight": Kind.Q5_0}}, r"output\.weight is of type Q5_0: F32, F16, BF16, Q8_0 and Q4_0 are"),
        ({"kinds": {"blk.0.ffn_norm.weight": Kind.Q8_0}}, r"ffn_norm\.weight is of type Q8_0: .* the first three"),
        ({"settings": lambda w: w.add_uint16("split.count", 2)}, "part of a split file"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, options: dict, said: str):
    model = model_of("llama", 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        load_matrices(model, write(tmp_path / "a.gguf", model, **options))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_k_quant_is_named(tmp_path: Path):
    model = model_of("llama", 3, hidden_size=256)
    path = write(tmp_path / "a.gguf", model, Kind.Q8_0)
    writer = gguf.GGUFWriter(str(tmp_path / "b.gguf"), "llama")
    for tensor in gguf.GGUFReader(str(path)).tensors:
        kind, data = tensor.tensor_type, np.array(tensor.data)
        if tensor.name == "blk.1.attn_v.weight":
            kind, data = Kind.Q4_K, np.zeros((len(data), 144), np.uint8)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"blk\.1\.attn_v\.weight is of type Q4_K: .*are read.*llama-quantize --pure"):
        load_matrices(model, tmp_path / "b.gguf")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_hidden_layers", 3),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("intermediate_size", 128),
        ("rms_norm_eps", 1e-3),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
    ],
)
def test_settings_of_another_model(tmp_path: Path, setting: str, value):
    path = write(tmp_path / "a.gguf", model_of("llama", 3))
    with pytest.raises(ValueError, match=r"has llama\.\S+ = .*, and the config has"):
        load_matrices(model_of("llama", 3, **{setting: value}), path)


def test_a_family_whose_files_are_not_read(tmp_path: Path):
    path = write(tmp_path / "a.gguf", model_of("llama", 3))
    said = r"GGUF files are read for .*, Qwen3ForCausalLM; the model is a GemmaForCausalLM$"
    with pytest.raises(ValueError, match=said):
        load_matrices(model_of("gemma", 3), path)


def test_another_order_of_norms(tmp_path: Path):
    path = write(tmp_path / "a.gguf", model_of("chameleon", 3, swin_norm=True))
    with pytest.raises(ValueError, match=r"chameleon\.swin_norm = True, and the config has False"):
        load_matrices(model_of("chameleon", 3), path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.05, 0.5, 0.98])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float):
    model = model_of("llama", 3)
    path = write(tmp_path / "a.gguf", model)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"a\.gguf is no whole GGUF file, or is cut off"):
        load_matrices(model, path)
    assert not any(type(p) is ops.SmallTensor for p in model.parameters())


def test_no_file_and_no_package(folder: Path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gguf='b\.gguf': there is no such file"):
        fastdecode.load(folder, gguf="b.gguf")
    with pytest.raises(FileNotFoundError, match="no such GGUF file"):
        load_matrices(model_of("llama"), folder / "b.gguf")
    with pytest.raises(TypeError, match="gguf=3: give the path"):
        fastdecode.load(folder, gguf=3)
    with pytest.raises(TypeError, match="got Linear"):
        load_matrices(torch.nn.Linear(3, 3), folder / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        fastdecode.load(folder, gguf="a.gguf")


def test_no_memory_is_told(folder: Path, monkeypatch):
    size = (folder / "a.gguf").stat().st_size
    monkeypatch.setattr(memory, "available", lambda: size - 1)
    with pytest.raises(MemoryError, match=r"a\.gguf needs .* of memory, but .* are available: .* Q4_0 is the smallest"):
        fastdecode.load(folder, gguf="a.gguf")
    monkeypatch.setattr(memory, "available", lambda: size)
    fastdecode.load(folder, gguf="a.gguf")


def test_a_file_of_another_model_is_told_by_load(folder: Path):
    write(folder / "b.gguf", model_of("llama"))
    with pytest.raises(ValueError, match=r"cannot be loaded: .*architecture 'llama'"):
        fastdecode.load(folder, gguf="b.gguf")
