"""`load`: a complete checkpoint, and every kind of broken checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models_for_tests import BOS, padded, tiny_model, tiny_processor
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration
from transformers.utils import logging

import fastdecode
from fastdecode.models.checkpoint import PICKLED
from fastdecode.models.checkpoint import SAFETENSORS as WEIGHTS
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import missing_decoder_keys
from fastdecode.models.vq_decoder import VQDecoder

INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_model(0).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def without_decoder(folder: Path) -> Path:
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if ".decoder." not in k}, folder / WEIGHTS, {"format": "pt"})
    return folder


def taming(path: Path, seed: int = 5) -> dict[str, torch.Tensor]:
    """Writes a taming-transformers checkpoint with a random decoder, and more that is not of it."""
    torch.manual_seed(seed)
    decoder = VQDecoder(tiny_model(0).config.vq_config).state_dict()
    state = {f"decoder.{key}": torch.randn_like(value) for key, value in decoder.items()}
    torch.save({"state_dict": state | {"encoder.conv_in.bias": torch.zeros(3), "loss.logvar": torch.zeros(1)}}, path)
    return state


@pytest.mark.parametrize("as_path", [False, True])
def test_round_trip(saved: Path, as_path: bool):
    model, processor = fastdecode.load(saved if as_path else str(saved))
    original = tiny_model(0)
    assert not model.training
    assert missing_decoder_keys(model) == []
    for (key, got), (_, expected) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(got, expected), key
    inputs = processor(text=["w1 w2", "w3"], return_tensors="pt", padding=True)
    options = {"multimodal_generation_mode": "image-only", "do_sample": True, "seed": 2}
    found = fastdecode.generate(model, **inputs, **options)
    assert torch.equal(found, fastdecode.generate(original, **inputs, **options))
    assert [len(d) for d in fastdecode.to_documents(model, processor, found, start=3)] == [1, 1]


def test_what_transformers_says_is_as_before(saved: Path):
    level = logging.get_verbosity()
    try:
        for chosen, bars in (
            (logging.INFO, logging.enable_progress_bar),
            (logging.ERROR, logging.disable_progress_bar),
        ):
            logging.set_verbosity(chosen)
            bars()
            shown = logging.is_progress_bar_enabled()
            fastdecode.load(saved)
            assert logging.get_verbosity() == chosen
            assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def test_a_decoder_without_the_models_prefix(folder: Path):
    weights = load_file(folder / WEIGHTS)
    renamed = {k.removeprefix("model.") if ".decoder." in k else k: v for k, v in weights.items()}
    assert any(k.startswith("vqmodel.decoder.") for k in renamed)
    save_file(renamed, folder / WEIGHTS, {"format": "pt"})
    found = fastdecode.load(folder)[0].model.vqmodel.decoder.state_dict()
    assert all(torch.equal(value, weights[f"model.vqmodel.decoder.{key}"]) for key, value in found.items())


def test_dtype_and_device(saved: Path):
    model, _ = fastdecode.load(saved, dtype=torch.bfloat16, device="cpu")
    painting = {f"model.vqmodel.decoder.{key}" for key, _ in model.model.vqmodel.decoder.named_parameters()}
    assert painting
    for key, value in model.named_parameters():
        assert value.dtype == (torch.float32 if key in painting else torch.bfloat16), key


@pytest.mark.parametrize("given", [{"torch_dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}])
def test_other_ways_to_name_a_dtype(saved: Path, given: dict):
    assert fastdecode.load(saved, **given)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16, "torch_dtype": torch.bfloat16}, "dtype=.* and torch_dtype=.* were given: give one"),
        ({"dtype": "bf16"}, "dtype='bf16': give a dtype of weights"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8: give a dtype of weights"),
        ({"dtype": 16}, "dtype=16: give a dtype of weights"),
        ({"torch_dtype": "nn"}, "dtype='nn': give a dtype of weights"),
        ({"device": "gpu"}, "device='gpu' cannot be used: .*give 'cpu'"),
        ({"device": "meta"}, "device='meta' cannot be used: the meta device holds no values"),
        ({"device": True}, "device=True cannot be used"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' were given"),
        ({"vqgan": 7}, "vqgan=7: give the path"),
        ({"dtyp": torch.float16}, "has no option 'dtyp'"),
    ],
)
def test_arguments_that_cannot_be(saved: Path, options: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        fastdecode.load(saved, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", 0, torch.device("cuda:1")])
def test_a_gpu_that_is_not_there(saved: Path, device):
    with pytest.raises(ValueError, match=r"^device=.* cannot be used: .*; give 'cpu', or a device that torch has"):
        fastdecode.load(saved, device=device)


def test_a_subfolder_holds_for_every_file(saved: Path, tmp_path: Path):
    shutil.copytree(saved, tmp_path / "all" / "inner")
    (tmp_path / "all" / "config.json").write_text('{"model_type": "llama"}')
    model, processor = fastdecode.load(tmp_path / "all", subfolder="inner")
    assert missing_decoder_keys(model) == []
    assert processor(text=["w1"], return_tensors="pt")["input_ids"].shape == (1, 2)
    with pytest.raises(FileNotFoundError, match=r"all has no config\.json in its subfolder outer"):
        fastdecode.load(tmp_path / "all", subfolder="outer")


def test_options_of_the_hub_hold_for_every_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    """Each part of transformers is asked with the same options; the files come from a folder."""
    asked: dict[str, dict] = {}
    hub = {"revision": "v2", "token": "secret", "cache_dir": "/there", "local_files_only": True}

    def file(source, name, **options):
        asked[name] = options
        path = saved / name
        return str(path) if path.is_file() else None

    def from_saved(what, method):
        def read(source, **options):
            asked[what] = options
            kept = {key: value for key, value in options.items() if key not in hub}
            return method(saved, **kept)

        return read

    monkeypatch.setattr("fastdecode.models.checkpoint.cached_file", file)
    for kind in ("ChameleonForConditionalGeneration", "ChameleonProcessor"):
        part = getattr(fastdecode.models.loading, kind)
        monkeypatch.setattr(part, "from_pretrained", from_saved(kind, part.from_pretrained))
    model, _ = fastdecode.load("some/body", **hub)
    assert missing_decoder_keys(model) == []
    assert {"config.json", WEIGHTS, "ChameleonForConditionalGeneration", "ChameleonProcessor"} <= set(asked)
    for what, options in asked.items():
        assert {key: options.get(key) for key in hub} == hub, what


def pickled(folder: Path, shards: bool) -> dict[str, torch.Tensor]:
    """Stores the weights in torch's own format, whole or in two parts with an index."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if not shards:
        torch.save(weights, folder / PICKLED)
        return weights
    names = sorted(weights)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, keys in parts.items():
        torch.save({key: weights[key] for key in keys}, folder / file)
    listed = {key: file for file, keys in parts.items() for key in keys}
    (folder / f"{PICKLED}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return weights


@pytest.mark.parametrize("shards", [False, True])
def test_a_decoder_in_torchs_own_format(folder: Path, shards: bool):
    weights = pickled(folder, shards)
    found = fastdecode.load(folder)[0].model.vqmodel.decoder.state_dict()
    assert found
    assert all(torch.equal(value, weights[f"model.vqmodel.decoder.{key}"]) for key, value in found.items())


def test_a_variant_of_the_weights(folder: Path):
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    assert missing_decoder_keys(fastdecode.load(folder, variant="fp16")[0]) == []


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


def test_a_pickle_with_code_in_it_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / WEIGHTS).unlink()
    torch.save({"model.embed_tokens.weight": Hostile()}, folder / PICKLED)
    with pytest.raises(ValueError, match=r"tiny cannot be loaded: .") as raised:
        fastdecode.load(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / "it-ran").exists()


