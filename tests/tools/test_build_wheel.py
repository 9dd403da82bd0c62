"""The package's contents and metadata, and what `tools.build_wheel` refuses. `make package` runs it whole."""

from __future__ import annotations

import io
import re
import subprocess
import sysconfig
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastdecode import build_info
from tools import build_wheel

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def is_installed(package: str) -> bool:
    """Whether a package is installed; a folder of its name, such as build/, is none."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_wheel, "NEEDED", ("json", "no_such_package"))
    assert build_wheel.main(["--no-try"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"build_wheel needs no_such_package.*: pip install -e '.\[package\]'", said)


def archive(folder: Path, names: list[str]) -> None:
    with tarfile.open(folder / "fastdecode-0.1.0.tar.gz", "w:gz") as made:
        for name in names:
            made.addfile(tarfile.TarInfo(f"fastdecode-0.1.0/{name}"), io.BytesIO())


def test_an_sdist_must_be_complete_and_hold_nothing_that_was_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "tests/conftest.py", ".gitignore"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    subprocess.run(["git", "init", "-q", source], check=True)
    subprocess.run(["git", "-C", source, "add", "-A"], check=True)
    monkeypatch.setattr(build_wheel, "ROOT", source)
    monkeypatch.setattr(build_wheel, "run", lambda *_: None)  # the archive is here already
    archive(tmp_path, ["setup.py"])
    with pytest.raises(RuntimeError, match=r"lacks 1 files: tests/conftest.py; see MANIFEST.in"):
        build_wheel.build_sdist(tmp_path)
    archive(tmp_path, ["setup.py", "tests/conftest.py", "fastdecode/lib/libfastdecode.so"])
    with pytest.raises(RuntimeError, match=r"has built files: fastdecode/lib/libfastdecode.so"):
        build_wheel.build_sdist(tmp_path)
    archive(tmp_path, ["setup.py", "tests/conftest.py"])
    assert build_wheel.build_sdist(tmp_path).name == "fastdecode-0.1.0.tar.gz"


def test_what_is_skipped_for_want_of_time_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def try_package(package: Path, python: str, folder: Path) -> Path:
        tried.append(package.name)
        return folder

    monkeypatch.setattr(build_wheel, "try_package", try_package)
    monkeypatch.setattr(build_wheel, "run_tests", lambda *_: tried.append("tests"))
    packages = (tmp_path / "sdist", tmp_path / "wheel", tmp_path)
    for most, wanted in ((9, ["wheel", "wheel", "sdist", "tests"]), (3, ["wheel", "wheel", "sdist"]), (1, ["wheel"])):
        tried.clear()
        build_wheel.try_all(*packages, ["a", "b"], tmp_path, lambda most=most: len(tried) >= most)
        assert tried == wanted
        assert capsys.readouterr().out.count("SKIPPED") == (0 if most == 9 else 1 if most == 3 else 2)


@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools is not installed here")
@pytest.mark.long
def test_the_sdist_has_every_file_of_the_repository(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nothing says which files there should be")
    if not is_installed("build"):
        pytest.skip("the extra `package` is not installed")
    build_wheel.build_sdist(tmp_path)


def test_metadata_is_what_an_index_wants() -> None:
    assert (ROOT / PROJECT["readme"]).is_file()
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert len(PROJECT["keywords"]) >= 5
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert {"serve", "hf", "gpu", "train", "test", "dev", "package"} <= set(PROJECT["optional-dependencies"])


def test_extras_leave_the_bounds_of_base_dependencies_to_these() -> None:
    base = {re.split(r"[^\w-]", need)[0] for need in PROJECT["dependencies"]}
    assert {"torch", "transformers"} <= base  # `pip install fastdecode` is enough for generate
    for extra in ("serve", "hf", "gpu"):
        for need in PROJECT["optional-dependencies"][extra]:
            assert need in base or re.split(r"[^\w-]", need)[0] not in base, need


def test_the_module_uses_the_stable_abi_only() -> None:
    """Every function of Python that the module calls is one of the stable ABI: so its name says, and so it is."""
    from fastdecode import _C

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("a Python without a GIL has no stable ABI")
    assert Path(_C.__file__).name == "_C.abi3.so"
    command = ["nm", "-D", "--undefined-only", _C.__file__]
    named = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "PyModuleDef_Init" in named
    assert not re.findall(r"\b_Py(?!_NoneStruct)\w+", named)


def test_only_our_functions_are_exported() -> None:
    command = ["nm", "-D", "--defined-only", build_info.get_library()]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    names = [line.split()[-1].partition("@")[0] for line in lines]
    assert "fastdecode_sample" in names
    assert not [name for name in names if not name.lower().startswith("fastdecode_")]
