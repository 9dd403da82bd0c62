"""Operations take numpy arrays and DLPack objects on the CPU where they take tensors, uncopied, and return tensors."""

import warnings

import numpy as np
import pytest
import torch
from cases import assert_same_bits, random_arguments
from step_cases import paged, rotation
from test_advance import assert_same_state, copy, random_state, random_tables

from fastdecode import ops
from fastdecode.ops.arrays import as_tensor


class Foreign:
    """An array of another library: DLPack is all that it has."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] = (1, 0)) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


def read_only(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy()
    array.flags.writeable = False
    return array


KINDS = {"numpy": torch.Tensor.numpy, "read-only numpy": read_only, "DLPack": Foreign}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    """What makes an array of a tensor; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield request.param


def in_kind(value, kind):
    return kind(value) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("case", range(12))
def test_sample_takes_arrays(kind, case):
    arguments = random_arguments(np.random.default_rng(case), 70, torch.float32)
    expected = ops.sample(**arguments)
    assert_same_bits(ops.sample(**{name: in_kind(value, kind) for name, value in arguments.items()}), expected)


def test_grammar_and_state_take_arrays(kind):
    rng = np.random.default_rng(3)
    tables = random_tables(rng, 90)
    state = random_state(rng, tables, 4, 8)
    expected = copy(state)
    logits, streams = torch.randn(8, 90), torch.arange(8, dtype=torch.int32).view(4, 2)
    names = ("set_of", "tight_set_of", "room", "forced", "following", "class_ranges")
    given = ops.GrammarTables.from_tensors(
        ops.TokenSets.from_tensors(kind(tables.sets.ranges), kind(tables.sets.offsets)),
        *(kind(getattr(tables, name)) for name in names),
        vocab=90,
    )
    for _ in range(3):
        sampled = ops.sample_advance(logits, tables, expected, streams=streams, seed=5)
        assert_same_bits(ops.sample_advance(kind(logits), given, state, streams=kind(streams), seed=5), sampled)
        ops.advance(sampled.token, tables, expected, streams=streams)
        ops.advance(kind(sampled.token), given, state, streams=kind(streams))
    assert_same_state(state, expected)
    bits = ops.seen_bits(kind(torch.tensor([[1, 40, -1]])), 90)
    assert torch.equal(bits, ops.seen_bits(torch.tensor([[1, 40, -1]]), 90))


def test_a_decode_step_takes_arrays(kind):
    def same(got, expected):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)

    x, weight, row = torch.randn(3, 16), torch.randn(10, 16), torch.randn(16)
    same(ops.linear(kind(x), kind(weight), kind(row[:10])), ops.linear(x, weight, row[:10]))
    pair = [ops.Matrix(kind(weight), None), ops.Matrix(kind(weight), kind(row[:10]))]
    same(ops.joint_linear(kind(x), pair), ops.joint_linear(x, [ops.Matrix(weight), ops.Matrix(weight, row[:10])]))
    same(ops.embed(kind(torch.tensor([3, 9])), kind(weight)), weight[[3, 9]])
    same(ops.rms_norm(kind(x), kind(row), residual=kind(x)), ops.rms_norm(x, row, residual=x))
    same(ops.swiglu(kind(x)), ops.swiglu(x))
    cache = paged([5, 1, 9], 2, 8, 4, torch.float32, room=1)
    queries = torch.randn(3, 4, 8)
    same(ops.attend(kind(queries), *map(kind, cache.arguments)), ops.attend(queries, *cache.arguments))
    cos, sin = rotation(torch.tensor([5, 1, 9]), 8, torch.float32)
    qkv, norm = torch.randn(3, 64), torch.randn(8)
    other = cache.clone()
    expected = ops.rope_append(qkv, cos, sin, *cache.arguments, k_norm=norm)
    written = (other.keys.numpy(), other.values.numpy())
    got = ops.rope_append(*map(kind, (qkv, cos, sin)), *written, *map(kind, other.arguments[2:]), k_norm=kind(norm))
    same(got, expected)
    same(torch.from_numpy(written[0]), cache.keys)
    same(torch.from_numpy(written[1]), cache.values)


def test_nothing_is_copied(kind):
    tensor = torch.randn(4, 6)
    assert as_tensor("logits", kind(tensor)).data_ptr() == tensor.data_ptr()
    assert as_tensor("logits", tensor) is tensor


def test_a_view_keeps_its_array():
    array = np.arange(1 << 16, dtype=np.float32)
    array.flags.writeable = False
    tensor = as_tensor("logits", array)
    del array
    assert torch.equal(tensor, torch.arange(1 << 16).float())


def test_a_negative_stride_is_copied():
    array = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)[::-1]
    assert torch.equal(ops.sample(array, seed=2).token, ops.sample(torch.tensor(array.copy()), seed=2).token)


def test_rows_may_overlap_or_be_the_same():
    array = np.random.default_rng(0).normal(size=40).astype(np.float32)
    for rows in (np.lib.stride_tricks.sliding_window_view(array, 9), np.broadcast_to(array, (3, 40))):
        plain = torch.tensor(rows.copy())
        assert_same_bits(ops.sample(rows, noise=rows), ops.sample(plain, noise=plain, backend="reference"))