@pytest.mark.parametrize("name", [WEIGHTS, PICKLED])
@pytest.mark.parametrize("file", ["../other.bin", "/etc/passwd", "a/../../b.safetensors"])
def test_an_index_that_leaves_the_folder(folder: Path, name: str, file: str):
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": file}}))
    with pytest.raises(ValueError, match=r"says that model\.embed_tokens\.weight is in .*, outside the checkpoint"):
        fastdecode.load(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 99_999])
def test_an_index_that_is_none(folder: Path, content: str):
    (folder / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is (no index of weights|not readable JSON)"):
        fastdecode.load(folder)


def test_code_that_a_folder_brings_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("import os; os.mkdir('it-ran')\nclass Mine: pass\n")
    processor = folder / "processor_config.json"
    if processor.exists():
        found = json.loads(processor.read_text())
        processor.write_text(json.dumps(found | {"auto_map": {"AutoProcessor": "mine.Mine"}}))
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"it brings code of its own, .*trust_remote_code=True"):
        fastdecode.load(folder)
    assert not (folder / "it-ran").exists()


def test_shards(folder: Path):
    shutil.rmtree(folder)
    tiny_model(0).save_pretrained(folder, max_shard_size="1MB")
    tiny_processor().save_pretrained(folder)
    assert (folder / INDEX).is_file()
    assert missing_decoder_keys(fastdecode.load(folder)[0]) == []
    index = json.loads((folder / INDEX).read_text())
    (folder / next(iter(index["weight_map"].values()))).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="tiny cannot be loaded"):
        fastdecode.load(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is not readable JSON"):
        fastdecode.load(folder)


def test_a_missing_folder(tmp_path: Path):
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "nowhere", "./nowhere", "~/nowhere-at-all"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere.*embedded: blocks"):
            fastdecode.load(name)


def test_a_home_folder(saved: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert fastdecode.load("~/tiny")[0].config.model_type == "chameleon"


def test_a_file_in_place_of_a_folder(saved: Path):
    with pytest.raises(ValueError, match=r"config\.json is a file; give the folder that holds config\.json"):
        fastdecode.load(saved / "config.json")


def test_a_folder_of_an_adapter(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match=r"holds an adapter of PEFT, not a model: load its base model .*PeftModel"):
        fastdecode.load(tmp_path)


def test_from_pretrained_of_transformers_drops_the_decoder(saved: Path):
    model = ChameleonForConditionalGeneration.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"^this model has no VQ decoder.*load the checkpoint with fastdecode\.load"):
        fastdecode.generate(model, **padded([[BOS, 40]]), multimodal_generation_mode="image-only")


def test_no_config(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny has no config\.json"):
        fastdecode.load(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is not readable JSON"), ("[1]", "holds list, not the settings")])
def test_a_broken_config(folder: Path, text: str, message: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        fastdecode.load(folder)


def test_another_family(folder: Path):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"model of type 'bert'; fastdecode\.load reads .*'chameleon', 'emu3'"):
        fastdecode.load(folder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "absent"])
def test_broken_weights(folder: Path, damage: str):
    path = folder / WEIGHTS
    if damage == "garbage":
        path.write_bytes(b"not a checkpoint" * 99)
    elif damage == "absent":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
    with pytest.raises(ValueError, match=r"tiny cannot be loaded: ."):
        fastdecode.load(folder)


def test_missing_weights_are_named(folder: Path):
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if ".q_proj." not in k}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 weights of the model \(model\.layers\.0\.self_attn\.q_proj\.weight"):
        fastdecode.load(folder)


def test_weights_of_another_shape(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match="tiny cannot be loaded"):
        fastdecode.load(folder)


def test_no_tokenizer(folder: Path):
    for path in folder.iterdir():
        if path.name not in ("config.json", "generation_config.json", WEIGHTS):
            path.unlink()
    with pytest.raises(ValueError, match="tiny cannot be loaded"):
        fastdecode.load(folder)


@pytest.mark.parametrize("name", ["<eoss>", "<racm3:break>", "<image>"])
def test_a_vocabulary_without_markers(folder: Path, name: str):
    config = json.loads((folder / "config.json").read_text())
    del config["vocabulary_map"][name]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"vocabulary_map of this checkpoint has no {name}"):
        fastdecode.load(folder)


def test_a_vocabulary_with_too_few_image_tokens(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["vocabulary_map"]["IMGIMGBDZ"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names 23 image tokens .* but the codebook has 24"):
        fastdecode.load(folder)


def test_without_decoder_weights_text_works_and_pictures_name_them(folder: Path):
    model, processor = fastdecode.load(without_decoder(folder))
    assert len(missing_decoder_keys(model)) > 10
    text = fastdecode.generate(model, **padded([[BOS, 40]]), max_new_tokens=4)
    assert text.shape == (1, 6)
    options = {"multimodal_generation_mode": "image-only"}
    names = r"model\.vqmodel\.decoder\.conv_in\.weight, .*vqgan=PATH"
    with pytest.raises(ValueError, match=names):
        fastdecode.generate(model, **padded([[BOS, 40]]), **options)
    v = vocabulary_of(model)
    ids = [[v.begin_image, *[v.code_ids[0]] * v.image_length, v.end_image]]
    with pytest.raises(ValueError, match=names):
        fastdecode.to_documents(model, processor, ids)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"<eoss>": 5000}, r"gives <eoss> the token 5000, .*tokens are 0 to "),
        ({"<image>": -1}, r"gives <image> the token -1"),
        ({"IMGIMGBZ": 4}, r"the same token 4: each image token"),
        ({"<racm3:break>": 4}, r"gives IMGIMG\w+ and <racm3:break> the same token 4"),
        ({"w2": 4}, r"gives IMGIMG\w+ and w2 the same token 4"),
        ({"<eoss>": "7"}, r"gives <eoss> the token '7'"),
    ],
)
def test_vocabularies_that_contradict_themselves(changed: dict, message: str):
    model = tiny_model(0)
    config = model.config
    config.vocabulary_map = config.vocabulary_map | changed
    model.model.vocabulary_mapping = type(model.model.vocabulary_mapping)(config.vocabulary_map)
    with pytest.raises(ValueError, match=message):
        vocabulary_of(model)


