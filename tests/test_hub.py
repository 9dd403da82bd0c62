"""``hub/`` as a repository of a custom generation loop, and within the repository of a model."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import fastdecode
from fastdecode.models.loading import EMBEDDED
from fastdecode.models.pictures import missing_decoder_keys

HUB = Path(__file__).resolve().parent.parent / "hub"
OPTIONS = {"multimodal_generation_mode": "image-only", "guidance": 3.0, "seed": 7, "do_sample": True}
PROMPT = "Draw: In column 2 a red circle."


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """transformers copies the code of repositories to a cache, which tests must not share."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def test_the_folder_is_a_repository_of_a_custom_loop(own_cache):
    model, processor = fastdecode.load("blocks")
    inputs = processor(text=PROMPT, return_tensors="pt")
    expected = fastdecode.generate(model, **inputs, **OPTIONS)
    call = {"custom_generate": str(HUB), **OPTIONS}
    assert torch.equal(model.generate(**inputs, trust_remote_code=True, **call), expected)
    assert torch.equal(model.generate(inputs["input_ids"], trust_remote_code=True, **call), expected)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(**inputs, **call, trust_remote_code=False)
    with pytest.raises(ValueError, match="guidence"):
        model.generate(**inputs, trust_remote_code=True, guidence=2.0, **call)


def test_a_model_whose_repository_has_it_draws_by_itself(own_cache, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED["blocks"], folder)
    shutil.copytree(HUB / "custom_generate", folder / "custom_generate")
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text=PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, **OPTIONS)
    assert torch.equal(tokens, model.generate(inputs["input_ids"], **OPTIONS))
    loaded, _ = fastdecode.load("blocks")
    assert torch.equal(tokens, fastdecode.generate(loaded, **inputs, **OPTIONS))
    [[picture]] = fastdecode.to_documents(model, processor, tokens, start=inputs["input_ids"].shape[1])
    assert picture.size == (64, 64)
    assert not missing_decoder_keys(model)
    plain = AutoModelForImageTextToText.from_pretrained(folder)  # nobody's code runs without leave
    assert "generate" not in vars(plain)


def test_its_card_has_what_the_hub_reads():
    card = (HUB / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- custom_generate\n---\n")
    for program in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(program, "README.md", "exec")
    assert (HUB / "custom_generate" / "requirements.txt").read_text().split() == ["fastdecode"]
