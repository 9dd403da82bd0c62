"""Failures of other packages: build and dispatch. `tests/known_failures.md` lists all of them."""

import platform
import re
import subprocess
import tomllib

import pytest
from linking import ROOT

from fastdecode import _C, build_info


@pytest.mark.parametrize("unit", ["decode_avx2", "decode_avx512", "decode_avx512bf16", "sample_avx2", "sample_avx512"])
def test_row_39_units_for_wide_instructions_share_no_code(tmp_path, unit):
    """A weak symbol is a copy that the linker may keep for everybody: there must be none, not even unoptimised."""
    if platform.machine() != "x86_64":
        pytest.skip("not an x86 processor")
    wide = ["-mavx2", "-mf16c"] if unit.endswith("avx2") else ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    wide += ["-mavx512bf16", "-mavx512vnni"] if unit.endswith("bf16") else []
    target = tmp_path / "unit.o"
    flags = ["-std=c++17", "-O0", "-w", "-mfma", *wide, "-DFASTDECODE_X86", "-DFASTDECODE_BUILDING"]
    source = ROOT / "csrc" / "cpu" / f"{unit}.cpp"
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    subprocess.run(["g++", *flags, *include, "-c", str(source), "-o", str(target)], check=True)
    symbols = subprocess.run(["nm", "-C", "-P", str(target)], check=True, capture_output=True, text=True).stdout
    kinds = [re.fullmatch(r"(.*?) ([A-Za-z])(?: [0-9a-f]+)*\s*", line).groups() for line in symbols.splitlines()]
    weak = [name for name, kind in kinds if kind in "WVuw" and not name.startswith("DW.ref.")]
    assert not weak
    assert any(kind in "TDR" and unit.rsplit("_", 1)[1] in name for name, kind in kinds)


def test_row_40_the_build_and_the_compiled_parts_need_no_torch():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert not any(name in need for need in build["requires"] for name in ("torch", "cuda", "nvidia"))
    assert "import torch" not in (ROOT / "setup.py").read_text()
    for compiled in (build_info.get_library(), _C.__file__):
        command = ["nm", "-D", "--undefined-only", compiled]
        needed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert not any(name in needed for name in ("c10", "2at", "torch", "cuda"))
