"""Wrong arguments of a decode step's operations raise one sentence, before anything is written."""

import re

import pytest
import torch
from step_cases import Paged, paged

from fastdecode.ops import Matrix, attend, embed, joint_linear, linear, rms_norm, rope_append, swiglu
from fastdecode.ops.backends import core

BACKENDS = ["reference", "cpu"]
X, W = torch.ones(2, 8), torch.ones(3, 8)
META = torch.zeros(2, 8, device="meta")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: linear([1.0], W, backend=b), "x: must be a tensor, got list"),
        (lambda b: linear(X[0], W, backend=b), "x.shape = (8,): must be (rows, k)"),
        (lambda b: linear(X[:, :0], W, backend=b), "x.shape = (2, 0): must be (rows, k)"),
        (lambda b: linear(X.double(), W, backend=b), "x.dtype = torch.float64: must be torch.float32"),
        (lambda b: linear(X, W[:, :7].contiguous(), backend=b), "weight.shape = (3, 7): must be (features, 8)"),
        (
            lambda b: linear(X, W.int(), backend=b),
            "weight.dtype = torch.int32: must be float32, bfloat16, float16, int8 or float8_e4m3fn",
        ),
        (lambda b: linear(X, W.t().contiguous().t(), backend=b), "weight: must be dense, as .contiguous() makes it"),
        (lambda b: linear(X, META, backend=b), "weight.device = meta: must be cpu, as for x"),
        (lambda b: linear(X, W, torch.ones(4), backend=b), "bias.shape = (4,): must be (3,)"),
        (
            lambda b: linear(X, W, None, torch.ones(3), backend=b),
            "scale: is for weights of int8 or float8_e4m3fn, not of torch.float32",
        ),
        (lambda b: linear(X, W.to(torch.int8), None, torch.ones(4), backend=b), "scale.shape = (4,): must be (3,)"),
        (lambda b: linear(X, W, META[0], backend=b), "bias.shape = (8,): must be (3,)"),
        (lambda b: rms_norm(X, W, backend=b), "weight.shape = (3, 8): must be (8,)"),
        (lambda b: rms_norm(X, X[0].bfloat16(), backend=b), "weight.dtype = torch.bfloat16: must be torch.float32"),
        (lambda b: rms_norm(X, X[0], residual=W, backend=b), "residual.shape = (3, 8): must be (2, 8)"),
        (lambda b: swiglu(X[:, :7], backend=b), "gate_up.shape = (2, 7): must be (rows, 2 * inner)"),
        (
            lambda b: swiglu(X, activation="relu", backend=b),
            "activation = 'relu': must be 'silu', 'gelu_tanh' or 'gelu'",
        ),
        (lambda b: swiglu(X, activation=1, backend=b), "activation = 1: must be 'silu', 'gelu_tanh' or 'gelu'"),
        (lambda b: swiglu(X.half(), backend=b), "gate_up.dtype = torch.float16: must be torch.float32"),
        (lambda b: embed(X, W, backend=b), "tokens: must be (rows,) int64, got (2, 8) torch.float32"),
        (lambda b: embed(torch.tensor([0, 3]), W, backend=b), "tokens[1] = 3: must be a token in [0, 3)"),
        (lambda b: embed(torch.tensor([-1]), W, backend=b), "tokens[0] = -1: must be a token in [0, 3)"),
        (lambda b: embed(torch.tensor([0]), W[:0], backend=b), "tokens[0] = 0: must be a token in [0, 0)"),
        (lambda b: embed(torch.tensor([0]), X[0], backend=b), "weight.shape = (8,): must be (vocab, hidden)"),
        (lambda b: rms_norm(X, X[0], "e", backend=b), "epsilon = 'e': must be a number"),
        (lambda b: rms_norm(X, X[0], None, backend=b), "epsilon = None: must be a number"),
        (
            lambda b: joint_linear(X, [], backend=b),
            "matrices: must be a sequence of at least one Matrix, got list of none",
        ),
        (
            lambda b: joint_linear(X, None, backend=b),
            "matrices: must be a sequence of at least one Matrix, got NoneType",
        ),
        (
            lambda b: joint_linear(X, Matrix(W), backend=b),
            "matrices: must be a sequence of at least one Matrix, got Matrix",
        ),
        (lambda b: joint_linear(X, [Matrix(W), W], backend=b), "matrices[1]: must be a Matrix, got Tensor"),
    ],
)
def test_rows_by_themselves(call, message: str, backend: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(backend)


def test_backends_that_have_no_such_operation():
    with pytest.raises(ValueError, match=r"^backend = 'cuda': not available"):
        linear(X, W, backend="cuda")
    of_float8 = r"^backend = 'cpu': has no weights of torch.float8_e4m3fn; must be triton or reference$"
    with pytest.raises(ValueError, match=of_float8):
        linear(X, W.to(torch.float8_e4m3fn), backend="cpu")


def good() -> dict[str, torch.Tensor]:
    cache: Paged = paged([5, 9], 2, 4, 3, torch.float32, room=1)
    table = torch.tensor([[0, 1, 2, -1, 6], [3, 4, 5, 6, 9]], dtype=torch.int32)[:, :4]
    return {
        "keys": cache.keys[:7].clone(),
        "values": cache.values[:7].clone(),
        "table": table,
        "lengths": cache.lengths,
    }


OPERATIONS = {"attend": attend, "rope_append": rope_append}
PAGED = [
    ({"keys": torch.zeros(7, 2, 3)}, "keys.shape = (7, 2, 3): must be (pages, kv_heads, page_slots, head_dim)"),
    ({"keys": torch.zeros(7, 2, 0, 4)}, "keys.shape = (7, 2, 0, 4): must be (pages, kv_heads, page_slots, head_dim)"),
    ({"values": torch.zeros(6, 2, 3, 4)}, "values.shape = (6, 2, 3, 4): must be (7, 2, 3, 4), as for keys"),
    ({"values": torch.zeros(7, 2, 3, 4).half()}, "values.dtype = torch.float16: must be torch.float32, as for keys"),
    ({"keys": torch.zeros(7, 2, 3, 8)[..., ::2]}, "keys: must be dense, as .contiguous() makes it"),
    ({"table": torch.zeros(2, 4)}, "table.dtype = torch.float32: must be torch.int32"),
    ({"table": torch.zeros(4, 2, dtype=torch.int32).t()}, "table.stride(1) = 2: must be 1"),
    ({"table": torch.zeros(3, 4, dtype=torch.int32)}, "table.shape = (3, 4): must be (2, pages of the longest row)"),
    ({"lengths": torch.tensor([5])}, "lengths.shape = (1,): must be (2,)"),
    ({"lengths": torch.tensor([5, 9], dtype=torch.int32)}, "lengths.dtype = torch.int32: must be torch.int64"),
    ({"table": torch.full((2, 4), 7, dtype=torch.int32)}, "table[0, 0] = 7: must be a page in [0, 7)"),
    (
        {"table": torch.tensor([[0] * 4, [0, 1, 2, -1]], dtype=torch.int32)},
        "table[1, 3] = -1: must be a page in [0, 7)",
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "message"), PAGED, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_pages(operation: str, change: dict, message: str, backend: str):
    given = {**good(), **change}
    if operation == "attend" and message.startswith("table[1, 3]"):
        given["lengths"] = given["lengths"] + 1  # here the last id is there already
    assert_refused(operation, given, message, backend)


def assert_refused(operation: str, given: dict, message: str, backend: str, **options) -> None:
    before = {name: given[name].clone() for name in ("keys", "values")}
    if operation == "attend":
        start = {"queries": torch.ones(2, 4, 4)}
    else:
        start = {"qkv": torch.ones(2, 32), "cos": torch.ones(2, 4), "sin": torch.ones(2, 4)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OPERATIONS[operation](**{**start, **given, **options}, backend=backend)
    for name, old in before.items():
        assert torch.equal(given[name].nan_to_num(7.0), old.nan_to_num(7.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [-1, 12, 2**63 - 1, -(2**63)])
def test_lengths(length: int, backend: str):
    inside = ", and in one of table_width = 4 pages of page_slots = 3"
    given = {**good(), "lengths": torch.tensor([length, 9])}
    assert_refused("rope_append", given, f"lengths[0] = {length}: must be at least 0{inside}", backend)
    length = {-1: 0, 12: 13}.get(length, length)
    given["lengths"] = torch.tensor([length, 9])
    assert_refused("attend", given, f"lengths[0] = {length}: must be at least 1{inside}", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads(backend: str):
    message = "keys.shape = (7, 2, 3, 4): must end with 8, as for queries"
    assert_refused("attend", good(), message, backend, queries=torch.ones(2, 4, 8))
    message = "queries.shape = (2, 3, 4): must have a multiple of 2 heads"
    assert_refused("attend", good(), message, backend, queries=torch.ones(2, 3, 4))
    rule = "must be (rows, (heads + 4) * 4) with heads a multiple of 2"
    for width in (16, 30, 28):
        message = f"qkv.shape = (2, {width}): {rule}"
        assert_refused("rope_append", good(), message, backend, qkv=torch.ones(2, width))
    odd = {**good(), "keys": torch.ones(7, 2, 3, 5), "values": torch.ones(7, 2, 3, 5)}
    assert_refused("rope_append", odd, "keys.shape = (7, 2, 3, 5): head_dim must be even", backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cos": torch.ones(2, 2)}, "cos.shape = (2, 2): must be (2, 4)"),
        ({"sin": torch.ones(2, 4).half()}, "sin.dtype = torch.float16: must be torch.float32"),
        ({"q_norm": torch.ones(3, 4)}, "q_norm.shape = (3, 4): must be (4, 4)"),
        ({"k_norm": torch.ones(2, 4), "k_norm_bias": torch.ones(4, 2)}, "k_norm_bias.shape = (4, 2): must be (2, 4)"),
        ({"k_norm_bias": torch.ones(4)}, "k_norm = None: must not be where there is a k_norm_bias"),
    ],
    ids=str,
)
def test_rotation_and_norms(options: dict, message: str, backend: str):
    assert_refused("rope_append", good(), message, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_and_values_that_share_memory(backend: str):
    memory = torch.ones(8 * 2 * 3 * 4)
    keys, values = memory[: 7 * 24].view(7, 2, 3, 4), memory[24:].view(7, 2, 3, 4)
    for pair in ({"values": keys}, {"values": values}):
        assert_refused("rope_append", good(), "values: must not overlap keys", backend, keys=keys, **pair)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_or_pages_of_nothing(backend: str):
    message = "table.shape = (2, 0): must have a page of each row at least"
    assert_refused("attend", good(), message, backend, table=torch.zeros(2, 0, dtype=torch.int32))
    none = torch.ones(0, 2, 3, 4)
    message = "keys.shape = (0, 2, 3, 4): must have at least one page"
    assert_refused("attend", good(), message, backend, keys=none, values=none)
    assert_refused("attend", good(), "scale = 'a': must be a number", backend, scale="a")
    assert_refused("rope_append", good(), "epsilon = 'a': must be a number", backend, epsilon="a")


def test_arrays_that_are_written_must_not_overlap_others():
    """The C library; Python makes the results itself."""
    c, memory = core(), torch.ones(64)
    at = memory.data_ptr()
    for call, message in [
        (lambda: c.glu(at, 0, 1, 4, at + 16, 1), "out: must not overlap gate_up"),
        (lambda: c.rms_norm(at, 0, at + 64, 1e-5, 1, 4, 0, at + 68, 1), "out: must not overlap weight"),
        (lambda: c.rms_norm(at, 0, at + 64, 1e-5, 1, 4, 0, at + 4, 1), "out: must not overlap x"),
        (lambda: c.rms_norm(at, at + 16, at + 64, 1e-5, 1, 4, at + 20, at, 1), "sum: must not overlap residual"),
        (lambda: c.rms_norm(at, at + 16, at + 64, 1e-5, 1, 4, at + 128, at + 16, 1), "out: must not overlap residual"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()
    assert torch.equal(memory, torch.ones(64))
    c.rms_norm(at, at + 16, at + 64, 1e-5, 1, 4, at + 16, at + 16, 1)  # out is sum is residual
    c.rms_norm(at, at + 16, at + 64, 1e-5, 1, 4, at, at, 1)
    c.glu(at, 0, 1, 4, at + 32, 1)


def test_the_library_checks_its_arguments():
    """What Python never asks of it."""
    c = core()
    for call, message in [
        (lambda: c.rms_norm(0, 0, 0, 1e-5, 1, 4, 0, 0, 1), "x = NULL: must not be"),
        (lambda: c.rms_norm(8, 8, 8, 1e-5, 1, 4, 0, 8, 1), "sum = NULL: must not be where there is a residual"),
        (lambda: c.rms_norm(8, 0, 8, 1e-5, 1, 4, 8, 8, 1), "residual = NULL: must not be where there is a sum"),
        (lambda: c.rms_norm(8, 0, 8, 1e-5, 1, 0, 0, 8, 1), "n = 0: must be at least 1"),
        (lambda: c.glu(8, 0, -1, 4, 8, 1), "rows = -1: must be at least 0"),
        (lambda: c.glu(8, 0, 1, 4, 8, -1), "threads = -1: must be at least 0"),
        (lambda: c.glu(8, 3, 1, 4, 8, 1), "activation = 3: must be a fastdecode_activation, 0 to 2"),
        (lambda: c.embed(8, 1, 8, 8, 0, 0, 0, 0, 4, 4, 8, 1), "how.type = 8: must be a fastdecode_weight_type, 0 to 7"),
        (lambda: c.embed(8, 1, 0, 0, 0, 0, 0, 0, 4, 4, 8, 1), "weight = NULL: must not be"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
    names = "rows heads kv_heads head_dim dtype threads scale queries keys values pages page_slots table table_stride"
    names += " table_width lengths out"
    fine = dict(zip(names.split(), (0, 4, 2, 4, 0, 1, 1.0, 0, 0, 0, 3, 4, 0, 2, 2, 0, 0), strict=True))
    c.attend((*fine.values(),))
    for change, message in [
        ({"kv_heads": 3}, "kv_heads = 3: must divide heads = 4"),
        ({"head_dim": 0}, "head_dim = 0: must be at least 1"),
        ({"page_slots": 0}, "page_slots = 0: must be at least 1"),
        ({"table_stride": 1}, "table_stride = 1: must be at least 2"),
        ({"rows": 1}, "queries = NULL: must not be"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            c.attend((*{**fine, **change}.values(),))
