"""Programs that link the library, installed or from a plain CMake build, sample the same tokens as Python."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linking import ROOT, build_example, cmake, config, moved_build, run

from fastdecode import build_info, cli, ops

EXAMPLE = ROOT / "examples" / "c"
QUICK = ("-DFASTDECODE_X86=OFF", "-DFASTDECODE_CUDA=OFF")
"""Without vector code, which takes most of the time to compile."""
VOCAB, LENGTH = 65536, 16


def model(step: int) -> torch.Tensor:
    """The logits that ``draw.c`` makes up, (2, VOCAB)."""
    wrap = 2**32 - 1
    h = torch.arange(2 * VOCAB) * 2654435761 & wrap
    h = h ^ (step * 40503 & wrap)
    h = (h ^ h >> 15) * 2246822519 & wrap
    h = h ^ h >> 13
    return ((h % 4096).float() / 512).view(2, VOCAB)


@pytest.fixture(scope="module")
def expected() -> str:
    ids, total = [], torch.zeros(())
    for step in range(LENGTH):
        drawn = ops.sample(
            model(step),
            streams=torch.tensor([[0, 1]], dtype=torch.int32),
            weights=torch.tensor([[3.0, -2.0]]),
            allowed=[[(4, 8196)]],
            temperature=0.7,
            top_p=0.9,
            seed=7,
            step=step,
            backend="reference",
        )
        ids.append(drawn.token.item())
        total += drawn.logprob[0]
    return " ".join(map(str, ids)) + f" \nmean logprob {total / LENGTH:.6f}\n"


def test_with_the_flags_of_the_installed_package(tmp_path, expected):
    flags = config("--cflags", "--libs")
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    run("gcc", *strict, EXAMPLE / "draw.c", *flags, "-o", tmp_path / "draw")
    assert run(tmp_path / "draw") == expected


def test_config_says_what_it_needs(capsys):
    assert cli.main(["config"]) == 2
    assert "--cflags, --libs or --cmake-prefix" in capsys.readouterr().err


def test_with_cmake_and_the_installed_package(tmp_path, expected):
    [prefix] = config("--cmake-prefix")
    build_example(EXAMPLE, tmp_path, prefix)
    assert run(tmp_path / "draw") == expected


@pytest.mark.long
def test_with_a_plain_cmake_build_that_was_moved(tmp_path, tmp_path_factory, expected):
    build_example(EXAMPLE, tmp_path, moved_build(tmp_path_factory))
    assert run(tmp_path / "draw") == expected


def with_pkg_config(prefix: Path, program: Path, *options: str) -> str:
    """Builds the example with the flags of pkg-config, as a shell reads them after ``eval``, and runs it."""
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    folder = prefix / "lib"
    said = run("pkg-config", "--with-path", folder / "pkgconfig", "--cflags", "--libs", *options, "fastdecode")
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    run("gcc", *strict, EXAMPLE / "draw.c", *shlex.split(said), f"-Wl,-rpath,{folder}", "-o", program)
    return run(program)


def test_pkg_config(tmp_path, expected):
    assert with_pkg_config(Path(build_info.cmake_prefix()), tmp_path / "draw") == expected


@pytest.fixture(scope="module")
def spaced(tmp_path_factory) -> Path:
    """A folder with a space in its name that holds a copy of the package."""
    folder = tmp_path_factory.mktemp("with space") / "a folder"
    package = Path(build_info.cmake_prefix())
    for name in ("include", "lib"):
        shutil.copytree(package / name, folder / "fastdecode" / name)
    for name in ("__init__.py", "__main__.py", "build_info.py"):
        shutil.copy(package / name, folder / "fastdecode" / name)
    shutil.copytree(package / "cli", folder / "fastdecode" / "cli")
    return folder


def test_pkg_config_in_a_path_with_a_space(tmp_path, spaced, expected):
    assert with_pkg_config(spaced / "fastdecode", tmp_path / "draw") == expected


def test_config_in_a_path_with_a_space(tmp_path, spaced, expected):
    """The shell's line of the documentation: `eval` undoes the quotes."""
    command = f"{shlex.quote(sys.executable)} -m fastdecode config --cflags --libs"
    line = f'flags=$({command}) && eval gcc -std=c99 "$source" $flags -o "$program"'
    env = {"PATH": "/usr/bin:/bin", "source": str(EXAMPLE / "draw.c"), "program": str(tmp_path / "draw")}
    done = subprocess.run(["sh", "-c", line], cwd=spaced, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert run(tmp_path / "draw") == expected


def test_cmake_in_a_path_with_a_space(tmp_path, spaced, expected):
    build_example(EXAMPLE, tmp_path / "the build", spaced / "fastdecode")
    assert run(tmp_path / "the build" / "draw") == expected


def test_the_package_holds_no_symbolic_link():
    """A wheel cannot: the name that linkers look for is a text file."""
    folder = Path(build_info.get_library()).parent
    assert [p for p in folder.rglob("*") if p.is_symlink()] == []
    assert (folder / "libfastdecode.so").read_text().split("\n")[1] == "INPUT(libfastdecode.so.2)"
    assert "SONAME" in (said := run("readelf", "-d", build_info.get_library()))
    assert "[libfastdecode.so.2]" in said


def in_a_project(folder: Path, including: str, *options: str) -> str:
    """Builds the example in a project that includes the sources, and runs it."""
    source = folder / "a project"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.22)\nproject(draw LANGUAGES C CXX)\n{including}\n"
        f'add_executable(draw "{EXAMPLE / "draw.c"}")\ntarget_link_libraries(draw fastdecode::fastdecode)\n'
        "install(TARGETS draw)\n"
    )
    cmake("-S", source, "-B", folder / "build", *QUICK, *options)
    cmake("--build", folder / "build", "-j2")
    cmake("--install", folder / "build", "--prefix", folder / "installed")
    assert [p.name for p in (folder / "installed").rglob("*") if p.is_file()] == ["draw"]  # ours are not installed
    return run(folder / "build" / "draw")


