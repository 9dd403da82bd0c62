"""Compiles every kernel for the supported GPUs, without a GPU: checks the arithmetic, and that nothing spills."""

import re

import pytest
import torch
from devices import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

if not INTERPRETED:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    from fastdecode.ops.sample.checks import check_arguments
    from fastdecode.triton_kernels import compile as compiling
    from fastdecode.triton_kernels import disassemble, sample_large, sample_small
    from fastdecode.triton_kernels.sample import launch_sample

    CASES = [
        pytest.param(case, arch, id=f"{case.name} {case.configuration}-{arch}", marks=[pytest.mark.long] * (arch == 80))
        for case in compiling.cases()
        for arch in case.arches
    ]
else:
    CASES = []

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""The most bytes of shared memory that a block can have."""


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_shipped_configuration(case, arch):
    made = compiling.compile_case(case, arch)
    assert made.stack == 0, "spills"
    assert made.registers * case.options["num_warps"] * 32 <= 65536
    assert made.shared <= SHARED[arch]
    floating = re.findall(r"^\s*(?:@!?%\w+\s+)?(\w+\.[\w.]*f(?:32|64)[\w.]*)", made.ptx, re.MULTILINE)
    assert floating or not case.name.startswith("sample"), "no arithmetic found to look at"
    for operation in floating:
        name, *modifiers = operation.split(".")
        fused = case.name == "linear_int4" and operation == "fma.rn.f32"  # asked for, and in every row alike
        assert fused or name not in ("fma", "mad"), f"{operation}: a product and a sum rounded together"
        assert not {"ftz", "approx", "full"} & set(modifiers), f"{operation}: not IEEE arithmetic"
        if name in ("add", "sub", "mul", "div"):
            assert "rn" in modifiers, f"{operation}: left to ptxas to fuse"


def products(name: str) -> list:
    """The cases of a kernel whose rows are read in pairs or fours."""
    of_kernel = [case for case in CASES if case.values[1] == 90 and case.values[0].name == name]
    return [case for case in of_kernel if case.values[0].constexprs["K"] % 2 == 0]


@pytest.mark.parametrize(("case", "arch"), products("linear_parts"))
def test_a_product_takes_few_instructions(case, arch):
    """Of a warp, for four multiplications, which are 512 weights: 1 KB of bfloat16, or half of it in bytes.

    A multiprocessor of an H200 begins four instructions a clock, and reads 1 KB in about 55 clocks: 220 instructions,
    110 for half a KB. With more, memory waits for instructions.
    """
    if not disassemble.NVDISASM.exists():
        pytest.skip("this Triton has no nvdisasm")
    tiles = 1 if case.constexprs["GROUP"] == 4 else 3
    most = {(1, "*bf16"): 60, (1, "*i16"): 90, (3, "*bf16"): 100, (3, "*i16"): 125}[tiles, case.types["weight0"]]
    names = max(disassemble.loops(compiling.compile_case(case, arch).cubin), key=len)
    warps, features = case.options["num_warps"], case.constexprs["FEATURES"]
    multiplied = sum(name.startswith("HMMA.16816") for name in names) / tiles  # of 16 by 8 weights each
    assert multiplied == case.constexprs["BLOCK"] * features / 128 / warps
    assert len(names) / multiplied * 4 <= most
    added = sum(name.startswith("FADD") for name in names)
    assert added == features * 16 * tiles / 32 / warps, "blocks of k must be added in float32"


@pytest.mark.parametrize(("case", "arch"), products("linear_int4"))
def test_a_product_of_int4_takes_few_instructions(case, arch):
    """Of a warp, for 2,048 weights, which are 16 multiplications and 1 KB: 220 instructions as above.

    Scales and offsets of groups of 32 are a quarter of a KB more. The products of groups of 32 are multiplied twice,
    and those of more than four rows three times, so that they take more.
    """
    if not disassemble.NVDISASM.exists():
        pytest.skip("this Triton has no nvdisasm")
    constants, warps = case.constexprs, case.options["num_warps"]
    size, rows, features = constants["SIZE"], constants["GROUP"], constants["FEATURES"]
    tiles, masked = 1 if rows == 4 else 3, 2 if size == 32 else 1
    names = max(disassemble.loops(compiling.compile_case(case, arch).cubin), key=len)
    weights = constants["BLOCK"] * (2 if size >= 64 else 1) * features / warps
    most = {(1, 64): {32: 350, 64: 220}.get(size, 190), (1, 32): {32: 780, 64: 440}.get(size, 300)}.get(
        (tiles, features), {32: 920, 64: 510, 128: 380}.get(size)
    )
    multiplied = sum(name.startswith("HMMA.16816") for name in names)
    assert multiplied >= weights / 128 * tiles * masked
    assert len(names) / weights * 2048 <= most
    fused = sum(name.startswith("FFMA") for name in names)
    groups = 2 * 16 * tiles * features / 32 / warps
    assert fused == groups * (2 if constants["OFFSET"] else 1), "sums of groups must be scaled in float32"


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "cases", lambda: [CASES[0].values[0]])
    assert compiling.main(["--arch", "90"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["kernel", "configuration", "arch", "registers", "shared", "spills"]
    assert row.split()[0] == "sample_small"
    assert row.split()[-4] == "90"


class Launches:
    """In place of a kernel: binds arguments as a launch on sm_90 would, and notes the types it would compile for."""

    def __init__(self, kernel) -> None:
        jit = pytest.importorskip("triton.runtime.jit")
        if not hasattr(jit, "create_function_from_signature"):
            pytest.skip("this Triton binds arguments in another way")
        self.kernel, self.arg_names, self.types = kernel, kernel.arg_names, set()
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)

    def __getitem__(self, grid):
        def launch(**arguments):
            _, specialization, options = self.bind(**arguments)
            assert options["enable_fp_fusion"] is False
            types = {name: type for name, (type, _) in zip(self.arg_names, specialization, strict=True)}
            self.types.add(tuple(item for item in types.items() if item[1] != "constexpr"))

        return launch


def test_launches_need_no_other_types_than_are_compiled(monkeypatch: pytest.MonkeyPatch):
    """Whatever the values of numbers, and with tensors or without: one kernel for each dtype and set of constants."""
    kernels = []
    for module in (sample_small, sample_large):
        for name in [name for name in vars(module) if name.startswith("sample_")]:
            kernels.append(Launches(getattr(module, name)))
            monkeypatch.setattr(module, name, kernels[-1])
    absent = dict.fromkeys(("streams", "weights", "allowed", "set_index", "seen", "contrast", "noise"))
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0, "seed": 0, "step": 0}
    for rows, vocab in ((1, 1), (1, 8192), (16, 16), (2, 65536)):
        for more in (
            {"seed": -(2**63), "step": 2**63 - 1},
            {"seed": 1, "top_k": 1},
            {"top_k": 16, "temperature": torch.ones(rows), "seed": torch.ones(rows, dtype=torch.int64)},
            {"contrast": (0.1, 1), "top_p": 0.5},
            {"noise": torch.zeros(rows, vocab)},
        ):
            logits = torch.zeros(rows, vocab, dtype=torch.bfloat16)
            launch_sample(check_arguments(logits, **(absent | off | more)))
    for launches in kernels:
        assert len(launches.types) == 1, launches.kernel
        compiled = next(case.types for case in compiling.cases() if case.kernel is launches.kernel)
        for name, type in next(iter(launches.types)):
            assert type == compiled[name], name


APPENDING = [case for case in CASES if case.values[0].name == "attend"]


@pytest.mark.parametrize(("case", "arch"), APPENDING)
def test_the_last_program_sees_what_the_others_stored(case, arch):
    """All threads have stored before one of them counts the program, and none reads before it has counted."""
    lines = [line.strip() for line in compiling.compile_case(case, arch).ptx.splitlines()]
    (counted,) = [i for i, line in enumerate(lines) if re.search(r"\batom\.", line)]
    assert re.search(r"\batom\.(global\.gpu\.acq_rel|acq_rel\.gpu\.global)\.add\.u32\b", lines[counted])
    stored = [i for i, line in enumerate(lines) if re.search(r"\bst\.global\b", line)]
    barriers = [i for i, line in enumerate(lines) if line.startswith(("bar.sync", "barrier.sync"))]
    shared = [i for i, line in enumerate(lines) if re.search(r"\bld\.global\.cg\b", line)]
    before, after = max(i for i in stored if i < counted), min(shared)
    assert after > counted, (
        "what other programs stored is read after the count, and not from this multiprocessor's cache"
    )
    assert any(before < i < counted for i in barriers)
    assert any(counted < i < after for i in barriers)


DEPENDENT = [case for case in CASES if case.values[0].constexprs.get("DEPENDENT")]


@pytest.mark.parametrize(("case", "arch"), DEPENDENT)
def test_a_dependent_kernel_waits_before_it_touches_memory(case, arch):
    """Before it waits, a program only asks for weights, which no kernel of a step writes."""
    assert arch == 90
    assert case.options["launch_pdl"]
    lines = compiling.compile_case(case, arch).ptx.splitlines()
    (wait,) = [i for i, line in enumerate(lines) if "griddepcontrol.wait" in line]
    (launched,) = [i for i, line in enumerate(lines) if "griddepcontrol.launch_dependents" in line]
    touched = [i for i, line in enumerate(lines) if re.search(r"\b(ld\.global|st\.global|atom|cp\.async|red)\b", line)]
    assert launched < wait < min(touched)
    left = [i for i, line in enumerate(lines) if re.search(r"\b(bra|ret)\b", line)]
    assert wait < min(left), "no program may end without waiting: the next kernel relies on it"
    prefetched = [i for i, line in enumerate(lines) if "prefetch.global.L2" in line]
    assert bool(prefetched) == case.name.startswith("linear_")
    assert all(i < launched for i in prefetched)


def test_only_kernels_that_wait_are_launched_before_others_have_ended():
    assert len(DEPENDENT) > 20
    for case, arch in (case.values for case in CASES):
        assert bool(case.options.get("launch_pdl")) == bool(case.constexprs.get("DEPENDENT")), (case.name, arch)
