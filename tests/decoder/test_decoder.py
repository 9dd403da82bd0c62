"""Prefill and steps of ragged rows against the model's own forward pass over each whole sequence."""

import random

import pytest
import torch
from models_for_tests import BOS, text_ids, tiny_model, whole_logits

from fastdecode.decoder import Decoder
from fastdecode.decoder import decoder as decoder_module
from fastdecode.decoder.decoder import torch_multiplies_slowly
from fastdecode.ops.backends import core


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


SETTINGS = [
    {"swin_norm": swin, "kv_heads": kv_heads, "bias": bias, "tie_word_embeddings": tied}
    for swin in (False, True)
    for kv_heads, bias, tied in ((4, False, False), (2, True, False), (1, False, True))
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logits_of_ragged_rows(settings: dict, seed: int, fused: bool):
    model = tiny_model(seed, layers=3, **settings)
    decoder = Decoder(model)
    if not fused:
        decoder._fast_step = None
    assert decoder.uses_cpu_step == fused
    rng = random.Random(seed)
    lengths = [1, 2, 17, 5, 33]
    rows = [text_ids(model, seed * 100 + i, n) for i, n in enumerate(lengths)]
    cache = decoder.new_cache()
    decoder.prefill(cache, [r[:-1] for r in rows[:3]])
    for step in range(12):
        if step == 3:  # more rows join
            decoder.prefill(cache, [r[:-1] for r in rows[3:]])
        if step == 8:  # and some leave
            for leaving in (1, 0):
                assert cache.remove(leaving) == len(rows) - 1
                rows[leaving] = rows[-1]
                rows.pop()
        live = rows if step >= 3 else rows[:3]
        logits = decoder.logits(decoder.step(cache, torch.tensor([r[-1] for r in live])))
        assert logits.shape == (len(live), model.config.vocab_size)
        for got, row in zip(logits, live, strict=True):
            assert relative_error(got, whole_logits(model, row)[-1]) < 1e-5
            row.append(rng.randrange(model.config.vocab_size))


def test_a_row_alone_needs_no_mask():
    model = tiny_model(1)
    decoder = Decoder(model)
    ids = text_ids(model, 0, 9)
    cache = decoder.new_cache()
    decoder.prefill(cache, [[]])
    for i in range(9):
        logits = decoder.logits(decoder.step(cache, torch.tensor([ids[i]])))
        assert relative_error(logits[0], whole_logits(model, ids[: i + 1])[-1]) < 1e-5


def test_prefill_of_nothing():
    decoder = Decoder(tiny_model(1))
    cache = decoder.new_cache()
    assert decoder.prefill(cache, []) == slice(0, 0)
    assert decoder.prefill(cache, [[], []]) == slice(0, 2)
    assert cache.lengths.tolist() == [0, 0]


def test_positions_beyond_the_first_table_of_rotations():
    model = tiny_model(2, context=2000, layers=1)
    decoder = Decoder(model)
    ids = text_ids(model, 0, 1200)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:500]])
    for i in range(500, 530):
        logits = decoder.logits(decoder.step(cache, torch.tensor([ids[i]])))
    assert relative_error(logits[0], whole_logits(model, ids[:530])[-1]) < 1e-5
    decoder.prefill(cache, [ids[:1199]])
    logits = decoder.logits(decoder.step(cache, torch.tensor([ids[530], ids[1199]])))
    assert relative_error(logits[1], whole_logits(model, ids)[-1]) < 1e-5


def test_the_first_position_behind_the_first_table_of_rotations():
    """Of 512: reached by a step, and in the middle of a part of a prefill in steps."""
    model = tiny_model(2, context=600, layers=1)
    ids = text_ids(model, 0, 530)
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:3]])  # which makes the table
    decoder.prefill(cache, [ids[:511]])
    for i in (511, 512):
        logits = decoder.logits(decoder.step(cache, torch.tensor([ids[i], ids[i]])))
    expected = whole_logits(model, ids)
    assert relative_error(logits[1], expected[512]) < 1e-5
    decoder = Decoder(model, deterministic=True)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1], text_ids(model, 1, 10)])
    logits = decoder.logits(decoder.step(cache, torch.tensor([ids[-1], ids[0]])))
    assert relative_error(logits[0], expected[-1]) < 1e-5


@pytest.mark.parametrize("rows", [1, 3])
def test_span_computes_its_rows_of_the_head_only(rows: int):
    model = tiny_model(3)
    decoder = Decoder(model)
    hidden = torch.randn(rows, 32)
    whole = decoder.logits(hidden).clone()
    low, high = 4, 28
    decoder = Decoder(model)  # with nothing computed before
    part = decoder.logits(hidden, [(low, high)])
    assert relative_error(part[:, low:high], whole[:, low:high]) < 1e-6
    assert part[:, :low].isnan().all()  # never written: torch.empty is poisoned here
    assert part[:, high:].isnan().all()
    fewer = decoder.logits(hidden[:1], [(low, high)])
    assert fewer.shape == (1, model.config.vocab_size)


def test_a_head_that_is_not_plain_is_called_whole():
    model = tiny_model(3)
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size, bias=True)
    decoder = Decoder(model)
    hidden = torch.randn(2, 32)
    assert torch.equal(decoder.logits(hidden, [(4, 28)]), model.lm_head(hidden))


