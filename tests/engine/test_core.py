"""Schedule, step, commit: a request gets the same tokens as alone, whatever runs beside it."""

import gc
import random
import weakref

import pytest
import torch
from mixed_requests import (
    EXPECTED,
    IMAGE_ONLY,
    INTERLEAVED,
    MIXED,
    MODEL,
    WORDS,
    V,
    add_mixed,
    alone,
    check,
    core,
    finish,
    long_prompt,
    request_of,
    whole_guidance,
)
from models_for_tests import BOS, padded, text_ids
from transformers import MaxLengthCriteria, StoppingCriteriaList

import fastdecode
from fastdecode import Guidance
from fastdecode.engine import scheduler as scheduling
from fastdecode.engine.core import EngineCore
from fastdecode.engine.request import Request
from fastdecode.generation.api import prepare_call
from fastdecode.kv.kv_cache import StreamCache


def test_mixed_requests_share_steps_and_keep_their_tokens(monkeypatch: pytest.MonkeyPatch):
    whole_guidance(monkeypatch)
    engine = core()
    requests = add_mixed(engine)
    steps = finish(engine)
    check(requests)
    assert steps < sum(call.output().shape[1] for _, call in requests) / 3  # they were in one batch
    assert engine.cache.pool.used == 0


@pytest.mark.parametrize("retain", [0, 7, None])
@pytest.mark.parametrize("pages", [46, 60, 90])
def test_a_small_pool_preempts_and_resumes(pages: int, retain: int | None, monkeypatch: pytest.MonkeyPatch):
    whole_guidance(monkeypatch)
    engine = core(pages, retain=retain)
    requests = add_mixed(engine)
    finish(engine)
    check(requests)
    assert engine.cache.pool.used == engine.cache.retained <= (pages if retain is None else retain)
    assert engine.cache.pool.peak <= pages


@pytest.mark.parametrize("retain", [0, None])
def test_preempted_at_any_step_the_tokens_are_the_same(retain: int | None):
    generator = random.Random(7)
    for _ in range(6):
        engine = core(retain=retain)
        requests = add_mixed(engine)
        while engine.step():
            if engine.scheduler.running and generator.random() < 0.3:
                engine.preempt(generator.choice(engine.scheduler.running))
        check(requests)
        assert engine.scheduler.preemptions > 5


def test_arrivals_while_others_decode():
    engine = core(max_rows=7)
    requests = [request_of(i, options) for i, options in enumerate(MIXED)]
    for request, _ in requests:
        engine.add(request)
        for _ in range(3):
            engine.step()
            assert engine.cache.rows <= 7
    finish(engine)
    check(requests)


def test_abort_frees_within_the_call():
    engine = core()
    requests = add_mixed(engine)
    for _ in range(4):
        engine.step()
    used = engine.cache.pool.used
    for i in (1, 2, 7):
        engine.abort(requests[i][0])
        assert requests[i][0].reason == "aborted"
    assert engine.cache.pool.used < used
    finish(engine)
    rest = [i for i in range(len(requests)) if i not in (1, 2, 7)]
    check([requests[i] for i in rest], rest)
    assert engine.cache.pool.used == 0


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_a_picture_without_a_penalty_are_penalised_in_the_text_behind_it(seed: int):
    """A processor that does nothing takes the path that counts the tokens of a sequence anew in every step."""
    options = {"mode": "unrestricted", "max_new_tokens": 60, "text": {"repetition_penalty": 1.8}, "seed": seed}
    assert torch.equal(alone(1, options), alone(1, {**options, "logits_processor": [lambda ids, scores: scores]}))