def test_half_a_decoder(folder: Path):
    weights = load_file(folder / WEIGHTS)
    kept = {k: v for k, v in weights.items() if not k.endswith("decoder.conv_out.bias")}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['conv_out\.bias'\]"):
        fastdecode.load(folder)


@pytest.mark.parametrize("wrapped", [True, False])
def test_vqgan_checkpoint(folder: Path, tmp_path: Path, wrapped: bool):
    expected = taming(tmp_path / "vqgan.ckpt")
    if not wrapped:
        torch.save(expected, tmp_path / "vqgan.ckpt")
    model, _ = fastdecode.load(without_decoder(folder), vqgan=tmp_path / "vqgan.ckpt")
    found = model.model.vqmodel.decoder.state_dict()
    assert {f"decoder.{key}" for key in found} == set(expected)
    assert all(torch.equal(value, expected[f"decoder.{key}"]) for key, value in found.items())


def test_broken_vqgan_checkpoints(folder: Path, tmp_path: Path):
    path = tmp_path / "vqgan.ckpt"
    with pytest.raises(FileNotFoundError, match=r"vqgan=.*there is no such file"):
        fastdecode.load(folder, vqgan=path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a torch checkpoint of plain weights"):
        fastdecode.load(folder, vqgan=path)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"has no decoder\.\* weights"):
        fastdecode.load(folder, vqgan=path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"has no decoder\.\* weights"):
        fastdecode.load(folder, vqgan=path)


@pytest.mark.parametrize("name", [None, 3, b"blocks"])
def test_a_name_that_is_none(name):
    with pytest.raises(TypeError, match=r"^load takes a name, a folder or a hub id, not an? (NoneType|int|bytes): "):
        fastdecode.load(name)
