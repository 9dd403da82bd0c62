"""The fused step against the same step made of single operations, and its kernels against what they replace."""

import copy
from collections import Counter

import pytest
import torch
from devices import DEVICE, INTERPRETED
from models_for_tests import text_ids
from step_cases import close, paged, rotation
from test_classes import text_model
from test_cpu_step import SHAPES, run, shaped_model
from test_step_ops import randn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastdecode.decoder import Decoder
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.ops import Int4Rows, Matrix, attend, last_backend, linear, quantise, rms_norm, rope_append, swiglu
from fastdecode.ops.linear.triton import read_by_products
from fastdecode.ops.pages import Pages
from fastdecode.ops.rope_append import HeadNorm
from fastdecode.triton_kernels import attend as attending
from fastdecode.triton_kernels import linear as products
from fastdecode.triton_kernels import parts as writing
from fastdecode.triton_kernels import residual as sums
from fastdecode.triton_kernels import rms_norm as norms
from fastdecode.triton_kernels.attend import Appended, launch_attend, new_counters
from fastdecode.triton_kernels.epilogue import Added, Gated, RowNorm
from fastdecode.triton_kernels.parts import launch_parts
from fastdecode.triton_kernels.residual import launch_residual
from fastdecode.triton_kernels.step_product import launch_product, new_squares, parts_for

ROWS = [[3, 5, 4, 9, 8], [7, 6, 5, 4, 3, 8, 9, 12, 11, 10] * 7, [9, 8, 3]]
MODELS = {
    "chameleon": lambda: shaped_model(1, SHAPES[1]),
    "swin": lambda: shaped_model(2, SHAPES[3]),
    "llama": lambda: text_model("llama", 2),
    "biased": lambda: text_model("qwen2", 3, head_dim=24),
    "gemma": lambda: text_model("gemma", 4, head_dim=256, hidden_size=40),
}


def decoder_of(model, fused: bool) -> Decoder:
    made = Decoder(model)
    step = TritonStep(model.model, made.swin, "triton")
    if not fused:
        step._fused_step = False
    made._take_steps_by(step)
    return made


