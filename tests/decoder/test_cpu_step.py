"""The C++ step against the same step in PyTorch operations, and the models that cannot use it."""

import gc
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from isas import DECODE_ISAS, assert_runs_with, each, run_with
from models_for_tests import text_ids, tiny_model, whole_logits
from torch import nn

from fastdecode.decoder import Decoder
from fastdecode.decoder.support import READ, unsupported_reason
from fastdecode.ops.backends import core

SHAPES = [
    {"hidden": 32, "inner": 48, "heads": 4, "kv_heads": 4},
    {"hidden": 40, "inner": 30, "heads": 2, "kv_heads": 1},  # heads of 20
    {"hidden": 36, "inner": 101, "heads": 6, "kv_heads": 2},  # heads of 6, and features that fill no tile
    {"hidden": 192, "inner": 512, "heads": 6, "kv_heads": 3, "swin_norm": True, "bias": True},
    {"hidden": 256, "inner": 64, "heads": 2, "kv_heads": 2, "bias": True},  # heads of 128
]


def shaped_model(seed: int, shape: dict):
    given = dict(shape)
    sizes = {"hidden_size": given.pop("hidden"), "intermediate_size": given.pop("inner")}
    sizes["num_attention_heads"] = given.pop("heads")
    return tiny_model(seed, draws=False, sizes=sizes, **given)


def decoders(model) -> tuple[Decoder, Decoder]:
    """One with the C++ step, one without."""
    with_it, without = Decoder(model), Decoder(model)
    without._fast_step = None
    assert with_it.uses_cpu_step
    assert not without.uses_cpu_step
    return with_it, without


def run(decoder: Decoder, rows: list[list[int]], steps: int) -> torch.Tensor:
    """Hidden states (steps, rows, hidden) after feeding every row's last ``steps`` ids one by one."""
    cache = decoder.new_cache()
    for row in rows:  # one by one, so that prefill computes the same in any company
        decoder.prefill(cache, [row[:-steps]])
    found = [
        decoder.step(cache, torch.tensor([row[i - steps] for row in rows], device=decoder.device)).clone()
        for i in range(steps)
    ]
    return torch.stack(found)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [[9], [5, 70, 6, 20, 33], [8] * 13], ids=len)
def test_equal_to_pytorch(shape: dict, lengths: list[int]):
    model = shaped_model(1, shape)
    rows = [text_ids(model, i, n) for i, n in enumerate(lengths)]
    fast, plain = decoders(model)
    got, expected = run(fast, rows, 5), run(plain, rows, 5)
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
    head = [d.logits(got[-1]).clone() for d in (fast, plain)]
    assert (head[0] - head[1]).abs().max() <= 1e-5 * head[1].abs().max()


def test_no_worse_than_pytorch_against_float64():
    model = shaped_model(2, {"hidden": 192, "inner": 512, "heads": 6, "kv_heads": 6, "layers": 6})
    rows = [text_ids(model, i, 20) for i in range(4)]
    fast, plain = (run(d, rows, 8) for d in decoders(model))
    exact = run(Decoder(model.double()), rows, 8)

    def error(states: torch.Tensor) -> float:
        return float((states - exact).square().mean().sqrt())

    assert error(fast) <= 1.5 * error(plain)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 9, 13, 17])  # one to five passes, of every number of rows
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(shape: dict, count: int):
    model = shaped_model(3, shape)
    lengths = (7, 30, 12, 12, 9, 41, 7, 8, 9, 10, 15, 33, 16, 7, 8, 14, 9)[:count]
    rows = [[i + 1, *text_ids(model, i, n)] for i, n in enumerate(lengths)]  # whose beginnings differ
    decoder = Decoder(model)
    together = run(decoder, rows, 4)
    heads = decoder.logits(together[-1]).clone()
    for i, row in enumerate(rows):
        alone = run(decoder, [row], 4)
        assert torch.equal(alone[:, 0], together[:, i])
        assert torch.equal(decoder.logits(alone[-1])[0], heads[i])


