"""What fails or interrupts some requests of an engine leaves the others their tokens, and no page taken."""

import asyncio
import random
from collections.abc import Iterator

import pytest
import torch
from mixed_requests import (
    IMAGE_ONLY,
    MIXED,
    MODEL,
    V,
    add_mixed,
    alone,
    call_of,
    check,
    core,
    finish,
    request_of,
)
from models_for_tests import BOS, padded, text_ids

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.engine.core import EngineCore
from fastdecode.engine.sequence import Sequence
from fastdecode.generation.api import prepare_call


def test_a_failure_of_the_model_is_that_of_those_who_run(monkeypatch: pytest.MonkeyPatch):
    step, calls = Decoder.step, []

    def failing(self, cache, tokens):
        calls.append(len(tokens))
        if len(calls) == 9:
            raise RuntimeError("no more memory")
        return step(self, cache, tokens)

    monkeypatch.setattr(Decoder, "step", failing)
    engine = core(max_rows=6)
    requests = add_mixed(engine)
    finish(engine)
    failed = [i for i, (request, _) in enumerate(requests) if request.error is not None]
    assert 0 < len(failed) < len(requests)
    assert all(str(requests[i][0].error) == "no more memory" for i in failed)
    rest = [i for i in range(len(requests)) if i not in failed]
    check([requests[i] for i in rest], rest)
    assert engine.cache.pool.used == 0


def test_faults_stay_with_their_request():
    def raising(ids, scores):
        if ids.shape[1] > 10:
            raise KeyError("of the processor")
        return scores

    def broken(ids, scores):
        return scores * torch.nan if ids.shape[1] > 12 else scores

    def misshapen(ids, scores):
        return scores[:, :5]

    bad = [{"mode": "text-only", "max_new_tokens": 30, "logits_processor": [f]} for f in (raising, broken, misshapen)]
    engine = core()
    good = [request_of(i, options) for i, options in enumerate(MIXED)]
    worse = [request_of(i, options) for i, options in enumerate(bad)]
    for request, _ in [*good[:4], *worse, *good[4:]]:
        engine.add(request)
    finish(engine)
    check(good)
    kinds = [type(request.error) for request, _ in worse]
    assert kinds == [KeyError, RuntimeError, ValueError]
    assert "the logits processor misshapen returned (1, 5) torch.float32; it must return scores" in str(
        worse[2][0].error
    )
    assert engine.cache.pool.used == 0


def test_a_prompt_that_cannot_be_read_fails_alone(monkeypatch: pytest.MonkeyPatch):
    prefill = Decoder.prefill
    poison = tuple(call_of(3, MIXED[3])[0][0].tolist())[:4]

    def failing(self, cache, prompts, **more):
        if any(tuple(p[:4]) == poison and len(p) > 20 for p in prompts):
            raise ValueError("unreadable")
        return prefill(self, cache, prompts, **more)

    monkeypatch.setattr(Decoder, "prefill", failing)
    engine = core()
    requests = add_mixed(engine)
    finish(engine)
    failed = [i for i, (request, _) in enumerate(requests) if request.error is not None]
    assert 0 < len(failed) < len(requests)
    rest = [i for i in range(len(requests)) if i not in failed]
    check([requests[i] for i in rest], rest)
    assert engine.cache.pool.used == 0


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
def test_whatever_a_processor_raises_is_its_requests_own(kind):
    def raising(ids, scores):
        raise kind

    engine = core()
    good = request_of(0, MIXED[0])
    bad, _ = request_of(1, {"mode": "text-only", "max_new_tokens": 5, "logits_processor": [raising]})
    engine.add(good[0])
    engine.add(bad)
    finish(engine)
    assert isinstance(bad.error, kind)
    check([good], [0])


def test_nan_beside_a_bias_fails_alone(monkeypatch: pytest.MonkeyPatch):
    options = [
        {"mode": IMAGE_ONLY, "max_new_tokens": 18, "sequence_bias": [[[V.code_ids[3]], 1.5]]},
        {"mode": IMAGE_ONLY, "max_new_tokens": 18},
    ]
    expected, logits, calls = alone(0, options[0]), Decoder.logits, []
    engine = core()
    requests = [request_of(i, o) for i, o in enumerate(options)]

    def failing(self, hidden, spans=None):
        found = logits(self, hidden, spans)
        calls.append(len(hidden))
        if len(calls) == 5:
            found[requests[1][0].sequences[0].rows] = torch.nan
        return found

    monkeypatch.setattr(Decoder, "logits", failing)
    for request, _ in requests:
        engine.add(request)
    finish(engine)
    assert "among the logits of its token" in str(requests[1][0].error)
    assert torch.equal(requests[0][1].output(), expected)


# --- interrupts -------------------------------------------------------------------------------------------------------


def interrupts_until_idle(engine: EngineCore, kind: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Steps until nothing is left to do, and comes back after each interrupt."""
    while not engine.idle:
        try:
            engine.step()
        except kind:
            yield


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_takes_no_page_and_the_next_call_goes_on(kind, monkeypatch: pytest.MonkeyPatch):
    generator, step = random.Random(5), Decoder.step

    def interrupted(self, cache, tokens):
        if generator.random() < 0.15:
            raise kind
        return step(self, cache, tokens)

    monkeypatch.setattr(Decoder, "step", interrupted)
    engine, interrupts = core(), 0
    requests = add_mixed(engine)
    for _ in interrupts_until_idle(engine, kind):
        interrupts += 1
        assert engine.cache.pool.used == 0
        assert engine.cache.rows == 0
    check(requests)
    assert interrupts > 3


def test_a_second_interrupt_while_the_first_is_put_right(monkeypatch: pytest.MonkeyPatch):
    step, recover, calls = Decoder.step, Sequence.recover, []

    def interrupted(self, *args):
        calls.append("step")
        if calls.count("step") in (7, 20):
            raise KeyboardInterrupt
        return step(self, *args)

    def interrupted_too(self):
        calls.append("recover")
        if calls.count("recover") in (2, 14):
            raise KeyboardInterrupt
        recover(self)

    monkeypatch.setattr(Decoder, "step", interrupted)
    monkeypatch.setattr(Sequence, "recover", interrupted_too)
    engine = core(most_steps=4)
    requests = add_mixed(engine)
    assert len(list(interrupts_until_idle(engine))) >= 2
    assert calls.count("recover") > 14
    check(requests)
    assert engine.cache.pool.used == 0


def test_an_interrupt_of_a_batch_in_lock_step_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch):
    inputs = padded([[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((5, 12, 3))])
    seen: list[list[int]] = []

    def noting(ids, scores):
        seen.append(ids[:, -1].tolist())
        return scores

    options = {**inputs, "do_sample": True, "max_new_tokens": 14, "output_scores": True, "logits_processor": [noting]}
    options["return_dict_in_generate"] = True
    own = {"multimodal_generation_mode": "text-only", "seed": [1, 2, 3], "deterministic": True}
    expected = fastdecode.generate(MODEL, **options, **own)
    append, generator = Sequence.append, random.Random(4)

    def interrupted(self, *drawn):
        if generator.random() < 0.1:
            raise KeyboardInterrupt
        return append(self, *drawn)

    call = prepare_call(MODEL, None, dict(options), own)
    [request] = call.requests()
    engine = core()
    engine.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "append", interrupted)
        assert len(list(interrupts_until_idle(engine))) > 2
    found = call.output()
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) == len(expected.scores)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))
