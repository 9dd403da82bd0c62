"""Programs that were compiled against other versions of the header than the library has."""

import re
import shutil
from pathlib import Path

import pytest
from linking import ROOT, cmake, run

from fastdecode import build_info

HERE = Path(__file__).parent
PROGRAM = HERE / "one_draw.c"
REFUSED = "compile the program again if it was compiled against version 1 of fastdecode.h"


def compiled(folder: Path, header: Path, library: Path) -> Path:
    """The program, compiled against a header and linked with a library."""
    include = folder / "include" / "fastdecode"
    include.mkdir(parents=True)
    shutil.copy(header, include / "fastdecode.h")
    program = folder / "program"
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    link = (library, f"-Wl,-rpath,{library.parent}")
    run("gcc", *strict, f"-I{folder / 'include'}", PROGRAM, *link, "-o", program)
    return program


def test_a_program_of_version_1_is_refused(tmp_path):
    """Its structs are not written behind the field `size`, and no result is."""
    program = compiled(tmp_path, HERE / "fastdecode_v1.h", Path(build_info.get_library()))
    version, sampled, stepped, guards = run(program).splitlines()
    assert version == "version 1, library 2"
    assert sampled.startswith("1 token -7 args->size = 0: fastdecode_sample_args has at least ")
    assert sampled.endswith(REFUSED)
    assert stepped.startswith("1 x 3.000000 args->size = 0: fastdecode_decode_args has at least ")
    assert guards == "guards whole"


def test_a_program_of_version_1_with_a_smaller_struct_is_refused(tmp_path):
    """As an earlier version 1 had: without the last field. Version 1's library wrote behind such a struct."""
    header = tmp_path / "smaller.h"
    text, count = re.subn(r"\n *int32_t\* status;[^\n]*", "", (HERE / "fastdecode_v1.h").read_text())
    assert count == 1
    header.write_text(text)
    program = tmp_path / "smaller.c"
    program.write_text(PROGRAM.read_text().replace("  sample.args.status = &status;\n", "  (void)status;\n"))
    include = tmp_path / "include" / "fastdecode"
    include.mkdir(parents=True)
    shutil.copy(header, include / "fastdecode.h")
    library = Path(build_info.get_library())
    link = (library, f"-Wl,-rpath,{library.parent}")
    run("gcc", "-std=c99", f"-I{tmp_path / 'include'}", program, *link, "-o", tmp_path / "program")
    said = run(tmp_path / "program").splitlines()
    assert said[1].endswith(REFUSED)
    assert said[-1] == "guards whole"


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def test_a_program_whose_layers_have_no_weights_runs_and_gets_the_same(tmp_path):
    """As version 2 had them before there were types of weights: the array's layers are then 8 bytes nearer."""
    header, library = ROOT / "csrc/include/fastdecode/fastdecode.h", Path(build_info.get_library())
    expected = run(compiled(tmp_path / "new", header, library)).splitlines()
    text, count = re.subn(r"\n  const fastdecode_weights\* weights;(?=\n} fastdecode_layer;)", "", header.read_text())
    assert count == 1
    (tmp_path / "older.h").write_text(text)
    assert run(compiled(tmp_path / "older", tmp_path / "older.h", library)).splitlines() == expected
    assert expected[1] == "0 token 2 "
    assert expected[2].startswith("0 x ")
    assert expected[-1] == "guards whole"


def test_a_program_without_activation_runs_and_gets_the_same(tmp_path):
    """As version 2 was before steps had a field for it: such a program's MLPs are those of SiLU."""
    header, library = ROOT / "csrc/include/fastdecode/fastdecode.h", Path(build_info.get_library())
    expected = run(compiled(tmp_path / "new", header, library)).splitlines()
    text, count = re.subn(r"\n  int64_t activation;[^}]*(?=\n} fastdecode_decode_args;)", "", header.read_text())
    assert count == 1
    (tmp_path / "older.h").write_text(text)
    assert run(compiled(tmp_path / "older", tmp_path / "older.h", library)).splitlines() == expected
    assert expected[2].startswith("0 x ")
    assert expected[-1] == "guards whole"


@pytest.fixture(scope="module")
def next_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose structs have one more field each; that of sample_args has a default and refuses another value."""
    folder = tmp_path_factory.mktemp("next")
    source = folder / "source"
    source.mkdir()
    for name in ("CMakeLists.txt", "cmake", "csrc"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    header = source / "csrc/include/fastdecode/fastdecode.h"
    for struct in ("sample", "advance", "decode", "rope_append", "attend"):
        changed(header, f"}} fastdecode_{struct}_args;", f"  int64_t one_more;\n}} fastdecode_{struct}_args;")
    changed(header, "} fastdecode_layer;", "  const float* one_more;\n} fastdecode_layer;")
    defaults = "inline void set_defaults(fastdecode_sample_args* args) {\n"
    changed(source / "csrc/core/structs.h", defaults, defaults + "  args->one_more = 7;\n")
    check = "fastdecode_result check_sample_args(const fastdecode_sample_args& args) {\n"
    refuse = '  INVALID_IF(args.one_more != 7, "one_more = %d: must be 7", static_cast<int>(args.one_more));\n'
    changed(source / "csrc/cpu/sample_check.cpp", check, check + refuse)
    check = "fastdecode_result check_decode_args(const fastdecode_decode_args& a) {\n"
    refuse = (
        '  INVALID_IF(a.layer_count > 0 && layer_at(a, 0).one_more != nullptr, "layers[0].one_more: must be NULL");\n'
    )
    changed(source / "csrc/cpu/decode_check.cpp", check, check + refuse)
    # Without vector code, which takes most of the time to compile.
    cmake("-S", source, "-B", folder / "build", "-DFASTDECODE_X86=OFF", "-DFASTDECODE_CUDA=OFF")
    cmake("--build", folder / "build", "-j2")
    return folder / "build" / "libfastdecode.so.2"


@pytest.mark.long
def test_a_program_of_version_2_runs_with_a_library_of_more_fields(tmp_path, next_library):
    header = ROOT / "csrc/include/fastdecode/fastdecode.h"
    program = compiled(tmp_path, header, Path(build_info.get_library()))
    expected = run(program)
    assert expected.splitlines()[1] == "0 token 2 "
    assert expected.splitlines()[-1] == "guards whole"
    assert run(program, env={"LD_LIBRARY_PATH": str(next_library.parent), "FASTDECODE_CPU_ISA": "portable"}) == run(
        program, env={"FASTDECODE_CPU_ISA": "portable"}
    )
    other = compiled(tmp_path / "other", header, next_library)
    assert run(other).splitlines()[1:2] == ["0 token 2 "]
    assert run(other).splitlines()[-1] == "guards whole"


@pytest.mark.long
def test_a_program_of_more_fields_is_refused_by_an_older_library(tmp_path, next_library):
    header = next_library.parent.parent / "source/csrc/include/fastdecode/fastdecode.h"
    program = compiled(tmp_path, header, Path(build_info.get_library()))
    _, sampled, stepped, guards = run(program).splitlines()
    for line, struct in ((sampled, "sample"), (stepped, "decode")):
        assert f": this library's fastdecode_{struct}_args has " in line
        assert line.endswith("the program was compiled against a newer fastdecode.h: update the library")
    assert guards == "guards whole"
    assert run(compiled(tmp_path / "same", header, next_library)).splitlines()[1] == "0 token 2 "
