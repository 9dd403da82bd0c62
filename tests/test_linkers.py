"""Programs that link the library, installed or from a plain CMake build, sample the same tokens as Python."""

import shutil
from pathlib import Path

import pytest
import torch
from linking import ROOT, build_example, config, moved_build, run

from fastdecode import build_info, cli, ops

EXAMPLE = ROOT / "examples" / "c"
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


def test_pkg_config(tmp_path, expected):
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    folder = Path(build_info.cmake_prefix()) / "lib"
    flags = run("pkg-config", "--with-path", folder / "pkgconfig", "--cflags", "--libs", "fastdecode").split()
    run("gcc", "-std=c99", EXAMPLE / "draw.c", *flags, f"-Wl,-rpath,{folder}", "-o", tmp_path / "draw")
    assert run(tmp_path / "draw") == expected