@torch.inference_mode()
def test_the_number_of_threads_changes_no_bit():
    model = shaped_model(4, {"hidden": 192, "inner": 512, "heads": 6, "kv_heads": 6})
    rows = [text_ids(model, i, 40 + i) for i in range(24)]
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [row[:-20] for row in rows])
    lengths, before, found = [len(row) - 20 for row in rows], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            for row, length in enumerate(lengths):
                cache.truncate(row, length)
            steps = [torch.tensor([row[i - 20] for row in rows]) for i in range(20)]
            found.append(torch.stack([decoder.step(cache, ids).clone() for ids in steps]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nothing_is_written_beside_the_new_ids():
    model = shaped_model(5, SHAPES[0])
    decoder = Decoder(model)
    rows = [text_ids(model, i, n) for i, n in enumerate((3, 9))]
    cache = decoder.new_cache()
    decoder.prefill(cache, rows)
    before = [t.clone() for t in (*cache.keys, *cache.values)]
    decoder.step(cache, torch.tensor([4, 5]))
    for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
        changed = ((old != new) & ~(old.isnan() & new.isnan())).any(-1).any(1)  # (pages, slots)
        assert changed.nonzero().tolist() == sorted([[cache.pages(0)[0], 3], [cache.pages(1)[0], 9]])


@pytest.mark.parametrize("isa", each(DECODE_ISAS))
def test_every_instruction_set(isa: str):
    assert_runs_with(
        isa,
        "import test_cpu_step as t\n"
        "for shape in t.SHAPES:\n"
        "    for lengths in ([9], [5, 70, 6, 20, 33], [8] * 13): t.test_equal_to_pytorch(shape, lengths)\n"
        "    for count in (2, 3, 4, 5, 9): t.test_a_row_has_the_same_bits_alone_and_among_others(shape, count)\n",
    )


def test_an_instruction_set_that_is_not_to_be_had():
    """The environment is read once: each name in a child of its own, of one process that has imported everything."""
    done = run_with(
        "none",
        "import os, torch\n"
        "from models_for_tests import tiny_model\n"
        "import fastdecode\n"
        "model = tiny_model(0)\n"
        "for name in ('avx9', 'AVX2'):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.environ['FASTDECODE_CPU_ISA'] = name\n"
        "        try: fastdecode.generate(model, torch.tensor([[5, 6]]), max_new_tokens=3)\n"
        "        except ValueError as error: print(error, flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n",
    )
    assert len(done.stdout.splitlines()) == 2, done.stderr
    for name, line in zip(("avx9", "AVX2"), done.stdout.splitlines(), strict=True):
        has = "must be portable, avx2, avx512 or avx512bf16, and this machine has up to "
        assert line.startswith(f"FASTDECODE_CPU_ISA = {name}: {has}")


def add_one(module, inputs, output):
    return output + 1.0


def add_to_input(module, inputs):
    return (inputs[0] + 1.0,)


class Other(nn.Linear):
    pass


class Wrapped(torch.Tensor):
    """A tensor that says it is float32, dense and on the CPU, and has its numbers elsewhere, as quantised ones do."""

    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(x):
            return x.inside if isinstance(x, Wrapped) else x

        if func is torch.ops.aten.detach.default:
            return Wrapped(args[0].inside)
        return func(*map(unwrap, args), **(kwargs or {}))


def attention(model, layer=1):
    return model.model.layers[layer].self_attn


def mlp(model, layer=1):
    return model.model.layers[layer].mlp


def subclass(model):
    old = attention(model).v_proj
    attention(model).v_proj = new = Other(old.in_features, old.out_features, bias=False)
    new.weight = old.weight


def own_forward(model):
    linear = mlp(model).up_proj
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 2


def column_major(model):
    weight = mlp(model).up_proj.weight
    weight.data = weight.data.t().contiguous().t()


def not_a_parameter(model):
    linear = mlp(model).up_proj
    weight = linear.weight.detach().t().contiguous().t()
    del linear.weight
    linear.weight = weight


def wrapped(model):
    linear = mlp(model).gate_proj
    linear.weight = nn.Parameter(Wrapped(linear.weight.detach()), requires_grad=False)


def pruned(model):
    m = mlp(model)
    for name in ("gate_proj", "up_proj"):
        linear = getattr(m, name)
        linear.weight = nn.Parameter(linear.weight[:24].detach().clone())
    m.down_proj.weight = nn.Parameter(m.down_proj.weight[:, :24].detach().clone())


def another_norm(model):
    old = model.model.norm
    model.model.norm = nn.RMSNorm(32, eps=old.variance_epsilon)
    model.model.norm.weight = old.weight


def another_epsilon(model):
    model.model.layers[0].input_layernorm.variance_epsilon = 1e-2


PLAIN = "is not a plain nn.Linear, or has hooks"
NORMS = "its norms are not plain ChameleonRMSNorms with the epsilon of the last one, or have hooks"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (subclass, f"layers.1: self_attn.v_proj {PLAIN}"),
        (lambda m: attention(m, 0).q_proj.register_forward_hook(add_one), f"layers.0: self_attn.q_proj {PLAIN}"),
        (lambda m: attention(m).o_proj.register_forward_pre_hook(add_to_input), f"layers.1: self_attn.o_proj {PLAIN}"),
        (own_forward, f"layers.1: mlp.up_proj {PLAIN}"),
        (
            lambda m: attention(m).q_norm.register_forward_hook(add_one),
            "layers.1: self_attn.q_norm is not a plain ChameleonLayerNorm, or has hooks",
        ),
        (lambda m: mlp(m).register_forward_hook(add_one), "layers.1: mlp is not a plain ChameleonMLP, or has hooks"),
        (
            lambda m: setattr(mlp(m, 0), "act_fn", nn.ReLU()),
            "layers.0: mlp.act_fn is ReLU, not SiLU or GELU, or has hooks",
        ),
        (
            lambda m: setattr(mlp(m), "act_fn", nn.GELU()),
            "layers.1: mlp.act_fn is GELU, and the first layer's SiLUActivation",
        ),
        (
            lambda m: mlp(m).act_fn.register_forward_hook(add_one),
            "layers.1: mlp.act_fn is SiLUActivation, not SiLU or GELU, or has hooks",
        ),
        (another_norm, "norm is not a plain ChameleonRMSNorm, or has hooks"),
        (
            lambda m: m.model.norm.register_forward_hook(add_one),
            "norm is not a plain ChameleonRMSNorm, or has hooks",
        ),
        (lambda m: m.model.layers[1].input_layernorm.register_forward_hook(add_one), f"layers.1: {NORMS}"),
        (another_epsilon, f"layers.0: {NORMS}"),
        (lambda m: m.double(), f"norm.weight is float64 on cpu, not {READ}"),
        (
            column_major,
            f"layers.1: mlp.up_proj.weight is not dense, float32 on cpu, not {READ}",
        ),
        (
            not_a_parameter,
            f"layers.1: mlp.up_proj.weight is not dense, float32 on cpu, not {READ}",
        ),
        (wrapped, f"layers.1: mlp.gate_proj.weight is a Wrapped, not {READ}"),
        (pruned, "layers.1: mlp.gate_proj.weight is (24, 32), not (48, 32) as the first layer's"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_what_is_not_plain_takes_pytorchs_operations(change, reason: str):
    model = tiny_model(6)
    ids = text_ids(model, 0, 7)
    before = whole_logits(model, ids)[-1]
    assert unsupported_reason(model) is None
    change(model)
    assert unsupported_reason(model) == reason
    expected = whole_logits(model, ids)[-1]
    decoder = Decoder(model)
    assert not decoder.uses_cpu_step
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    got = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))[0].float()
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    if change.__name__ not in ("subclass", "<lambda>", "column_major", "not_a_parameter", "wrapped", "another_norm"):
        assert (before - expected).abs().max() > 1e-4  # the change is one


def test_matrices_of_several_dtypes():
    model = tiny_model(6)
    mlp(model).up_proj.bfloat16()
    assert unsupported_reason(model) == "layers.1: mlp.up_proj.weight is bfloat16 on cpu, not float32 as the embeddings"


@pytest.mark.parametrize("change", ["hook", "expanded", "kept"])
def test_an_embedding_that_is_not_plain(change: str):
    model = tiny_model(7)
    embed = model.model.embed_tokens
    table = embed.weight.detach().clone()

    class Kept(nn.Module):
        """Gives out the same tensor every time."""

        weight = embed.weight
        out = table[5:6]

        def forward(self, ids):
            return self.out if ids.shape == (1,) else nn.functional.embedding(ids, table)

    if change == "hook":
        embed.register_forward_hook(lambda module, inputs, output: output.mT.contiguous().mT)
    elif change == "expanded":
        embed.register_forward_hook(lambda module, inputs, output: output[..., :1].expand(output.shape))
    else:
        model.model.embed_tokens = Kept()
    kept = Kept.out.clone()
    ids = [5, 9, 5]
    expected = whole_logits(model, ids)[-1]
    decoder = Decoder(model)
    assert decoder.uses_cpu_step
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    got = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))[0]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(Kept.out, kept)


