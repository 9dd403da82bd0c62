"""What is imported, by the package and by its commands, and what others may say meanwhile: nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastdecode.cli import process
from fastdecode.extras import EXTRAS, missing_package

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = (
    "import sys\n"
    "class Missing:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] in {names}:\n"
    "            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
    "sys.meta_path.insert(0, Missing())\n"
)
LISTED = (
    "import json, sys\n"
    "from fastdecode.cli import main\n"
    "try:\n"
    "    main()\n"
    "except SystemExit:\n"
    "    pass\n"
    "with open({file!r}, 'w') as file:\n"
    "    json.dump([name for name, module in sys.modules.items() if module is not None], file)\n"
)
DRAW = ("generate", "--prompt", "Draw: In column 2 a red circle.", "--mode", "image-only", "-o", "drawn")


def python(code: str, *arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    known = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTDECODE_BACKEND")
    }
    environment = {**known, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def imported(folder: Path, *arguments: str, **variables: str) -> tuple[set[str], str]:
    """Top modules that a command has imported at its end, and its standard error."""
    file = folder / "modules.json"
    done = python(LISTED.format(file=str(file)), *arguments, folder=folder, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return {name.partition(".")[0] for name in json.loads(file.read_text())}, done.stderr


def test_the_package_itself_imports_nothing():
    done = python("import sys, fastdecode; print(dir(fastdecode)); assert not {'torch', 'numpy'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "'generate'" in done.stdout
    assert "'ops'" in done.stdout


def test_ops_need_torch_and_numpy_alone():
    """Names that need more say which extra to install."""
    code = (
        WITHOUT.format(names={module for module in EXTRAS if module != "tqdm"})  # torch itself uses tqdm where it is
        + "import torch, fastdecode, fastdecode.ops as ops\n"
        "assert fastdecode.ops is ops\n"
        "assert ops.sample(torch.zeros(2, 9)).status.tolist() == [0, 0]\n"
        "torch.ops.fastdecode.sample(torch.zeros(2, 9))\n"
        "assert fastdecode.get_library()\n"
        "assert fastdecode.PagePool\n"
        "assert fastdecode.Guidance.two_way(3.0).weights == (3.0, -2.0)\n"
        "for name in ('generate', 'Engine', 'load', 'recipe'):\n"
        "    try:\n"
        "        getattr(fastdecode, name)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), ("generate", "Engine", "load", "recipe"), strict=True):
        assert re.fullmatch(
            rf"fastdecode\.{name} needs the package \w+, which is not installed: pip install 'fastdecode\[hf\]'", line
        )


def test_a_command_says_which_extra_it_needs(tmp_path):
    code = WITHOUT.format(names={"transformers"}) + "from fastdecode.cli import main; raise SystemExit(main())"
    done = python(code, *DRAW, folder=tmp_path)
    assert done.returncode == 2
    assert (
        "generate needs the package transformers, which is not installed: pip install 'fastdecode[hf]'" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_an_import_that_fails_otherwise_is_not_explained_away():
    broken = ImportError("libsomething.so: undefined symbol", name="transformers")
    unknown = ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")
    assert missing_package("generate", broken) is broken
    assert missing_package("generate", unknown) is unknown


def test_help_imports_no_library(tmp_path):
    modules, said = imported(tmp_path, "--help")
    assert not modules & {"torch", "numpy", "transformers", "PIL"}
    assert said == ""


def test_env_imports_only_what_it_tries(tmp_path):
    modules, said = imported(tmp_path, "env")
    assert {"torch", "transformers"} <= modules
    assert not modules & {"torchao", "triton", "matplotlib", "fastapi", "uvicorn", "scipy", "sympy"}
    assert said == ""


def test_generate_imports_no_more_than_it_needs(tmp_path):
    if any(map(os.path.exists, process.GPU_DEVICES)):
        pytest.skip("torch uses triton where there is a GPU")
    modules, said = imported(tmp_path, *DRAW)
    assert {"torch", "transformers"} <= modules
    assert not modules & {"torchao", "triton", "matplotlib", "fastapi", "uvicorn", "scipy", "sklearn"}
    assert list((tmp_path / "drawn").glob("picture*.png"))
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip()]
    assert lines
    ours = re.compile(r"\s*\d+%\|.*token/s\]|load(ing|ed) blocks.*")
    assert [line for line in lines if not ours.fullmatch(line)] == []


def test_quantised_weights_keep_what_they_need(tmp_path):
    """A model with a quantization_config may need torchao, and one of a hub too."""
    (tmp_path / "config.json").write_text('{"model_type": "chameleon", "quantization_config": {}}')
    code = (
        "import sys; from fastdecode.cli.process import hide_unneeded\n"
        "hide_unneeded(sys.argv[1]); print([name for name, module in sys.modules.items() if module is None])"
    )
    for model in (str(tmp_path), "someone/their-model"):
        assert "torchao" not in python(code, model).stdout
    for model in ("blocks", str(ROOT / "fastdecode" / "assets" / "blocks")):
        assert "'torchao'" in python(code, model).stdout


def test_torchao_says_nothing_where_it_is_needed():
    pytest.importorskip("torchao")
    code = (
        "import sys; from fastdecode.cli.process import hide_unneeded, silence\n"
        "silence(); hide_unneeded('someone/their-model')\n"
        "import transformers.modeling_utils\n"
        "assert sys.modules['torchao']"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_triton_stays_where_it_is_asked_for():
    code = (
        "import sys; from fastdecode.cli.process import hide_unneeded\n"
        "hide_unneeded('blocks'); print('triton' in sys.modules)"
    )
    assert python(code, TRITON_INTERPRET="1").stdout == "False\n"
    assert python(code, FASTDECODE_BACKEND="triton").stdout == "False\n"


def test_a_program_that_calls_the_command_keeps_its_packages(tmp_path):
    code = (
        "import logging, sys; from fastdecode.cli import main\n"
        "assert main(['generate', '--prompt', 'x', '--model', '/nowhere', '-o', sys.argv[1]]) == 2\n"
        "assert None not in sys.modules.values()\n"
        "assert logging.getLogger('torchao').level == logging.NOTSET\n"
    )
    done = python(code, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