def test_layers_are_called_so_that_adapters_work():
    model = tiny_model(4)
    plain = model.model.layers[1].self_attn.v_proj
    model.model.layers[1].self_attn.v_proj = torch.nn.Sequential(plain, torch.nn.Linear(32, 32))
    decoder = Decoder(model)
    ids = text_ids(model, 0, 6)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    logits = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))
    assert relative_error(logits[0], whole_logits(model, ids)[-1]) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, fused: bool):
    model = tiny_model(6).to(dtype)
    decoder = Decoder(model)
    if not fused:
        decoder._fast_step = None
    rows = [text_ids(model, i, n) for i, n in enumerate((4, 11))]
    cache = decoder.new_cache()
    decoder.prefill(cache, [r[:-1] for r in rows])
    hidden = decoder.step(cache, torch.tensor([r[-1] for r in rows]))
    assert hidden.dtype == (torch.float32 if fused else dtype)
    assert cache.keys[0].dtype == dtype
    for got, row in zip(decoder.logits(hidden).float(), rows, strict=True):
        assert relative_error(got, whole_logits(model, row)[-1]) < 0.05


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_scaled_rotations(kind: str):
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model(7, rope_parameters=parameters)
    decoder = Decoder(model)
    ids = text_ids(model, 0, 20)
    cache = decoder.new_cache()
    decoder.prefill(cache, [ids[:-1]])
    logits = decoder.logits(decoder.step(cache, torch.tensor(ids[-1:])))
    assert relative_error(logits[0], whole_logits(model, ids)[-1]) < 1e-5


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("way", ["chunks of 8", "steps"])
def test_prefill_in_parts_of_rows_that_share_beginnings(settings: dict, way: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(8, layers=3, **settings)
    decoder = Decoder(model, deterministic=way == "steps")
    monkeypatch.setattr("fastdecode.decoder.decoder.PREFILL_IDS", 8)
    monkeypatch.setattr("fastdecode.decoder.decoder.PREFILL_STEP_IDS", 7)
    first, other = text_ids(model, 0, 50), text_ids(model, 1, 23)
    rows = [first, first[:20] + other, first[:33], first[:50], other, [], first[:1]]
    cache = decoder.new_cache(decoder.new_pool(page_slots=4))
    decoder.prefill(cache, rows[:1])
    decoder.prefill(cache, rows[1:])
    assert cache.pool.used < sum(-(-len(row) // 4) for row in rows)
    tokens = text_ids(model, 2, len(rows))
    logits = decoder.logits(decoder.step(cache, torch.tensor(tokens)))
    for got, row, token in zip(logits, rows, tokens, strict=True):
        assert relative_error(got, whole_logits(model, [*row, token])[-1]) < 1e-5


@pytest.mark.parametrize("swin", [False, True])
def test_bfloat16_is_no_further_from_float64_than_the_model_itself(swin: bool):
    def error(got: torch.Tensor, expected: torch.Tensor) -> float:
        return float((got.double() - expected).square().mean().sqrt())

    ours, theirs = [], []
    for seed in range(4):
        sizes = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4}
        model = tiny_model(seed, layers=6, sizes=sizes, swin_norm=swin, draws=False).to(torch.bfloat16)
        rows = [text_ids(model, 10 * seed + i, n) for i, n in enumerate((6, 21, 40))]
        decoder = Decoder(model)
        assert decoder.uses_cpu_step
        cache = decoder.new_cache()
        decoder.prefill(cache, [row[:-4] for row in rows])
        for i in range(4):
            logits = decoder.logits(decoder.step(cache, torch.tensor([row[i - 4] for row in rows])))
        model.requires_grad_(False)
        stated = [model.lm_head(model.model(torch.tensor([row])).last_hidden_state)[0, -1] for row in rows]
        model.double()
        exact = [model.lm_head(model.model(torch.tensor([row])).last_hidden_state)[0, -1] for row in rows]
        ours += [error(a, b) for a, b in zip(logits, exact, strict=True)]
        theirs += [error(a, b) for a, b in zip(stated, exact, strict=True)]
    assert sum(ours) <= sum(theirs)


def test_several_spans():
    model = tiny_model(3)
    hidden = torch.randn(2, 32)
    whole = Decoder(model).logits(hidden).clone()
    part = Decoder(model).logits(hidden, [(2, 9), (20, 30)])
    inside = torch.tensor([2 <= i < 9 or 20 <= i < 30 for i in range(part.shape[1])])
    assert relative_error(part[:, inside], whole[:, inside]) < 1e-6
    assert part[:, ~inside].isnan().all()  # never written


@pytest.mark.parametrize("slow", [False, True])
def test_prompts_go_through_the_step_where_torch_multiplies_slowly(slow: bool, monkeypatch):
    """The same logits, but for rounding, whichever computes a prompt of bfloat16."""
    model = tiny_model(3).bfloat16()
    monkeypatch.setattr(decoder_module, "torch_multiplies_slowly", lambda dtype: slow and dtype == torch.bfloat16)
    decoder, calls = Decoder(model), []
    assert decoder.prefills_in_steps == slow
    for name in ("_prefill_in_steps", "_prefill_in_chunks"):
        whole = getattr(decoder, name)
        monkeypatch.setattr(decoder, name, lambda *given, name=name, whole=whole: calls.append(name) or whole(*given))
    prompt = [BOS, *text_ids(model, 0, 30)]
    cache = decoder.new_cache()
    decoder.prefill(cache, [prompt])
    logits = decoder.logits(decoder.step(cache, torch.tensor([9]))).double()
    assert calls == ["_prefill_in_steps" if slow else "_prefill_in_chunks"]
    exact = whole_logits(model.float(), [*prompt, 9])[-1].double()
    assert (logits[0] - exact).square().mean().sqrt() < 0.02 * exact.abs().max()
    assert not Decoder(model).prefills_in_steps  # float32


def test_where_torch_multiplies_slowly():
    for dtype in (torch.bfloat16, torch.float16):
        assert torch_multiplies_slowly(dtype) == (core().cpu_isa() != "avx512bf16")
    assert not torch_multiplies_slowly(torch.float32)