@pytest.mark.long
def test_add_subdirectory(tmp_path, expected):
    assert in_a_project(tmp_path, f'add_subdirectory("{ROOT}" fastdecode)') == expected


@pytest.mark.long
def test_fetch_content_as_a_static_library(tmp_path, expected):
    fetch = f'include(FetchContent)\nFetchContent_Declare(fastdecode SOURCE_DIR "{ROOT}")'
    said = in_a_project(tmp_path, f"{fetch}\nFetchContent_MakeAvailable(fastdecode)", "-DFASTDECODE_STATIC=ON")
    assert said == expected
    assert "libfastdecode" not in run("readelf", "-d", tmp_path / "build" / "draw")


@pytest.fixture(scope="module")
def static_build(tmp_path_factory) -> Path:
    """Installed from a build of the static library, to other folders than lib and include."""
    folder = tmp_path_factory.mktemp("static")
    cmake("-S", ROOT, "-B", folder / "build", *QUICK, "-DBUILD_SHARED_LIBS=OFF", "-DCMAKE_INSTALL_INCLUDEDIR=headers")
    cmake("--build", folder / "build", "-j2")
    cmake("--install", folder / "build", "--prefix", folder / "first")
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.mark.long
def test_the_static_library(tmp_path, static_build, expected):
    """By find_package in a project of C alone, and by pkg-config."""
    assert (static_build / "headers/fastdecode/fastdecode.hpp").exists()
    assert list((static_build / "lib").glob("libfastdecode*")) == [static_build / "lib/libfastdecode.a"]
    build_example(EXAMPLE, tmp_path / "build", static_build)
    assert run(tmp_path / "build" / "draw") == expected
    assert "libfastdecode" not in run("readelf", "-d", tmp_path / "build" / "draw")
    assert with_pkg_config(static_build, tmp_path / "draw") == expected


@pytest.mark.long
def test_a_folder_for_libraries_of_several_levels(tmp_path, expected):
    """As Debian's lib/x86_64-linux-gnu: the pkg-config file finds the prefix from there."""
    options = ("-DCMAKE_INSTALL_LIBDIR=lib/several/levels",)
    cmake("-S", ROOT, "-B", tmp_path / "build", *QUICK, *options)
    cmake("--build", tmp_path / "build", "-j2")
    cmake("--install", tmp_path / "build", "--prefix", tmp_path / "installed")
    libraries = tmp_path / "installed/lib/several/levels"
    assert (libraries / "libfastdecode.so").is_symlink()
    build_example(EXAMPLE, tmp_path / "by_cmake", "", f"-Dfastdecode_DIR={libraries}/cmake/fastdecode")
    assert run(tmp_path / "by_cmake" / "draw") == expected
    if shutil.which("pkg-config"):
        said = run("pkg-config", "--with-path", libraries / "pkgconfig", "--cflags", "--libs", "fastdecode")
        flags = [*shlex.split(said), f"-Wl,-rpath,{libraries}"]
        run("gcc", "-std=c99", EXAMPLE / "draw.c", *flags, "-o", tmp_path / "draw")
        assert run(tmp_path / "draw") == expected


def test_python_needs_the_shared_library(tmp_path):
    options = ("-DFASTDECODE_PYTHON=ON", "-DFASTDECODE_STATIC=ON", *QUICK)
    with pytest.raises(AssertionError, match="FASTDECODE_PYTHON = ON: needs the shared library"):
        cmake("-S", ROOT, "-B", tmp_path / "build", *options)
