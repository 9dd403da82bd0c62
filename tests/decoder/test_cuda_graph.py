"""Captured steps, with the substitute for CUDA graphs in `traces`."""

import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from models_for_tests import drawing_model, tiny_processor
from torch.fx.experimental.proxy_tensor import make_fx
from traces import IMAGE_ONLY, INTERLEAVED, Traces, both, prompts_of, uncaptured

import fastdecode
from fastdecode import Guidance, Schedule
from fastdecode.decoder import Decoder
from fastdecode.decoder import cuda_graph as captured
from fastdecode.decoder.cuda_graph import CannotCapture, CapturedSteps, Draws, bucket
from fastdecode.engine.core import EngineCore
from fastdecode.kv.kv_cache import StreamCache
from fastdecode.kv.page_pool import PagePool
from fastdecode.models.families import vocabulary_of


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 3.0},
        {"guidance": Guidance.instruct(), "image": {"temperature": 0.8, "top_p": 0.9, "top_k": 9, "min_p": 0.01}},
        {"guidance": 2.0, "repetition_penalty": 1.4},
        {"do_sample": False, "guidance": Guidance.two_way(2.0, everywhere=True)},
        {"num_return_sequences": 2},
        {"guidance": Guidance.instruct(Schedule.linear(5.0, 2.0), Schedule.cosine(0.5, 3.0))},
        {"guidance": Guidance.contrastive(0.05, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("slots", [3, 32])
def test_pictures(options: dict, slots: int, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=24)
    pool = fastdecode.new_pool(model, page_slots=slots)
    options = {**prompts_of(model), **IMAGE_ONLY, **options, "kv_pool": pool}
    both(model, traces, monkeypatch, **options)
    assert (traces.captures, traces.replays) == (1, vocabulary_of(model).image_length)
    assert pool.used == 0


@pytest.mark.parametrize("mode", [IMAGE_ONLY, {**INTERLEAVED, "max_new_tokens": 90}], ids=["image-only", "interleaved"])
def test_schedules(mode: dict, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """Weights of each step are copied to the device before it; where streams come and go, other steps are captured."""
    model = drawing_model(5, resolution=24)
    for guidance in (
        Guidance.two_way(Schedule.table([1.0] * 9 + [4.0])),
        Guidance.two_way(Schedule.table([4.0] * 9 + [1.0])),
        Guidance.two_way(Schedule.linear(6.0, 0.5), everywhere=True),
        Guidance.two_way(4.0, text_scale=1.5),
    ):
        both(model, traces, monkeypatch, **prompts_of(model), **mode, guidance=guidance)
        assert traces.captures > 0
        assert traces.replays > 30


def test_documents_with_different_contrasts(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """Three of each kind in one captured step, which is another one than that of two kinds."""
    model, processor = drawing_model(5, resolution=16), tiny_processor(16)
    v = vocabulary_of(model)
    options = {**prompts_of(model), "multimodal_generation_mode": "image-only", "seed": 3}
    options |= {"kv_pool": fastdecode.new_pool(model), "repetition_penalty": 1.2}

    def made(*guidances):
        def rerank(documents):
            return [0.0] * len(documents)

        kinds = [{"guidance": guidance} for guidance in guidances]
        found = fastdecode.best_of(model, processor, 6, rerank, kinds=kinds, **options)
        return torch.stack([best.sequences for best in found])

    narrow, wide = Guidance.contrastive(0.1, 1), Guidance.contrastive(0.02, 6)
    for number, guidances in enumerate(((3.0, narrow), (3.0, wide), (wide, narrow, 3.0)), 1):
        replays = traces.replays
        captured = made(*guidances)
        assert traces.captures == number
        assert traces.replays == replays + v.image_length
        with monkeypatch.context() as patch:
            uncaptured(patch)
            assert torch.equal(made(*guidances), captured)
        assert traces.replays == replays + v.image_length


def test_pictures_of_swin_models_and_others(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    for settings in ({"swin_norm": True}, {"kv_heads": 2, "bias": True}):
        model = drawing_model(2, resolution=16, **settings)
        both(model, traces, monkeypatch, **prompts_of(model), **IMAGE_ONLY, guidance=2.0)
        assert traces.captures == 1
        model = model.bfloat16()
        both(model, traces, monkeypatch, **prompts_of(model), **IMAGE_ONLY, guidance=2.0)


def test_later_pictures_are_drawn_with_what_was_captured(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16)
    v = vocabulary_of(model)
    options = {**prompts_of(model, (9,)), **INTERLEAVED, "guidance": 2.0, "max_new_tokens": 110}
    ids = both(model, traces, monkeypatch, **options, kv_pool=fastdecode.new_pool(model, pages=20))
    pictures = int((ids == v.begin_image).sum())
    assert pictures > 2
    assert traces.replays >= 16 * (pictures - 1)
    assert traces.captures == 2  # one of text


def test_a_picture_of_several_runs_is_captured_once(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(2, resolution=36)
    both(model, traces, monkeypatch, **prompts_of(model), **IMAGE_ONLY, guidance=2.0)
    assert (traces.captures, traces.replays) == (1, 81)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"guidance": Guidance.instruct(), "image": {"top_p": 0.9, "top_k": 9, "min_p": 0.01}}),
        ({}, {"guidance": 2.0, "repetition_penalty": 1.4}),
        ({}, {"guidance": Guidance.contrastive(0.05, 4), "do_sample": False}),
        ({"swin_norm": True}, {"guidance": Guidance.instruct(Schedule.linear(5.0, 2.0))}),
        ({"kv_heads": 2, "bias": True}, {**INTERLEAVED, "max_new_tokens": 22}),
    ],
    ids=str,
)
def test_the_runs_before_a_capture_do_all_that_is_captured(
    settings: dict, options: dict, traces: Traces, monkeypatch: pytest.MonkeyPatch
):
    """A kernel that is launched for the first time inside a capture would be loaded there. The second run has the very
    operations and sizes of the captured one; the first one also gets memory.
    """
    captures = []

    def capture(step):
        first, second, third = (make_fx(lambda: step())() for _ in range(3))
        assert "sample_advance" in third.code
        assert second.code == third.code
        assert targets(third) <= targets(first)
        captures.append(step)
        return step

    def targets(trace):
        return {node.target for node in trace.graph.nodes if node.op == "call_function"}

    monkeypatch.setattr(traces, "capture", capture)
    model = drawing_model(5, resolution=16, **settings)
    fastdecode.generate(model, **{**prompts_of(model), **IMAGE_ONLY, **options})
    assert captures


def call_again(monkeypatch: pytest.MonkeyPatch, traces: Traces) -> None:
    """A capture is a call of the step, and a replay another: faster, where the tokens are not of interest."""

    def capture(step):
        traces.captures += 1
        step()
        return step

    monkeypatch.setattr(traces, "capture", capture)


@pytest.mark.parametrize("pages", [None, 80])
def test_a_picture_of_1024_tokens_is_captured_once(pages: int | None, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """With a pool and without one; the pages of its captured step are those that it needs."""
    call_again(monkeypatch, traces)
    model = drawing_model(2, resolution=128, context=2048)
    assert vocabulary_of(model).image_length == 1024
    pool = None if pages is None else fastdecode.new_pool(model, pages=pages)
    ids = fastdecode.generate(model, **prompts_of(model, (9,)), **IMAGE_ONLY, guidance=2.0, kv_pool=pool)
    assert ids.shape[1] == 10 + 1026
    assert traces.captures == 1
    if pool is not None:
        [step] = pool.captured
        assert step.rows.page_table.shape == (2, -(-(10 + 1026) // 32))


@pytest.mark.parametrize(("most", "ahead"), [(300, 300), (2000, captured.TEXT_AHEAD)])
def test_pages_for_text_to_come(most: int, ahead: int, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """For as many tokens as a sequence may get, or a thousand."""
    call_again(monkeypatch, traces)
    model = drawing_model(2, resolution=16, context=4096)
    options = {**prompts_of(model, (9,)), "multimodal_generation_mode": "text-only", "seed": 3, "do_sample": True}
    pool = fastdecode.new_pool(model, pages=100)
    ids = fastdecode.generate(model, **options, max_new_tokens=most, kv_pool=pool)
    assert ids.shape[1] > 12
    [step] = pool.captured
    assert step.rows.page_table.shape == (1, -(-(9 + ahead) // 32))


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("limit", [None, 50])
def test_how_wide_a_captured_page_table_is(rows: int, limit: int | None, monkeypatch: pytest.MonkeyPatch):
    """At least twice what it is now and a run, and as wide as is needed, if that does not take too much memory."""
    pool = PagePool(1, 1, 4, torch.float32, "cpu", pages=limit, page_slots=32)
    cache = StreamCache(pool)
    cache.add([[1] * 33] * rows)
    cache.make_room(1)
    assert cache.page_table.shape[1] == 2
    assert [captured.table_width(cache, ahead) for ahead in (1, 159, 160, 1024)] == [6, 6, 7, 34]
    assert captured.table_width(cache, 10_000) == (314 if limit is None else limit)
    monkeypatch.setattr(captured, "MOST_PLACES", 24 * 32 * 10)
    assert captured.table_width(cache, 1024) == {2: 34, 20: 10}[rows]
    monkeypatch.setattr(captured, "MOST_PLACES", 0)
    assert captured.table_width(cache, 1024) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"multimodal_generation_mode": "text-only"},
        {
            "multimodal_generation_mode": "text-only",
            "do_sample": False,
            "guidance": Guidance.two_way(2.0, everywhere=True),
        },
        {"multimodal_generation_mode": "unrestricted"},
        {"repetition_penalty": 1.3, "guidance": 2.0},
        {"guidance": Guidance.instruct(), "text": {"top_k": 50, "temperature": 1.2}},
    ],
    ids=str,
)
def test_text(options: dict, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """Sequences of several lengths, which end and enter pictures when they like."""
    model = drawing_model(5, resolution=16)
    options = {**prompts_of(model), **INTERLEAVED, "max_new_tokens": 90, **options}
    ids = both(model, traces, monkeypatch, **options, kv_pool=fastdecode.new_pool(model, page_slots=5))
    assert traces.replays > 20
    seen = []
    again = fastdecode.generate(model, **options, streamer=Columns(seen))
    assert torch.equal(again, ids)
    assert torch.equal(torch.stack(seen, 1), ids)


class Columns:
    """A streamer: every column, the prompts first."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        self.seen = seen

    def put(self, ids: torch.Tensor) -> None:
        self.seen.extend(ids.unbind(1) if ids.dim() == 2 else [ids])

    def end(self) -> None:
        pass


def test_a_step_of_text_is_seen_while_the_next_one_is_under_way(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model, seen = drawing_model(5, resolution=16), []
    commit = EngineCore.commit

    def committing(self, step):
        seen.append((len(seen), traces.replays))
        return commit(self, step)

    monkeypatch.setattr(EngineCore, "commit", committing)
    options = {**prompts_of(model, (9,)), "multimodal_generation_mode": "text-only", "seed": 3, "do_sample": True}
    fastdecode.generate(model, **options, max_new_tokens=32)
    assert len(seen) > 8
    assert seen == [(step, min(step + 2, 32)) for step in range(len(seen))]


def test_requests_of_one_pool_share_what_was_captured(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16)
    options = {**prompts_of(model), **IMAGE_ONLY, "guidance": 2.0, "kv_pool": fastdecode.new_pool(model, pages=30)}
    first = both(model, traces, monkeypatch, **options)
    assert traces.captures == 1
    options["seed"] = 4
    assert not torch.equal(both(model, traces, monkeypatch, **options), first)
    assert traces.captures == 0
    # What is copied from the model is copied anew, and what is read in place is seen.
    layer = model.model.layers[0]
    layer.input_layernorm.weight.data.mul_(torch.linspace(-2, 2, layer.input_layernorm.weight.numel()))
    layer.mlp.down_proj.weight.data.mul_(3)
    second = both(model, traces, monkeypatch, **options)
    assert traces.captures == 0
    layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight * -2)
    third = both(model, traces, monkeypatch, **options)
    assert traces.captures == 1
    assert not torch.equal(second, third)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(1))
    fourth = both(model, traces, monkeypatch, **options)
    assert not torch.equal(fourth, third)
    assert traces.captures == 1
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 3
    assert not torch.equal(both(model, traces, monkeypatch, **options), fourth)
    assert traces.captures == 1
    other = drawing_model(6, resolution=16)
    both(other, traces, monkeypatch, **options)
    assert traces.captures == 1


def test_a_request_whose_pages_do_not_fit_in_what_was_captured(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16, context=400)
    options = {**IMAGE_ONLY, "kv_pool": fastdecode.new_pool(model, pages=60, page_slots=8)}
    both(model, traces, monkeypatch, **prompts_of(model, (3,)), **options)
    assert traces.captures == 1
    [step] = options["kv_pool"].captured
    long = 8 * step.rows.page_table.shape[1] + 1
    both(model, traces, monkeypatch, **prompts_of(model, (long,)), **options)
    assert traces.captures == 1
    both(model, traces, monkeypatch, **prompts_of(model, (5,)), **options)
    assert traces.captures == 0


def test_kernels_that_were_captured_for_small_sets_draw_from_no_larger_one(traces: Traces):
    model = drawing_model(5, resolution=16)
    pool = fastdecode.new_pool(model)
    fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, kv_pool=pool)
    [step] = pool.captured
    draws = Draws(step.tables, step.streams, step.weights, step.seeds, step.parameters, step.spans)
    assert step.draws_alike(draws)
    assert not step.draws_alike(replace(draws, tables=step.tables.bounded(step.tables.sets.largest + 1)))
    assert not step.draws_alike(replace(draws, spans=[(0, 1)]))
    assert not step.draws_alike(replace(draws, parameters={}))


def test_it_is_told(traces: Traces):
    model = drawing_model(5, resolution=16)
    told = fastdecode.explain(model, **prompts_of(model), max_new_tokens=30)
    assert told.decoder.endswith("each step made of Triton kernels, captured as a CUDA graph")
    assert not any("captured" in reason for reason in told.why_not_faster)


def test_buckets():
    assert [bucket(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(n <= bucket(n) <= 1.5 * n and bucket(bucket(n)) == bucket(n) for n in range(1, 1000))


@pytest.mark.parametrize("sequences", [5, pytest.param(8, marks=pytest.mark.long)])
def test_rows_and_groups_that_are_not_there(sequences: int, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """Five of six, then seven of eight; ten rows of twelve, then fourteen of sixteen."""
    model = drawing_model(5, resolution=16)
    options = {**prompts_of(model, range(3, 3 + sequences)), "kv_pool": fastdecode.new_pool(model, pages=80)}
    options |= {"guidance": 2.0, "repetition_penalty": 1.2}
    both(model, traces, monkeypatch, **options, **IMAGE_ONLY)
    assert (traces.captures, traces.replays) == (1, 16)
    both(model, traces, monkeypatch, **options, **INTERLEAVED, max_new_tokens=90)
    assert 2 < traces.captures <= captured.MOST_KEPT
    both(model, traces, monkeypatch, **options, **INTERLEAVED, max_new_tokens=90)
    assert traces.captures == 0
    # One sequence less has the same buckets.
    options |= prompts_of(model, range(3, 2 + sequences))
    both(model, traces, monkeypatch, **options, **IMAGE_ONLY)
    assert traces.captures == (0 if sequences == 8 else 1)


def test_what_was_captured_goes_with_its_pool(traces: Traces):
    model = drawing_model(5, resolution=16)
    pool = fastdecode.new_pool(model)
    fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, kv_pool=pool)
    [step] = pool.captured
    assert step.seconds > 0
    gone = weakref.ref(step)
    del step, pool
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("pages", range(26, 46, 2))
def test_small_pools(pages: int, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16)
    pool, told = fastdecode.new_pool(model, pages=pages, page_slots=3), []
    for patched in (False, True):
        if patched:
            uncaptured(monkeypatch)
        try:
            ids = fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, guidance=2.0, kv_pool=pool)
            told.append(ids.tolist())
        except fastdecode.PoolExhausted as error:
            told.append(re.sub(r"^the KV pool needs .* free, ", "", str(error)))
        assert pool.used == 0
    assert told[0] == told[1]


def test_logits_that_are_no_numbers(traces: Traces):
    model = drawing_model(5, resolution=16)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    pool = fastdecode.new_pool(model)
    with pytest.raises(RuntimeError, match=r"^sequence 0 has NaN, \+inf or nothing but -inf among the logits of its "):
        fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, kv_pool=pool)
    assert traces.captures == 1
    assert pool.used == 0


def test_what_was_captured_goes_with_its_memory(traces: Traces):
    model = drawing_model(5, resolution=16)
    pool = fastdecode.new_pool(model)
    fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, kv_pool=pool)
    assert len(pool.captured) == 1
    taken = pool.take(pool.capacity + 1)
    assert pool.captured == []
    pool.release(taken)


def test_a_step_that_waits_is_not_captured(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    def waiting(step):
        raise CannotCapture("called a synchronizing CUDA operation")

    model = drawing_model(5, resolution=16)
    options = {**prompts_of(model), **INTERLEAVED, "max_new_tokens": 60, "kv_pool": fastdecode.new_pool(model)}
    expected = fastdecode.generate(model, **options)
    options["kv_pool"] = pool = fastdecode.new_pool(model)
    monkeypatch.setattr(traces, "capture", waiting)
    with pytest.warns(UserWarning, match=r"^steps are not captured: called a synchronizing") as told:
        assert torch.equal(fastdecode.generate(model, **options), expected)
    assert len(told) == 1
    assert (pool.used, pool.captured) == (0, [])


def test_what_cannot_be_captured(traces: Traces):
    model = drawing_model(5, resolution=16)
    assert Decoder(model).uncaptured_reason is None
    removable = model.lm_head.register_forward_hook(lambda *given: None)
    assert Decoder(model).uncaptured_reason == "lm_head is not a plain nn.Linear without a bias, or has hooks"
    removable.remove()
    model.model.embed_tokens.register_forward_hook(lambda *given: None)
    assert Decoder(model).uncaptured_reason == "embed_tokens is not a plain embedding, or has hooks"
    model = drawing_model(5, resolution=16)
    model.model.rotary_emb.rope_type = "dynamic"
    decoder = Decoder(model)
    assert decoder.uncaptured_reason == "the rotation of a token depends on how many tokens there are"


def test_a_capture_that_fails_gives_its_page_back(traces: Traces, monkeypatch: pytest.MonkeyPatch):
    def failing(self, step):
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr(Traces, "capture", failing)
    monkeypatch.setattr(traces, "capture", lambda step: failing(traces, step))
    model = drawing_model(5, resolution=16)
    pool = fastdecode.new_pool(model)
    init = Decoder.__init__

    def with_failing(self, model, deterministic=False):
        init(self, model, deterministic)
        self.captured = CapturedSteps(self, traces.capture)

    monkeypatch.setattr(Decoder, "__init__", with_failing)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        fastdecode.generate(model, **prompts_of(model), **IMAGE_ONLY, kv_pool=pool)
    assert pool.used == 0


@pytest.mark.parametrize("mode", [IMAGE_ONLY, {**INTERLEAVED, "max_new_tokens": 60}], ids=["image-only", "interleaved"])
def test_log_probabilities_come_with_the_tokens(mode: dict, traces: Traces, monkeypatch: pytest.MonkeyPatch):
    """Captured steps tell those of steps that are not."""
    model, found = drawing_model(5, resolution=24), []
    for captures in (True, False):
        with monkeypatch.context() as patch:
            if not captures:
                uncaptured(patch)
            handle = fastdecode.Engine(model).submit(prompts_of(model, (9,))["input_ids"], **mode, guidance=2.0)
            handle.result()
            found.append((handle.tokens, handle.logprobs))
            assert len(handle.logprobs) == len(handle.tokens)
    assert traces.replays > 30
    assert found[0] == found[1]
    assert min(found[0][1]) < -0.1
