"""`load`: a complete checkpoint, and every kind of broken checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models_for_tests import BOS, padded, tiny_model, tiny_processor
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import fastdecode
from fastdecode.models.chameleon import Vocabulary, missing_decoder_keys
from fastdecode.models.decoder_weights import INDEX, WEIGHTS
from fastdecode.models.vq_decoder import VQDecoder


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
    assert {p.dtype for n, p in model.named_parameters() if ".decoder." not in n} == {torch.bfloat16}
    assert {p.dtype for p in model.model.vqmodel.decoder.parameters()} == {torch.float32}


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
    with pytest.raises(ValueError, match="tiny cannot be loaded"):
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
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"tiny is a model of type 'llama'; fastdecode\.load reads Chameleon"):
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
    v = Vocabulary.of(model)
    ids = [[v.begin_image, *[v.code_ids[0]] * v.image_length, v.end_image]]
    with pytest.raises(ValueError, match=names):
        fastdecode.to_documents(model, processor, ids)


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
    with pytest.raises(TypeError, match=r"^load takes a name, a folder or a hub id, not a (NoneType|int|bytes): "):
        fastdecode.load(name)


# --- options and hostile files ------------------------------------------------------------------------------------


def test_the_old_name_of_dtype(saved: Path):
    assert fastdecode.load(saved, torch_dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert fastdecode.load(saved, torch_dtype="float16")[0].dtype == torch.float16
    with pytest.raises(ValueError, match=r"dtype=torch.float32 and torch_dtype=torch.bfloat16 were given: give dtype"):
        fastdecode.load(saved, dtype=torch.float32, torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float99"}, "dtype='float99': give a floating dtype"),
        ({"dtype": torch.int8}, "dtype=torch.int8: give a floating dtype"),
        ({"dtype": 3}, "dtype=3: give a floating dtype"),
        ({"device": "gpu"}, "device='gpu' is no device of torch: give 'cpu' or 'cuda'"),
        ({"device": "meta"}, "device='meta': tensors have no values there"),
        ({"device": {}}, "device={} is no device of torch"),
        ({"device": "cuda:99"}, "device='cuda:99': torch finds .* GPUs here"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' were given: give one"),
        ({"vqgan": 7}, "vqgan is a int: give the path of Meta's vqgan.ckpt"),
        ({"pages": 3}, "tiny cannot be loaded: .*pages"),
    ],
    ids=repr,
)
def test_wrong_options(saved: Path, options, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        fastdecode.load(saved, **options)


def test_an_empty_name():
    with pytest.raises(ValueError, match="and got an empty one"):
        fastdecode.load("")


def test_a_gpu_that_is_not_there(saved: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': torch finds no GPUs here; give another, or 'cpu'"):
        fastdecode.load(saved, device="cuda")


def test_options_of_the_hub_hold_for_every_file(folder: Path, monkeypatch):
    """A repository of the hub whose files lie in a subfolder: config, weights, decoder and processor are read there."""
    asked: list[dict] = []
    inside = folder / "inside"
    inside.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(inside / path.name)
    model, processor = fastdecode.load(folder, subfolder="inside")
    assert missing_decoder_keys(model) == []
    assert processor.tokenizer("w1").input_ids

    def cached(source: str, name: str, **options):
        asked.append({"source": source} | options)
        path = inside / name
        return str(path) if path.is_file() else None

    def pretrained(cls):
        original = cls.from_pretrained

        def read(source, *args, **options):
            asked.append({"source": source} | options)
            for key in ("revision", "token", "cache_dir"):
                options.pop(key, None)
            return original(folder, *args, **options)

        return read

    from fastdecode.models import decoder_weights, loading

    monkeypatch.setattr(decoder_weights, "cached_file", cached)
    for cls in (loading.ChameleonForConditionalGeneration, loading.ChameleonProcessor):
        monkeypatch.setattr(cls, "from_pretrained", pretrained(cls))
    options = {"revision": "v2", "subfolder": "inside", "token": "t", "cache_dir": "c"}
    model, _ = fastdecode.load("someone/tiny", **options)
    assert missing_decoder_keys(model) == []
    assert len(asked) >= 5
    for found in asked:
        assert found["source"] == "someone/tiny"
        assert {key: found.get(key) for key in options} == options


def as_torch_file(folder: Path, *, only_decoder: bool = False) -> None:
    weights = load_file(folder / WEIGHTS)
    if only_decoder:
        torch.save({k: v for k, v in weights.items() if ".decoder." in k}, folder / "pytorch_model.bin")
        without_decoder(folder)
    else:
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("only_decoder", [False, True])
def test_a_decoder_that_torch_saved(folder: Path, only_decoder: bool):
    expected = {k.rsplit("decoder.")[1]: v for k, v in load_file(folder / WEIGHTS).items() if ".decoder." in k}
    as_torch_file(folder, only_decoder=only_decoder)
    found = fastdecode.load(folder)[0].model.vqmodel.decoder.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_a_decoder_in_shards_that_torch_saved(folder: Path):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {"a.bin": {}, "b.bin": {}}
    for number, (key, value) in enumerate(weights.items()):
        parts["ab"[number % 2] + ".bin"][key] = value
    for file, part in parts.items():
        torch.save(part, folder / file)
    index = {key: file for file, part in parts.items() for key in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert missing_decoder_keys(fastdecode.load(folder)[0]) == []


class Hostile:
    """Runs code when it is read by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code(folder: Path, tmp_path: Path):
    touched = tmp_path / "touched"
    weights = load_file(folder / WEIGHTS)
    torch.save(weights | {"model.vqmodel.decoder.x": Hostile(touched)}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    message = "tiny cannot be loaded: its weights hold more than plain tensors, and may run code when they are read"
    with pytest.raises(ValueError, match=message):
        fastdecode.load(folder)
    assert not touched.exists()


@pytest.mark.parametrize("file", ["../other.safetensors", "/other.safetensors", "a/../../x", "C:\\x", "..\\x", "", 3])
@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_an_index_that_leaves_the_folder(folder: Path, index: str, file):
    shutil.copy(folder / WEIGHTS, folder.parent / "other.safetensors")
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(ValueError, match=r"lists .*, which is not in the checkpoint's folder"):
        fastdecode.load(folder)


def test_a_checkpoint_with_code_of_its_own_does_not_ask(folder: Path, monkeypatch):
    """transformers would ask on the terminal whether to run it, and wait."""
    path = folder / "tokenizer_config.json"
    mine = {"auto_map": {"AutoTokenizer": ["tokens.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(json.loads(path.read_text()) | mine))
    (folder / "tokens.py").write_text("raise RuntimeError('the code of a checkpoint was run')\n")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asked"))
    try:
        fastdecode.load(folder)
    except ValueError as error:
        assert "tiny cannot be loaded" in str(error)  # noqa: PT017 - it may also load without the code
        assert "was run" not in str(error)  # noqa: PT017


# --- the decoder's dtype ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures_of_small_dtypes_are_those_of_float32(saved: Path, dtype: torch.dtype):
    full, processor = fastdecode.load(saved)
    v = Vocabulary.of(full)
    codes = torch.randint(0, len(v.code_ids), (3, v.image_length), generator=torch.Generator().manual_seed(1)).tolist()
    ids = [[v.begin_image, *[v.code_ids[c] for c in row], v.end_image] for row in codes]
    expected = [d[0].tobytes() for d in fastdecode.to_documents(full, processor, ids)]
    small = fastdecode.load(saved, dtype=dtype)[0]
    later = fastdecode.load(saved)[0].to(dtype)
    for model in (small, later):
        assert model.model.vqmodel.quantize.embedding.weight.dtype == dtype
        assert [d[0].tobytes() for d in fastdecode.to_documents(model, processor, ids)] == expected
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert [d[0].tobytes() for d in fastdecode.to_documents(model, processor, ids)] == expected


def test_a_codebook_that_was_changed_is_used(saved: Path):
    model, processor = fastdecode.load(saved, dtype=torch.bfloat16)
    v = Vocabulary.of(model)
    ids = [[v.begin_image, *v.code_ids[: v.image_length], v.end_image]]
    before = fastdecode.to_documents(model, processor, ids)[0][0].tobytes()
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.mul_(-1)
    assert fastdecode.to_documents(model, processor, ids)[0][0].tobytes() != before
