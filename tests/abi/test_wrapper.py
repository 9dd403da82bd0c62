"""fastdecode.hpp: the same as the C functions, without a warning of the compilers that are here."""

import shutil

import pytest
from linking import ROOT, config, run

SOURCE = ROOT / "tests" / "abi" / "wrapper.cpp"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_samples_and_decodes_as_the_c_interface_does(tmp_path, compiler):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    run(compiler, *STRICT, SOURCE, *config("--cflags", "--libs"), "-o", tmp_path / "wrapper")
    assert run(tmp_path / "wrapper").splitlines() == [
        "same",
        "1 temperature = -1: must be finite and >= 0",
        "1 temperature: has 1 elements; must have at least 2",
        "1 logits: has 600 elements; must have at least 900",
        "1 rows = -1: must be at least 0",
        "1 seen = NULL: must be given with a penalty, which applies to the tokens seen",
        "1 top_p: has 0 elements; must have at least 2",
        "1 logits: has 10 elements; must have at least 300",
        "1 groups = 9223372036854775807: must be at most 2147483647",
        f"1 GroupState: an array would have 2 * {1 << 47} elements; must have at most 2^47",
        "1 sample->step_value = 5: must be 0, since advance->step numbers the tokens",
        "1 grammar.set_of[0] = -2, grammar.tight_set_of[0] = -2: must be at least -1",
        "1 out: must not overlap x",
        "1 weight: has 33 bytes; must have at least 34",
        "1 weight: has 33 bytes; must have at least 34",
        "1 how.scale = NULL: must not be for int8 weights",
        "1 how.type = 9: must be a fastdecode_weight_type, 0 to 7",
        "1 hidden = 0: must be at least 1",
    ]
