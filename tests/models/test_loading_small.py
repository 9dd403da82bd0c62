"""`load(weights=…)`: what `quantise` makes of a loaded model, in less memory; and what is said if that is too much."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import padded, text_ids, tiny_config, tiny_model, tiny_processor
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

import fastdecode
from fastdecode import ops
from fastdecode.models import memory
from fastdecode.models.checkpoint import Checkpoint
from fastdecode.models.memory import Sizes
from fastdecode.models.quantise import Width

SIZES = {"hidden_size": 64, "intermediate_size": 128}
WIDTHS = ["int8", "int4", {"type": "int4", "group": 64, "symmetric": False}]
KINDS = {
    "whole": ({}, torch.float32, "1GB"),
    "sharded": ({"layers": 3, "swin_norm": True}, torch.float32, "60KB"),
    "tied": ({"tie_word_embeddings": True}, torch.float32, "60KB"),
    "bfloat16": ({"kv_heads": 2, "bias": True}, torch.bfloat16, "60KB"),
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory) -> Path:
    settings, dtype, shard = KINDS[request.param]
    folder = tmp_path_factory.mktemp("small") / request.param
    model = tiny_model(4, sizes=SIZES, **settings).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_processor().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) == 1 or request.param != "whole"
    assert len(list(folder.glob("*.safetensors"))) > 2 or request.param == "whole"
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint to break."""
    tiny_model(4, sizes=SIZES).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


def assert_same(found, wanted) -> None:
    """Every tensor, config and mode, and that no tensor is on the meta device."""
    mine, its = (dict(model.named_parameters(remove_duplicate=False)) for model in (found, wanted))
    assert list(mine) == list(its)
    for name, parameter in its.items():
        assert (type(mine[name]), mine[name].dtype) == (type(parameter), parameter.dtype), name
        assert mine[name].device.type == "cpu", name
        if not isinstance(parameter, ops.SmallTensor):
            assert torch.equal(mine[name], parameter), name
            assert mine[name].requires_grad == parameter.requires_grad, name
            continue
        for part in ("type", "k", "group"):
            assert getattr(mine[name].small, part) == getattr(parameter.small, part), name
        for part in ("data", "scale", "offset"):
            left, right = getattr(mine[name].small, part), getattr(parameter.small, part)
            assert (left is None) == (right is None), name
            assert left is None or torch.equal(left, right), name
    mine, its = (dict(model.named_buffers()) for model in (found, wanted))
    assert list(mine) == list(its)
    assert all(torch.equal(mine[name], its[name]) for name in its)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == (
        wanted.lm_head.weight is wanted.model.embed_tokens.weight
    )
    assert found.config.to_dict() == wanted.config.to_dict()
    assert found.generation_config.to_dict() == wanted.generation_config.to_dict()
    assert all(not module.training for module in found.modules())
    assert str(found) == str(wanted)