def model_of(name: str):
    return MODELS[name]().to(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_hidden_states_as_single_operations(name: str):
    model = model_of(name)
    rows = [[i + 1, *text_ids(model, i, n)] for i, n in enumerate((4, 70, 2))] if name == "chameleon" else ROWS
    fused, single = decoder_of(model, True), decoder_of(model, False)
    found, expected = run(fused, rows, 2), run(single, rows, 2)
    assert last_backend() == "triton"
    assert fused._fast_step._fused_step
    assert single._fast_step._fused_step is False
    close(found, expected, expected.double())
    for spans in (None, [(3, 9), (20, 27)]):
        mine, its = fused.logits(found[-1], spans), single.logits(found[-1], spans)
        for lo, hi in spans or [(0, mine.shape[1])]:
            close(mine[:, lo:hi], its[:, lo:hi], its[:, lo:hi].double())


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_weights_of_bytes(kind: str):
    quantization = pytest.importorskip("torchao.quantization")
    config = {"int8": quantization.Int8WeightOnlyConfig, "float8": quantization.Float8WeightOnlyConfig}[kind]
    model = copy.deepcopy(text_model("llama", 2)).to(DEVICE)
    quantization.quantize_(model, config())
    fused, single = decoder_of(model, True), decoder_of(model, False)
    found, expected = run(fused, ROWS[:2], 1), run(single, ROWS[:2], 1)
    assert fused._fast_step._fused_step
    close(found, expected, expected.double())


def test_a_row_has_the_same_bits_alone_and_among_others():
    """One row, a few, and more than four, which are multiplied in another way."""
    decoder = decoder_of(model_of("llama"), True)
    rows = [ROWS[i % 3] for i in range(5)]
    together = run(decoder, rows, 1)
    for some in ([0], [1], [2, 0, 1]):
        assert torch.equal(run(decoder, [rows[i] for i in some], 1), together[:, some])


def test_what_the_fused_step_does_not_read_is_done_by_operations():
    model = text_model("llama", 2).to(DEVICE)
    decoder = decoder_of(model, True)
    run(decoder, ROWS[:1], 1)
    assert decoder._fast_step._fused_step is False  # float32
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.half()
    decoder = decoder_of(model, True)
    decoder._fast_step._fused(torch.zeros(1, 64, device=DEVICE))
    assert decoder._fast_step._fused_step is False  # gate and up of two dtypes
    decoder = Decoder(model_of("llama"))
    step = TritonStep(decoder.inner, decoder.swin, "reference")
    assert step._fused(torch.zeros(1, 64, device=DEVICE)) is None


class Operations(TorchDispatchMode):
    """Counts what is launched: torch's operations, except those that make or view memory, and kernels of ours."""

    FREE = (
        *("empty", "view", "_unsafe_view", "slice", "select", "unbind", "expand", "detach", "as_strided", "t", "split"),
        *("empty_like", "alias", "unsqueeze", "new_empty", "_reshape_alias", "permute", "split_with_sizes"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        for module, name in (
            *((products, "linear_parts"), (products, "linear"), (attending, "attend"), (sums, "residual")),
            *((norms, "rms_norm"), (writing, "write_parts")),
        ):
            monkeypatch.setattr(module, name, self._counting(name, getattr(module, name)))

    def _counting(self, name: str, kernel):
        operations = self

        class Counting:
            def __getitem__(self, grid):
                operations.counted[name] += 1
                return kernel[grid]

        return Counting()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name not in self.FREE and func.namespace != "fastdecode":
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "per_layer"), [("llama", 5), ("swin", 7)])
def test_launches_of_a_layer(name: str, per_layer: int, monkeypatch: pytest.MonkeyPatch):
    """Hidden and inner sizes are multiples of 256, as those of real models, so that no padding is written."""
    sizes = {"hidden": 256, "inner": 256, "heads": 2, "kv_heads": 2, "swin_norm": name == "swin"}
    counted = []
    for layers in (1, 2):
        model = shaped_model(5, {**sizes, "layers": layers}).to(DEVICE, torch.bfloat16)
        decoder = decoder_of(model, True)
        step, cache = decoder._fast_step, decoder.new_cache()
        decoder.prefill(cache, [[1, *text_ids(model, 0, 3)]])
        cache.make_room()
        x, (cos, sin) = torch.zeros(1, 256, device=DEVICE), decoder.rope(cache.lengths, cache.longest)
        with torch.inference_mode(), Operations(monkeypatch) as operations:
            step(cache, x, cos, sin)
        counted.append(operations.counted)
        monkeypatch.undo()
    first, second = (sum(c[k] for k in ("linear_parts", "attend", "residual")) for c in counted)
    assert second - first == per_layer
    if not INTERPRETED:  # the interpreter computes with torch too
        assert sum(counted[1].values()) - sum(counted[0].values()) == per_layer
    assert counted[1]["write_parts"] == counted[1]["linear"] == 0
    assert counted[1]["rms_norm"] == 1


# --- the kernels


DTYPES = [torch.bfloat16, torch.int8, torch.float8_e4m3fn, "int4"]


def matrix_for(dtype: torch.dtype | str, features: int, k: int, seed: int = 0, bias: bool = False) -> Matrix:
    if dtype == "int4":
        scale, zero = (randn(-(-k // 64), features, seed=seed + i).bfloat16().to(DEVICE) for i in (3, 4))
        data = torch.randint(-128, 128, (features, k // 2), generator=torch.Generator().manual_seed(seed)).to(
            torch.int8
        )
        given = randn(features, seed=seed + 2).to(DEVICE) if bias else None
        return Matrix(Int4Rows(data.to(DEVICE), scale, zero, 64), given)
    if dtype == torch.bfloat16:
        weight, scale = randn(features, k, seed=seed).to(dtype), None
    else:
        codes = torch.randint(0, 256, (features, k), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        codes[(codes & 0x7F) == 0x7F] = 3  # else NaN of float8
        weight, scale = codes.view(dtype), randn(features, seed=seed + 1)
    given = (weight, randn(features, seed=seed + 2) if bias else None, scale)
    return Matrix(*(None if part is None else part.to(DEVICE) for part in given))


def parts_sum(parts, rows: int, k: int) -> torch.Tensor:
    """The rows that parts stand for."""
    whole = parts.data.double().sum(1).flatten(0, 1)[:rows]
    if parts.pairs:
        whole = whole.unflatten(-1, (2 * parts.pairs, -1)).transpose(-1, -2).flatten(-2)
    assert not whole[:, k:].any(), "the padding is not 0"
    return whole[:, :k].float()


def same(parts, wanted: torch.Tensor) -> bool:
    """Whether they stand for these rows, as exactly as three bfloat16 numbers can where the last is not subnormal."""
    return torch.allclose(parts_sum(parts, *wanted.shape), wanted, rtol=2.0**-24, atol=2.0**-126)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "k", "features"), [(1, 301, 70), (3, 512, 128), (5, 64, 40)])
def test_a_product_with_a_norm_before_and_a_sum_after(rows: int, k: int, features: int, dtype: torch.dtype):
    x, weight, residual, following = randn(rows, k), randn(k, seed=1), randn(rows, features, seed=2), randn(features)
    k -= k % (32 if dtype == "int4" else 2) if dtype != torch.bfloat16 else 0
    features -= features % 32 if dtype == "int4" else 0
    residual, following = residual[:, :features].contiguous(), following[:features]
    x, weight = x[:, :k].contiguous().to(DEVICE), weight[:k].contiguous().to(DEVICE)
    residual, following = residual.to(DEVICE), following.to(DEVICE)
    matrix, after = matrix_for(dtype, features, k, 3, bias=True), matrix_for(dtype, 8, features, 4)
    parts, written = parts_for(rows, read_by_products([matrix])), parts_for(rows, read_by_products([after]))
    total, squares = launch_residual(x, following=weight, parts=parts)
    assert torch.equal(total, x)
    assert same(parts, x * weight)
    out, its_squares = (
        torch.full((rows, features), torch.nan, device=DEVICE),
        new_squares(rows, read_by_products([matrix])[0], x.device),
    )
    its_squares.fill_(torch.nan)
    added = Added(residual, its_squares, following, written)
    launch_product(parts, rows, read_by_products([matrix]), out, RowNorm(squares, 1e-3), added)
    wanted = linear(rms_norm(x, weight, 1e-3, backend="reference"), *matrix, backend="reference") + residual
    normed = x.double() * weight / (x.double().square().mean(1, keepdim=True) + 1e-3).sqrt()
    exact = linear_exact(normed, matrix) + residual
    close(out, wanted, exact)
    close(its_squares.sum(1), wanted.square().sum(1), out.double().square().sum(1))
    assert same(written, out * following)


def linear_exact(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    weight = matrix.weight.values() if isinstance(matrix.weight, Int4Rows) else matrix.weight
    product = x.double() @ weight.double().T
    product = product if matrix.scale is None else product * matrix.scale
    return product if matrix.bias is None else product + matrix.bias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize(("rows", "inner"), [(2, 88), (6, 300)])
def test_gate_and_up(rows: int, inner: int, activation: int, dtype: torch.dtype):
    inner -= inner % 32 if dtype == "int4" else 0
    x = randn(rows, 64).to(DEVICE)
    gate, up = matrix_for(dtype, inner, 64, 1, bias=True), matrix_for(dtype, inner, 64, 2, bias=True)
    after = matrix_for(dtype, 8, inner)
    parts, written = parts_for(rows, read_by_products([gate, up])), parts_for(rows, read_by_products([after]))
    launch_residual(x, parts=parts)
    launch_product(parts, rows, read_by_products([gate, up]), None, None, Gated(activation, written))
    both = torch.cat([linear(x, *matrix, backend="triton") for matrix in (gate, up)], 1)
    name = ("silu", "gelu_tanh", "gelu")[activation]
    # The last bits of a gate may differ: numpy sums tiles of other shapes. Far below 0 an activation magnifies them.
    found, wanted = parts_sum(written, rows, inner), swiglu(both, activation=name, backend="triton")
    assert torch.allclose(found, wanted, rtol=2.0**-20, atol=2.0**-20 * float(wanted.abs().max()))


@pytest.mark.parametrize("followed", [False, True])
def test_a_sum_with_a_norm_of_the_product(followed: bool):
    x, product, weight = (randn(3, 1300, seed=seed).to(DEVICE) for seed in range(3))
    following, matrix = randn(1300, seed=4).to(DEVICE), matrix_for(torch.bfloat16, 8, 1300)
    pieces = torch.stack([part.square().sum(1) for part in product.split(100, 1)], 1)
    parts = parts_for(3, [matrix])
    given = (product, pieces, weight[0].contiguous(), 1e-4)
    total, squares = launch_residual(x, given, following if followed else None, parts)
    normed = rms_norm(product, weight[0].contiguous(), 1e-4, backend="reference")
    exact = x + product.double() * weight[0] / (product.double().square().mean(1, keepdim=True) + 1e-4).sqrt()
    close(total, x + normed, exact)
    value = total * following if followed else total
    assert same(parts, value)
    if followed:
        close(squares.sum(1), total.square().sum(1), total.double().square().sum(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["none", "rms", "layer"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (6, 2, 20), (8, 1, 256)])
def test_attention_that_appends(heads: int, kv_heads: int, head_dim: int, kind: str, dtype: torch.dtype):
    """Lengths at the ends of pages and stretches; the result of `rope_append` and then `attend`, and its slots."""
    lengths = [0, 1, 63, 64, 95] if head_dim < 256 else [15, 16, 40]
    rows, features = len(lengths), (heads + 2 * kv_heads) * head_dim
    qkv, (cos, sin) = randn(rows, features).to(DEVICE), rotation(torch.tensor(lengths), head_dim, torch.float32)
    cos, sin = cos.to(DEVICE), sin.to(DEVICE)
    norms = {}
    for name, count in (("q_norm", heads), ("k_norm", kv_heads)) if kind != "none" else ():
        norms[name] = randn(count, head_dim, seed=len(norms)).to(DEVICE)
        if kind == "layer":
            norms[f"{name}_bias"] = randn(count, head_dim, seed=len(norms) + 5).to(DEVICE)
    caches = [paged(lengths, kv_heads, head_dim, 32, dtype, room=1) for _ in range(2)]
    (keys, values, table, before), (keys2, values2, _, _) = (
        [part.to(DEVICE) for part in cache.arguments] for cache in caches
    )
    q = rope_append(qkv, cos, sin, keys, values, table, before, **norms, epsilon=1e-5, backend="triton")
    expected = attend(q, keys, values, table, before + 1, 0.2, backend="triton")
    exact = attend(q, keys, values, table, before + 1, 0.2, backend="reference")
    q_norm, k_norm = (HeadNorm(norms.get(name), norms.get(f"{name}_bias")) for name in ("q_norm", "k_norm"))
    appended, arrived = Appended(cos, sin, q_norm, k_norm, 1e-5), new_counters(rows, kv_heads, torch.device(DEVICE))
    found = launch_attend(qkv, Pages(keys2, values2, table, before), 0.2, appended=appended, arrived=arrived)
    close(found, expected, exact.double())
    assert not arrived.any()
    if INTERPRETED or kind == "none":
        assert torch.equal(keys2.nan_to_num(7.0), keys.nan_to_num(7.0))
    else:  # a GPU sums a head in an order of the kernel's
        assert torch.allclose(keys2.float().nan_to_num(7.0), keys.float().nan_to_num(7.0), rtol=2.0**-7, atol=1e-5)
    assert torch.equal(values2.nan_to_num(7.0), values.nan_to_num(7.0))
    again = launch_attend(qkv, Pages(keys2, values2, table, before), 0.2, appended=appended, arrived=arrived)
    assert torch.equal(again, found)
    matrix = matrix_for(torch.bfloat16, 8, heads * head_dim)
    parts = parts_for(rows, read_by_products([matrix]))
    launch_attend(qkv, Pages(keys2, values2, table, before), 0.2, appended=appended, parts=parts, arrived=arrived)
    assert same(parts, found.flatten(1))


@pytest.mark.parametrize(
    ("length", "page"), [(5, 99), (5, -1), (95, None), (-1, None), (2**63 - 1, None), (-(2**63), 0)]
)
def test_a_bad_row_is_nan_and_stores_nothing(length: int, page: int | None):
    cache = paged([5, 40], 2, 8, 32, torch.bfloat16, room=1)
    keys, values, table, lengths = (part.clone().to(DEVICE) for part in cache.arguments)
    table = table.contiguous()
    lengths[0] = length
    if page is not None and page:
        table[0, 0] = page
    table[0, 1:] = -7
    qkv, (cos, sin) = randn(2, 6 * 8).to(DEVICE), rotation(torch.tensor([5, 40]), 8, torch.float32)
    no_norm = HeadNorm(None, None)
    appended = Appended(cos.to(DEVICE), sin.to(DEVICE), no_norm, no_norm, 1e-5)
    arrived = new_counters(2, 2, torch.device(DEVICE))
    kept = keys.clone()
    found = launch_attend(qkv, Pages(keys, values, table, lengths), 0.5, appended=appended, arrived=arrived)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    assert not arrived.any()
    changed = (keys.nan_to_num(7.0) != kept.nan_to_num(7.0)).any(-1).any(1).nonzero()
    assert changed.tolist() == [[int(table[1, 1]), 8]]


@pytest.mark.skipif(not INTERPRETED, reason="a GPU chooses the order of programs")
@pytest.mark.parametrize("seed", range(4))
def test_programs_may_end_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch):
    """What a program shares with others it stores before it counts itself, so an order of programs is all there is."""
    cache = paged([300, 64, 1], 2, 16, 32, torch.bfloat16)
    queries, pages = randn(3, 4, 16), Pages(*cache.arguments)
    in_order = launch_attend(queries, pages, 0.25)
    interpreter = pytest.importorskip("triton.runtime.interpreter").interpreter_builder
    place = type(interpreter).set_grid_idx
    generator = torch.Generator().manual_seed(seed)
    orders: dict[int, list[int]] = {}

    def shuffled(self, x: int, y: int, z: int) -> None:
        count = self.grid_dim[0]
        order = orders.setdefault(count, torch.randperm(count, generator=generator).tolist())
        place(self, order[x], y, z)

    monkeypatch.setattr(type(interpreter), "set_grid_idx", shuffled)
    arrived = new_counters(3, 2, torch.device("cpu"))
    assert torch.equal(launch_attend(queries, pages, 0.25, arrived=arrived), in_order)
    assert orders
    assert not arrived.any()
    # A counter that is not 0 at first: the wrong program joins, or none does.
    arrived[0] = 1
    assert not torch.equal(launch_attend(queries, pages, 0.25, arrived=arrived)[0], in_order[0])


def test_what_products_do_not_read():
    whole, half, byte = (Matrix(torch.zeros(3, 8, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.int8))
    small = [Matrix(quantise(randn(32, 64), type)) for type in ("int8x16", "int4", "q8_0")]
    small.append(Matrix(small[0].weight.data, None, small[0].weight.scale))
    for matrices in ([whole], [half, byte], [half, whole], [half] * 4, *([matrix] for matrix in small)):
        assert read_by_products(matrices) is None
    (read,) = read_by_products([Matrix(quantise(randn(32, 64)))])
    assert read.weight.dtype == torch.int8
    assert read.scale.shape == (32,)
    assert parts_for(2, [read]).pairs
    assert len(read_by_products([half] * 3)) == 3


def test_a_product_into_a_slice_of_wider_rows():
    x, matrix = randn(2, 64).to(DEVICE), matrix_for(torch.bfloat16, 20, 64)
    wide = torch.full((2, 50), 7.0, device=DEVICE)
    launch_product(launch_parts(x, False), 2, [matrix], wide[:, 10:30])
    assert torch.equal(wide[:, 10:30], linear(x, *matrix, backend="triton"))
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 30:] == 7).all()