def test_a_bias_is_in_the_scores_that_are_returned():
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    options["sequence_bias"] = [[[WORDS[1]], 2.5], [[WORDS[0]], -1.0]]
    ids = long_prompt(7)
    found, expected = fastdecode.generate(MODEL, ids, **options), MODEL.generate(ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for mine, theirs in zip(found.scores, expected.scores, strict=True):
        assert torch.allclose(mine[:, WORDS], theirs[:, WORDS], atol=1e-4)


def test_a_criterion_shorter_than_the_prompt_ends_after_one_token():
    criteria = StoppingCriteriaList([MaxLengthCriteria(3)])
    out = fastdecode.generate(MODEL, long_prompt(9), max_new_tokens=5, stopping_criteria=criteria)
    assert out.shape == (1, 10)


def test_what_processors_recorded_is_let_go_when_a_request_ends():
    engine = core()
    request, _ = request_of(1, {**MIXED[9], "output_scores": True, "return_dict_in_generate": True})
    engine.add(request)
    finish(engine)
    assert engine.runner.processed == []
    gone = weakref.ref(request.callbacks)
    del request, _
    gc.collect()
    assert gone() is None


# --- order ------------------------------------------------------------------------------------------------------------


def order_of(engine: EngineCore, requests) -> list[int]:
    """In which order they were first admitted."""
    seen: list[int] = []
    while engine.step():
        seen += [r.number for r in engine.scheduler.running if r.number not in seen]
    finished = [r.number for r, _ in requests if r.number not in seen]
    return seen + finished


def short(i: int, **more):
    return request_of(i, {"mode": "text-only", "max_new_tokens": 6, "min_new_tokens": 6}, **more)


def test_first_come_first_served():
    engine = core(max_rows=1)
    requests = [short(i) for i in range(5)]
    for request, _ in requests:
        engine.add(request)
    assert order_of(engine, requests) == [0, 1, 2, 3, 4]


def test_priorities_go_first_and_nobody_starves():
    engine = core(max_rows=1)
    low, _ = short(0, priority=0)
    engine.add(low)
    engine.scheduler.running.clear()
    admitted = []
    for i in range(1, 60):
        high, _ = short(i, priority=1)
        engine.add(high)
    while not low.done:
        engine.step()
        admitted += [r.number for r in engine.scheduler.running if r.number not in admitted]
    assert admitted[0] == 1
    place = admitted.index(0)
    assert place == scheduling.PATIENCE


def test_who_came_last_gives_its_pages_back():
    engine = core(30)
    requests = [request_of(i, {"mode": IMAGE_ONLY, "guidance": 2.0, "max_new_tokens": 18}) for i in (3, 7, 11)]
    for request, _ in requests:
        engine.add(request)
    preempted = []
    preempt = engine.preempt
    engine.preempt = lambda request: (preempted.append(request.number), preempt(request))
    engine.scheduler._fits = lambda request: True  # everybody at once, so that pages run out
    finish(engine)
    assert preempted
    assert 0 not in preempted
    for i, (_, call) in zip((3, 7, 11), requests, strict=True):
        assert torch.equal(call.output(), alone(i, {"mode": IMAGE_ONLY, "guidance": 2.0, "max_new_tokens": 18}))


def test_a_batch_in_lock_step_is_preempted_whole():
    inputs = padded([[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((5, 12, 3))])
    options = {**inputs, "do_sample": True, "max_new_tokens": 18, "output_scores": True}
    options |= {"return_dict_in_generate": True}
    own = {"multimodal_generation_mode": IMAGE_ONLY, "guidance": 2.0, "seed": [1, 2, 3], "deterministic": True}
    expected = fastdecode.generate(MODEL, **options, **own)
    call = prepare_call(MODEL, None, dict(options), own)
    [request] = call.requests()
    engine = core()
    engine.add(request)
    other, other_call = request_of(2, MIXED[2])
    engine.add(other)
    for n in range(40):
        engine.step()
        if n % 5 == 2 and request in engine.scheduler.running:
            engine.preempt(request)
    finish(engine)
    found = call.output()
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))
    assert torch.equal(other_call.output(), EXPECTED[2])
    assert request.preemptions > 2


def short_for(i: int) -> Request:
    return request_of(i, {"mode": "text-only", "max_new_tokens": 30, "min_new_tokens": 30})[0]


def test_a_preempted_request_comes_back_while_others_decode():
    engine = core()
    first, last = short_for(0), short_for(1)
    engine.add(first)
    engine.add(last)
    engine.step()
    engine.preempt(last)
    for _ in range(3):
        engine.step()
    assert not first.done
    assert engine.scheduler.running == [first, last]


# --- what is read ahead, and kept -------------------------------------------------------------------------------------


def request_for(ids: torch.Tensor, **options) -> tuple[Request, object]:
    own = {"multimodal_generation_mode": "text-only", "seed": 3, "deterministic": True}
    call = prepare_call(MODEL, ids, {"max_new_tokens": 5, "do_sample": True, **options}, own)
    [request] = call.requests()
    return request, call


@pytest.mark.parametrize("retain", [None, 3])
def test_a_long_prompt_is_read_between_the_steps_of_others(retain: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduling, "PREFILL_CHUNK", 16)
    engine = core(retain=retain)
    short_one, short_call = request_for(long_prompt(6), max_new_tokens=30, min_new_tokens=30)
    engine.add(short_one)
    engine.step()
    long_one, call = request_for(long_prompt(100))
    engine.add(long_one)
    progress = []
    while not long_one.live[0].rows:
        before = len(short_one.sequences[0].tokens)
        engine.step()
        progress.append(len(short_one.sequences[0].tokens) - before)
        assert len(progress) < 20
    assert all(progress)  # the other was not stalled
    assert len(progress) >= (6 if retain is None else 2)  # where less is kept than the prompt has, it is read at once
    finish(engine)
    expected = fastdecode.generate(
        MODEL, long_prompt(100), max_new_tokens=5, do_sample=True, seed=3, deterministic=True
    )
    assert torch.equal(call.output(), expected)
    assert len(short_call.output()[0]) == 36


def test_streams_of_a_next_picture_are_found_and_not_read_again(monkeypatch: pytest.MonkeyPatch):
    options = {"mode": INTERLEAVED, "guidance": Guidance.instruct(), "max_new_tokens": 90}
    read = []
    add = StreamCache.add

    def noting(self, prompts):
        rows, known = add(self, prompts)
        read.append(sum(len(p) - k for p, k in zip(prompts, known, strict=True)))
        return rows, known

    monkeypatch.setattr(StreamCache, "add", noting)
    found = []
    for retain in (0, None):
        read.clear()
        engine = core(retain=retain)
        request, call = request_of(2, options)
        engine.add(request)
        finish(engine)
        found.append((call.output(), sum(read)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].eq(V.begin_image).sum() > 2
    assert found[1][1] < 0.6 * found[0][1]
