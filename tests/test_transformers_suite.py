"""transformers' own generation tests pass with enabled models as they pass without: `tests.transformers_suite`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transformers_suite import sources
from tests.transformers_suite.compare import MODELS, compare, table

MIXIN = """
class GenerationTesterMixin:
    def test_greedy(self):
        model = self.model()
        found = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
        assert found.shape == (1, 7)

    def test_beams(self):
        model = self.model()
        assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, num_beams=2).shape == (1, 7)

    def test_that_notices_fastdecode(self):
        assert "generate" not in vars(self.model())

    def test_that_fails_anyhow(self):
        raise AssertionError("anyhow")
"""

TESTS = """
import unittest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests.generation.test_utils import GenerationTesterMixin

class LlamaModelTest(GenerationTesterMixin, unittest.TestCase):
    def model(self):
        sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
        return LlamaForCausalLM(LlamaConfig(vocab_size=20, eos_token_id=None, pad_token_id=1, **sizes)).eval()

    def test_generate_raises(self):
        with self.assertRaises(ValueError):
            self.model().generate(torch.tensor([[5, 6]]), max_new_tokens=2, no_such_option=1)

    def test_something_else(self):
        pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of transformers in miniature."""
    files = {
        "tests/__init__.py": "",
        "tests/test_modeling_common.py": "import random\nglobal_rng = random.Random()\n",
        "tests/generation/__init__.py": "",
        "tests/generation/test_utils.py": "import torch\n" + MIXIN,
        "tests/models/__init__.py": "",
        "tests/models/llama/__init__.py": "",
        "tests/models/llama/test_modeling_llama.py": TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.long
def test_what_is_lost_is_told(folder: Path):
    found = compare(folder, "llama")
    assert found.tests == 5
    assert (found.passed_plain, found.passed_enabled) == (4, 3)
    assert [name.split("::")[-1] for name in found.lost] == ["test_that_notices_fastdecode"]
    assert [name.split("::")[-1] for name in found.not_counted] == ["test_that_fails_anyhow"]
    assert found.calls == {"decoded by fastdecode": 1, "handed to transformers": 1, "raised before decoding": 1}
    assert list(found.reasons) == ["num_beams=2 asks for beam search, which fastdecode does not support"]
    command = [sys.executable, "-m", "tests.transformers_suite", "--tests", str(folder), "--models", "llama"]
    command += ["--json", str(folder / "out.json")]
    ended = subprocess.run(command, cwd=sources.ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "::LlamaModelTest::test_that_notices_fastdecode\n" in ended.stdout
    assert json.loads((folder / "out.json").read_text())[0]["lost"] == found.lost


def test_a_folder_without_the_tests(tmp_path: Path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="give a checkout of transformers"):
        compare(tmp_path, "llama")
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path))
    assert sources.find() == (None, f"{sources.VARIABLE}={tmp_path} has no tests/generation")


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.parametrize("model", MODELS)
def test_no_test_of_transformers_is_lost(model: str):
    pytest.importorskip("parameterized", reason="transformers' tests need it")
    folder, why_not = sources.find()
    if folder is None:
        assert sources.VARIABLE not in os.environ, why_not
        pytest.skip(why_not)
    found = compare(folder, model)
    print(table([found]))
    assert not found.lost
    assert found.passed_plain > 20
    assert found.calls["decoded by fastdecode"] > 0