@pytest.mark.parametrize("weights", WIDTHS, ids=["int8", "int4", "group"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_same_as_quantise_after_loading(saved: Path, weights, dtype):
    how = weights if isinstance(weights, dict) else {"type": weights}
    found, processor = fastdecode.load(saved, weights=weights, dtype=dtype)
    wanted, its = fastdecode.load(saved, dtype=dtype)
    options = {name: value for name, value in how.items() if name != "type"}
    fastdecode.quantise(wanted, how["type"], **options)
    assert_same(found, wanted)
    inputs = padded([text_ids(wanted, seed, 4 + seed) for seed in (1, 2)])
    drawing = {"multimodal_generation_mode": "image-only", "do_sample": True, "seed": 2, "guidance": 2.0}
    out = fastdecode.generate(found, **inputs, **drawing)
    assert torch.equal(out, fastdecode.generate(wanted, **inputs, **drawing))
    assert type(processor) is type(its)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_embedded_model(weights: str):
    found, processor = fastdecode.load("blocks", weights=weights)
    wanted = fastdecode.quantise(fastdecode.load("blocks")[0], weights)
    assert_same(found, wanted)
    inputs = processor(text="Draw: In column 2 a red circle.", return_tensors="pt")
    options = {"multimodal_generation_mode": "image-only", "guidance": 2.0, "do_sample": True, "seed": 1}
    out = fastdecode.generate(found, **inputs, **options)
    assert torch.equal(out, fastdecode.generate(wanted, **inputs, **options))


def test_names_without_the_models_prefix(folder: Path):
    wanted, _ = fastdecode.load(folder, weights="int8")
    file = folder / "model.safetensors"
    renamed = {key.removeprefix("model."): value for key, value in load_file(file).items() if "lm_head" not in key}
    head = load_file(file)["lm_head.weight"]
    save_file({**renamed, "lm_head.weight": head}, file, {"format": "pt"})
    assert_same(fastdecode.load(folder, weights="int8")[0], wanted)


def test_a_dict_of_the_type_alone(folder: Path):
    found, _ = fastdecode.load(folder, weights={"type": "int8"}, device="cpu", attn_implementation="eager")
    wanted = fastdecode.quantise(fastdecode.load(folder, attn_implementation="eager")[0], "int8")
    assert_same(found, wanted)
    assert found.config._attn_implementation == "eager"
    assert found.model.layers[0].self_attn.config is found.config


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "int3"}, "weights='int3': give 'int8' or 'int4'"),
        ({"weights": 8}, "weights=8: give 'int8' or 'int4'"),
        ({"weights": {"group": 64}}, "a dict gives type"),
        ({"weights": {"type": "int4", "size": 64}}, "a dict gives type"),
        ({"weights": {"type": "int4", "group": 48}}, "group=48: give 32 or a multiple of 64"),
        ({"weights": {"type": "int8", "group": 64}}, "group and symmetric are for int4"),
        ({"weights": {"type": "int4", "group": 256}}, "64 columns, which groups of 256 do not divide"),
        ({"weights": "int8", "gguf": "a.gguf"}, "weights= and gguf= were given"),
        ({"weights": "int8", "device_map": "auto"}, "weights= goes with .*: leave out device_map"),
        ({"weights": "int8", "state_dict": {}}, "leave out state_dict"),
        ({"gguf": "a.gguf", "device_map": "auto"}, "gguf= goes with .*: leave out device_map"),
    ],
)
def test_arguments_that_are_refused(folder: Path, options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        fastdecode.load(folder, **options)


@pytest.mark.parametrize("option", [{"weights": "int8"}, {"gguf": "a.gguf"}])
def test_other_devices_are_refused(folder: Path, option: dict, monkeypatch):
    monkeypatch.setattr("fastdecode.models.loading._device", lambda *_: torch.device("cuda"))
    with pytest.raises(ValueError, match="small weights are read on the CPU only"):
        fastdecode.load(folder, **option)


def test_a_checkpoint_that_is_small_already(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ValueError, match="small already"):
        fastdecode.load(folder, weights="int8")


@pytest.mark.parametrize("key", ["model.layers.1.mlp.gate_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, key: str, value: float):
    weights = load_file(folder / "model.safetensors")
    weights[key][2, 3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{key} cannot be made int4: it has infinity or NaN"):
        fastdecode.load(folder, weights="int4")


@pytest.mark.parametrize(
    "key", ["model.layers.1.self_attn.q_norm.bias", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_missing_weight_is_named(folder: Path, key: str):
    weights = load_file(folder / "model.safetensors")
    del weights[key]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of the model .{key}"):
        fastdecode.load(folder, weights="int8")


def test_a_wrong_shape_is_named(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight is \(128, 32\), and the config asks for \(128, 64\)"):
        fastdecode.load(folder, weights="int8")


def test_other_files_than_safetensors(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="weights= reads safetensors, and the checkpoint has none"):
        fastdecode.load(folder, weights="int8")


# --- memory -----------------------------------------------------------------------------------------------------


def sizes_of(folder: Path, dtype=None) -> Sizes:
    return Sizes.of(Checkpoint(folder, {}).safetensors(), dtype)


def own_bytes(model) -> int:
    parameters = [p for p in model.parameters() if not isinstance(p, ops.SmallTensor)]
    small = [p.small.nbytes for p in model.parameters() if isinstance(p, ops.SmallTensor)]
    return sum(p.numel() * p.element_size() for p in parameters) + sum(small)


@pytest.mark.parametrize("weights", [None, *WIDTHS], ids=["plain", "int8", "int4", "group"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_needed_is_what_the_model_takes(saved: Path, weights, dtype):
    model, _ = fastdecode.load(saved, weights=weights, dtype=dtype)
    width = None if weights is None else Width.of(weights)
    whole = [shape for name, shape in sizes_of(saved).shapes.items() if "vqmodel" not in name and len(shape) == 2]
    largest = 0 if width is None else max(torch.Size(shape).numel() for shape in whole if shape[0] > 8) * dtype.itemsize
    assert sizes_of(saved, dtype).bytes(width) == own_bytes(model) + largest


def test_no_memory_is_told_before_loading(tmp_path: Path, monkeypatch):
    folder = tmp_path
    tiny_model(4, sizes={"hidden_size": 256, "intermediate_size": 512}, layers=6).save_pretrained(folder)
    sizes = sizes_of(folder)
    plain, half = sizes.bytes(), sizes.bytes(dtype=torch.bfloat16)
    eight, four = sizes.bytes(Width("int8")), sizes.bytes(Width("int4"))
    assert four < eight < half < plain
    monkeypatch.setattr(
        ChameleonForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("it was read")
    )

    def told(free: int, **options) -> str:
        monkeypatch.setattr(memory, "available", lambda: free)
        with pytest.raises(MemoryError) as error:
            fastdecode.load(folder, **options)
        return str(error.value)

    message = told(plain - 1)
    assert str(folder) in message
    assert f"needs {plain / 1e6:.1f} MB of memory in float32" in message
    assert all(how in message for how in ("dtype='bfloat16' (", "weights='int8' (", "weights='int4' ("))
    assert message.endswith("would fit")
    assert "weights='int4' (" in told(four)
    assert "weights='int8'" not in told(four)
    assert "even weights='int4' needs" in told(four - 1)
    assert "in weights of int8" in told(eight - 1, weights="int8")
    assert "weights='int4' (" in told(eight - 1, weights="int8")
    assert "nothing smaller can be read" in told(four - 1, weights="int4")
    assert "in bfloat16" in told(half - 1, dtype="bfloat16")
    assert "dtype='bfloat16'" not in told(half - 1, dtype="bfloat16")


@pytest.mark.parametrize("free", [None, "enough"])
def test_what_fits_is_loaded(folder: Path, free, monkeypatch):
    needed = sizes_of(folder).bytes(Width("int4"))
    monkeypatch.setattr(memory, "available", lambda: needed if free else None)
    fastdecode.load(folder, weights="int4")
    if free is None:
        fastdecode.load(folder)


def test_the_dtype_of_the_config_is_what_counts(folder: Path, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    monkeypatch.setattr(memory, "available", lambda: sizes_of(folder).bytes(dtype=torch.bfloat16))
    assert fastdecode.load(folder)[0].dtype == torch.bfloat16


def test_memory_of_this_machine_and_of_control_groups(tmp_path: Path):
    free = memory.available()
    assert free is not None
    assert 1e6 < free < 1e15
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    for folder, limit, used, files in ((inner, "max", 700, 100), (inner.parent, "1000", 900, 300)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon {used - files}\nfile {files}\n")
    assert list(memory._of_groups(tmp_path, own)) == [400]
    (inner / "memory.max").write_text("600\n")
    assert list(memory._of_groups(tmp_path, own)) == [0, 400]
    assert list(memory._of_groups(tmp_path, tmp_path / "none")) == []


_PEAK = """
import sys, fastdecode
from pathlib import Path

def peak():  # of this process alone: ru_maxrss may begin with what the process had that started it
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

options = {} if sys.argv[2] == "plain" else {"weights": sys.argv[2]}
fastdecode.load("blocks", **options)  # everything is imported
before = peak()
model, _ = fastdecode.load(sys.argv[1], **options)
touched = sum(float(p.sum()) for p in model.parameters() if type(p).__name__ != "SmallTensor")
print(peak() - before)
"""


def test_the_peak_of_memory(tmp_path: Path):
    """A model of 270 MB in bfloat16 is loaded as int4, 76 MB; its matrices are of 2 and 8 MB."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(tiny_config(sizes=sizes, layers=8, kv_heads=16))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.02)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    bytes_of_model = sum(p.numel() * 2 for p in model.parameters())
    del model
    grown = {}
    for how in ("plain", "int4"):
        run = [sys.executable, "-c", _PEAK, str(tmp_path), how]
        grown[how] = 1024 * int(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1])
    shutil.rmtree(tmp_path, ignore_errors=True)
    assert grown["plain"] > 0.8 * bytes_of_model
    assert grown["int4"] < 0.9 * bytes_of_model  # with what the heap keeps; making all of it small at once takes 1.3