def test_weights_are_read_where_they_lie():
    model = tiny_model(8)
    ids = text_ids(model, 0, 5)
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(2.0)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    got = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))[0]
    expected = whole_logits(model, ids)[-1]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_model_that_is_moved_in_between_is_still_read_safely():
    model = tiny_model(9)
    ids = text_ids(model, 0, 6)
    expected = whole_logits(model, ids)[-1]
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    model.double()
    hidden = decoder.step(cache, torch.tensor(ids[-1:]))
    model.float()
    got = decoder.logits(hidden)[0]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_pool_that_grows_between_two_steps():
    """The addresses of keys and values, which a step remembers, are those of the larger tensors afterwards."""
    model = tiny_model(12)
    rows = [text_ids(model, i, 40) for i in range(2)]
    expected = run(Decoder(model), rows[:1], 30)
    decoder = Decoder(model)
    pool = decoder.new_pool(page_slots=4)
    cache, other = decoder.new_cache(pool), decoder.new_cache(pool)
    decoder.prefill(cache, [rows[0][:10]])
    places = set()
    for i, token in enumerate(rows[0][10:]):
        got = decoder.step(cache, torch.tensor([token]))
        assert torch.equal(got[0], expected[i, 0])
        places.add(pool.keys[-1].data_ptr())
        if i % 7 == 6:
            decoder.prefill(other, [rows[1]])
    assert len(places) > 3
    assert len(pool.captured) == 1


