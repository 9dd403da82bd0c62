"""An `Engine` called from many threads, left, aborted, interrupted and closed."""

import threading

import pytest
import torch
from engines import PICTURE, SHORT, TEXT, by_generate, engine

from fastdecode import Engine, Finished, RequestFailed
from fastdecode.cli.demo import GOALS, INSTRUCTIONS


def test_many_threads_submit_abort_and_wait():
    expected = [by_generate(GOALS[i % 6], seed=i, deterministic=True, **INSTRUCTIONS)[0] for i in range(6)]
    found, errors = {}, []

    def caller(made: Engine, numbers: range) -> None:
        try:
            for i in numbers:
                handle = made.submit(GOALS[i % 6], seed=i, **INSTRUCTIONS)
                extra = made.submit(GOALS[i % 6], seed=i + 50, **INSTRUCTIONS)
                extra.abort()
                found[i] = handle.result(timeout=300)
                with pytest.raises(RequestFailed, match=f"request {extra.number} was aborted"):
                    extra.result()
        except BaseException as error:
            errors.append(error)

    for threaded in (True, False):
        made = engine(deterministic=True, pages=100)
        if threaded:
            made.start()
        threads = [threading.Thread(target=caller, args=(made, range(t, 6, 3))) for t in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert all(torch.equal(found[i], expected[i]) for i in range(6))
        statistics = made.statistics()
        assert (statistics.finished, statistics.aborted, statistics.pages_used) == (6, 6, 0)
        made.close()
        made.close()
        found.clear()


def test_an_aborted_request_frees_its_pages_at_once_when_nobody_decodes():
    made = engine()
    handle, other = made.submit(GOALS[0], **INSTRUCTIONS), made.submit(GOALS[1], seed=1, **INSTRUCTIONS)
    events = iter(handle)
    for _ in range(5):
        next(events)
    assert made.statistics().pages_used > 0
    handle.abort()
    handle.abort()
    assert (handle.done, handle.reason) == (True, "aborted")
    assert [type(e) for e in events][-1] is Finished
    assert other.result().shape[0] == 1
    assert made.statistics().pages_used == 0


def test_a_failed_request_raises_its_error_with_its_number():
    def broken(ids, scores):
        raise KeyError("mine")

    made = engine()
    good = made.submit(GOALS[0], seed=1, **INSTRUCTIONS)
    bad = made.submit("Build a tree in column 1.", logits_processor=[broken], **SHORT)
    made.run()
    with pytest.raises(RequestFailed, match=r"^request 1 failed: KeyError: 'mine'$") as raised:
        bad.result()
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(RequestFailed, match=r"^request 1 failed"):
        list(bad)
    with pytest.raises(RequestFailed, match=r"^request 1 failed"):
        bad.document()
    assert bad.reason == "error"
    assert good.reason == "stop"
    assert made.statistics().failed == 1


def test_waiting_for_too_long_is_told():
    for threaded in (True, False):
        made = engine()
        if threaded:
            made.start()
        handle = made.submit(GOALS[0], **INSTRUCTIONS)
        with pytest.raises(TimeoutError, match="request 0 has not ended after 0 s"):
            handle.result(timeout=0)
        handle.result()
        made.close()


def test_closing_ends_what_is_left_and_says_so():
    made = engine().start()
    handles = [made.submit(goal, **INSTRUCTIONS) for goal in GOALS]
    made.close()
    assert {h.reason for h in handles} <= {"aborted", "stop"}
    assert handles[-1].reason == "aborted"
    with pytest.raises(RequestFailed, match=r"^request 5 was aborted: the engine was closed$"):
        handles[-1].result()
    for call in (lambda: made.submit(GOALS[0]), made.run, made.start):
        with pytest.raises(RuntimeError, match=r"^this engine is closed: make another one$"):
            call()
    assert made.statistics().pages_used == made.statistics().pages_retained == 0
    assert not any(thread.name == "fastdecode engine" for thread in threading.enumerate())


def test_run_goes_on_after_an_interrupt(monkeypatch: pytest.MonkeyPatch):
    expected, _ = by_generate(GOALS[0], seed=1, deterministic=True, **INSTRUCTIONS)
    made = engine(deterministic=True)
    handle = made.submit(GOALS[0], seed=1, **INSTRUCTIONS)
    step, calls = type(made._core.decoder).step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) in (10, 45, 90, 130):
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(type(made._core.decoder), "step", interrupted)
    interrupts = 0
    while not handle.done:
        try:
            made.run()
        except KeyboardInterrupt:
            interrupts += 1
            assert made.statistics().pages_used == 0
    assert interrupts > 2
    assert torch.equal(handle.result(), expected)
    assert made.statistics().preemptions == 0  # nobody else wanted its pages


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_ends_its_requests_and_is_closed(monkeypatch: pytest.MonkeyPatch):
    made = engine()

    def dying():
        raise SystemExit(3)

    monkeypatch.setattr(made._core, "step", dying)
    made.start()
    handle = made.submit(TEXT, **SHORT)
    with pytest.raises(RequestFailed, match=r"^request 0 failed: SystemExit: 3$"):
        handle.result(timeout=60)
    with pytest.raises(RuntimeError, match=r"^this engine is closed"):
        made.submit(TEXT, **SHORT)
    assert made.statistics().pages_used == 0
    made.close()


def test_an_interrupt_while_a_request_is_taken_in_loses_none(monkeypatch: pytest.MonkeyPatch):
    expected, _ = by_generate("Draw: In column 2 a red circle.", seed=3, deterministic=True, **PICTURE)
    made = engine(deterministic=True)
    handle = made.submit("Draw: In column 2 a red circle.", seed=3, **PICTURE)
    add, calls = made._core.scheduler.add, []

    def interrupted(request):
        calls.append(request)
        if len(calls) == 1:
            raise KeyboardInterrupt
        add(request)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(made._core.scheduler, "add", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made.run()
    made.run()
    assert torch.equal(handle.result(), expected)


def test_a_close_that_was_interrupted_can_be_done_again(monkeypatch: pytest.MonkeyPatch):
    made = engine().start()
    handle = made.submit(GOALS[0], **INSTRUCTIONS)
    thread = made._thread

    class Interrupted:
        def join(self) -> None:
            raise KeyboardInterrupt

    made._thread = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        made.close()
    made._thread = thread
    made.close()
    assert handle.done
    assert not made.started
    assert not thread.is_alive()


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("name", ["close", "run", "forget_prompts", "result"])
def test_a_processor_that_asks_its_engine_to_decode_is_refused_and_does_not_hang(name: str, threaded: bool):
    made = engine()
    other = made.submit(TEXT, **{**SHORT, "max_new_tokens": 60, "min_new_tokens": 60})

    def asking(ids, scores):
        (other.result if name == "result" and not threaded else getattr(made, "run" if name == "result" else name))()
        return scores

    handle = made.submit(TEXT, logits_processor=[asking], **SHORT)
    if threaded:
        made.start()
    with pytest.raises(RequestFailed, match="from inside a processor or criterion of one of its requests"):
        handle.result(timeout=60)
    assert other.result(timeout=60) is not None
    made.close()


def test_an_engine_belongs_to_its_process(monkeypatch: pytest.MonkeyPatch):
    made = engine()
    handle = made.submit(TEXT, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        for call in (lambda: made.submit(TEXT, **SHORT), made.run, made.start, handle.result):
            with pytest.raises(
                RuntimeError, match=r"^this engine was made in another process: make one after the fork$"
            ):
                call()
    assert handle.result() is not None