def test_a_state_of_numpy_arrays_is_written_in_place():
    arrays = {
        "mode": np.zeros(2, np.int32),
        "step": np.zeros(2, np.int64),
        "finished": np.zeros(2, np.uint8),
        "sequences": np.full((2, 3), -1),
    }
    tables = ops.GrammarTables(
        ops.TokenSets([[(0, 9)]]), set_of=[0], forced=[-1], following=[[0]], class_ranges=[], vocab=9
    )
    ops.advance(np.array([4, 7]), tables, ops.DecodeState(**arrays))
    assert arrays["step"].tolist() == [1, 1]
    assert arrays["sequences"].tolist() == [[4, -1, -1], [7, -1, -1]]
    for name, array in arrays.items():
        array.flags.writeable = False
        with pytest.raises(ValueError, match=rf"state\.{name}: is written, but this numpy array is read-only"):
            ops.DecodeState(**{**arrays, "mode": arrays["mode"].copy(), name: array})
        array.flags.writeable = True
    with pytest.raises(ValueError, match=r"state\.step: is written, so it must be a tensor or a numpy array, got Fo"):
        ops.DecodeState(**{**arrays, "step": Foreign(torch.zeros(2, dtype=torch.int64))})
    with pytest.raises(ValueError, match=r"state\.step: is written, so its strides must not be negative"):
        ops.DecodeState(**{**arrays, "step": arrays["step"][::-1]})


def test_pages_that_are_read_only_are_not_written():
    cache = paged([2], 2, 8, 4, torch.float32, room=1)
    cos, sin = rotation(torch.tensor([2]), 8, torch.float32)
    before = cache.keys.clone()
    with pytest.raises(ValueError, match="keys: is written, but this numpy array is read-only"):
        ops.rope_append(torch.randn(1, 48), cos, sin, read_only(cache.keys), *cache.arguments[1:])
    assert torch.equal(cache.keys.nan_to_num(), before.nan_to_num())


def test_parameters_may_be_numpy_scalars():
    logits = torch.randn(3, 40)
    given = {"temperature": np.float32(0.7), "top_k": np.int64(5), "seed": np.array(3), "min_p": np.array(0.1)}
    plain = {"temperature": float(np.float32(0.7)), "top_k": 5, "seed": 3, "min_p": 0.1}
    assert_same_bits(ops.sample(logits, **given), ops.sample(logits, **plain))


WRONG = [
    ({"logits": np.zeros((2, 8))}, "logits.dtype = torch.float64: must be float32, bfloat16 or float16"),
    ({"logits": np.zeros((2, 8), ">f4")}, r"logits.dtype = >f4, strides \(32, 4\) bytes: torch has no such array"),
    ({"logits": np.zeros((2, 8), object)}, "logits.dtype = object"),
    ({"logits": np.ma.masked_less(np.zeros((2, 8), np.float32), 1)}, "logits: is a masked array; must be a plain one"),
    ({"logits": np.zeros(8, np.float32)}, r"logits.shape = \(8,\): must be \(rows, vocab\)"),
    ({"logits": np.zeros((2, 16), np.float32)[:, ::2]}, r"logits.stride\(1\) = 2"),
    ({"logits": Foreign(torch.zeros(2, 8), (2, 0))}, "logits: this Foreign is on a device of DLPack's type 2"),
    ({"logits": Foreign(torch.zeros(2, 8, requires_grad=True))}, "logits: DLPack cannot give torch this Foreign"),
    ({"streams": np.zeros((2, 1))}, "streams.dtype = torch.float64: must be torch.int32"),
    ({"weights": np.zeros((2, 1))}, "weights.dtype = torch.float64: must be torch.float32"),
    ({"temperature": np.ones(2)}, "temperature.dtype = torch.float64"),
    ({"top_k": np.ones(2, np.int64)}, "top_k.dtype = torch.int64: must be torch.int32"),
    ({"top_k": np.array("many")}, "top_k.dtype = <U4"),
    ({"seed": np.ones(2, np.int32)}, "seed.dtype = torch.int32: must be torch.int64"),
    ({"penalty": np.ones(2, np.float32)}, "seen = None: penalty needs"),
    ({"seen": np.zeros((2, 8), bool)}, "seen.dtype = torch.bool: must be a bit set"),
    ({"noise": np.zeros((2, 7), np.float32)}, r"noise.shape = \(2, 7\)"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arrays_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ops.sample(**{"logits": np.zeros((2, 8), np.float32), **wrong})


SPARSE, NESTED = (
    torch.eye(2).to_sparse(),
    torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("weights", lambda: ops.sample(torch.zeros(2, 5), weights=torch.ones(2, 1).to_sparse())),
        ("streams", lambda: ops.sample(torch.zeros(2, 5), streams=SPARSE.int())),
        ("temperature", lambda: ops.sample(torch.zeros(2, 5), temperature=torch.ones(2).to_sparse())),
        ("noise", lambda: ops.sample(torch.zeros(2, 2), noise=SPARSE)),
        ("gate_up", lambda: ops.swiglu(SPARSE)),
        ("gate_up", lambda: ops.swiglu(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))),
        ("x", lambda: ops.rms_norm(SPARSE, torch.ones(2))),
        ("tokens", lambda: ops.embed(torch.ones(2).long().to_sparse(), torch.zeros(4, 5))),
        ("token", lambda: ops.advance(torch.ones(2).long().to_sparse(), None, None)),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_not_dense_are_named(name, call):
    with pytest.raises(
        ValueError, match=rf"^{name}: must be a dense tensor, got one that is (torch.sparse_coo|nested)$"
    ):
        call()


def test_a_sparse_tensor_of_a_state_is_named():
    rng = np.random.default_rng(3)
    tables = random_tables(rng, 90)
    state = random_state(rng, tables, 4, 8)
    state.limit = state.limit.to_sparse()
    with pytest.raises(ValueError, match=r"^state.limit: must be contiguous"):
        ops.advance(torch.zeros(4, dtype=torch.int64), tables, state, streams=None)