@torch.inference_mode()
def test_tokens_of_other_kinds():
    model = tiny_model(14)
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [[5, 6, 7], [8, 9, 10]])
    expected = decoder.embed(torch.tensor([11, 12]))
    for tokens in (torch.tensor([11, 12]), torch.tensor([11, 12], dtype=torch.int32), torch.tensor([11, 0, 12])[::2]):
        assert torch.equal(decoder._embedded(tokens), expected)
    with pytest.raises(ValueError, match="embeddings are"):
        decoder.step(cache, torch.tensor([[11, 12], [13, 14]]))


def test_only_the_head_that_is_used_is_kept():
    model = tiny_model(15)
    decoder, hidden = Decoder(model), torch.randn(2, 32)
    for last in range(3, 8):
        model.lm_head.weight.data = torch.randn_like(model.lm_head.weight)
        found = decoder.logits(hidden, [(1, last), (8, 9)])
        expected = model.lm_head(hidden)
        assert (found - expected)[:, 1:last].abs().max() < 1e-4
        assert len(decoder._parts_of_head) == 2


def test_a_pool_does_not_keep_a_decoder():
    model = tiny_model(13)
    pool = Decoder(model).new_pool()
    for _ in range(6):
        decoder = Decoder(model)
        cache = decoder.new_cache(pool)
        decoder.prefill(cache, [[5, 6, 7]])
        decoder.step(cache, torch.tensor([8]))
        gone, decoder, cache = weakref.ref(decoder._fast_step), None, None
        gc.collect()
        assert gone() is None
    assert 1 <= len(pool.captured) <= 4


def test_two_threads_in_steps_of_their_own():
    model = shaped_model(10, {"hidden": 192, "inner": 512, "heads": 6, "kv_heads": 6, "layers": 4})
    decoder = Decoder(model)
    rows = [text_ids(model, i, 60) for i in range(2)]
    expected = [run(decoder, [row], 50) for row in rows]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            got = list(pool.map(lambda row: run(decoder, [row], 50), rows))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_hidden_states_that_are_not_dense():
    model = tiny_model(11)
    decoder = Decoder(model)
    hidden = torch.randn(4, 32)
    for given in (hidden[::2], hidden[:1].expand(3, 32), hidden.t().contiguous().t()):
        expected = model.lm_head(given)
        assert (decoder.logits(given) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_library_checks_its_arguments():
    norm = torch.ones(4)
    good = {
        "layers": 0,
        "layer_count": 0,
        "hidden": 4,
        "inner": 4,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 2,
        "dtype": 0,
        "swin": False,
        "activation": 0,
        "epsilon": 1e-5,
        "qk_epsilon": 1e-5,
        "scale": 1.0,
        "norm": norm.data_ptr(),
        "threads": 1,
        "pages": 3,
        "page_slots": 4,
        "table": 0,
        "table_stride": 2,
        "table_width": 2,
        "chained": False,
        "stores_only": False,
        "rows": 0,
        "lengths": 0,
        "cos": 0,
        "sin": 0,
        "x": 0,
    }
    step = core().decode_step
    step((*good.values(),))  # no rows: nothing to do
    lengths, inside, table = torch.tensor([8]), torch.tensor([4]), torch.tensor([[2, 3]], dtype=torch.int32)
    row = {"rows": 1, "table": table.data_ptr(), "cos": 8, "sin": 8, "x": 8}
    for change, message in [
        ({"hidden": 0}, "hidden = 0: must be at least 1"),
        ({"rows": -1}, "rows = -1: must be at least 0"),
        ({"threads": -2}, "threads = -2: must be at least 0"),
        ({"kv_heads": 3}, "kv_heads = 3: must divide heads = 2"),
        ({"head_dim": 3}, "head_dim = 3: must be even"),
        ({"layer_count": 1}, "layers = NULL: must not be"),
        ({"norm": 0}, "norm = NULL: must not be"),
        ({"dtype": 3}, "dtype = 3: must be 0 (float32), 1 (bfloat16) or 2 (float16)"),
        ({"activation": 3}, "activation = 3: must be a fastdecode_activation, 0 to 2"),
        ({"activation": -1}, "activation = -1: must be a fastdecode_activation, 0 to 2"),
        ({"page_slots": 0}, "page_slots = 0: must be at least 1"),
        ({"table_stride": 1}, "table_stride = 1: must be at least 2"),
        ({**row, "lengths": 0}, "lengths = NULL: must not be"),
        ({**row, "table": 0}, "table = NULL: must not be"),
        (
            {**row, "lengths": lengths.data_ptr()},
            "lengths[0] = 8: must be at least 0, and in one of table_width = 2 pages of page_slots = 4",
        ),
        ({**row, "lengths": inside.data_ptr()}, "table[0, 1] = 3: must be a page in [0, 3)"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            step((*{**good, **change}.values(),))
    nulls = torch.zeros(23, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"layers\[0\]\.q = NULL: must not be"):
        step((*{**good, "layers": nulls.data_ptr(), "layer_count": 1}.values(),))
    with pytest.raises(ValueError, match="out_stride = 3"):
        core().linear(0, 0, 0, 0, 0, 0, 0, 0, 1, 4, 4, 0, 3, 1)
    with pytest.raises(ValueError, match="weight = NULL: must not be"):
        core().linear(0, 0, 0, 0, 0, 0, 0, 0, 1, 4, 4, 0, 4, 1)
