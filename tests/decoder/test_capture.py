"""How a step is captured on a GPU: which runs, what is an error, and what other threads may do meanwhile."""

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from fake_cuda import FakeCuda

from fastdecode.decoder import device_waits
from fastdecode.decoder.cuda_graph import CannotCapture, cuda_graph
from fastdecode.decoder.device_waits import MESSAGE, wait_in


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture(autouse=True)
def filters_stay() -> Iterator[None]:
    """Every test leaves the filters of warnings as they were."""
    before = list(warnings.filters)
    yield
    assert list(warnings.filters) == before


def elsewhere(function: Callable[[], None]) -> BaseException | None:
    """Call ``function`` on another thread, to its end; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_two_runs_before_the_capture(cuda: FakeCuda):
    replay = cuda_graph(lambda: cuda.events.append(f"step, mode {cuda.mode}"))
    runs = ["step, mode 0", "step, mode 1", "begin", "step, mode 0", "end"]
    assert cuda.events == ["side waits for main", *runs, "main waits for side"]
    replay()
    assert cuda.events[-1] == "replay"


def test_a_wait_is_found_before_the_capture(cuda: FakeCuda):
    with pytest.raises(CannotCapture, match=f"^{MESSAGE}"):
        cuda_graph(cuda.wait)
    assert cuda.events == ["side waits for main", "waited", "main waits for side"]
    assert cuda.mode == 0


def test_a_wait_is_found_where_the_user_has_chosen_a_mode_or_seen_the_warning(cuda: FakeCuda):
    def wait() -> None:
        cuda.wait()

    for mode in (1, 2):
        cuda.mode = mode
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            if mode == 1:
                wait()
                wait()
                assert len(told) == 1  # Python shows it once for this line
            found = wait_in(wait)
            assert found is not None
            assert found.startswith(MESSAGE)
            assert len(told) == (mode == 1)
        assert cuda.mode == mode


@pytest.mark.parametrize("mode", [0, 1])
def test_another_thread_may_wait_during_the_runs(mode: int, cuda: FakeCuda):
    """It gets no error, and a warning only if the user has asked for them."""
    cuda.mode = mode
    raised = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cuda_graph(lambda: raised.append(elsewhere(cuda.wait)))
    assert raised == [None, None, None]
    assert cuda.events.count("waited") == 3
    assert len(told) == 3 * mode
    assert all(str(warning.message).startswith(MESSAGE) for warning in told)
    assert cuda.mode == mode


def test_own_waits_are_found_while_another_thread_waits(cuda: FakeCuda):
    def both() -> None:
        assert elsewhere(cuda.wait) is None
        cuda.wait()

    with pytest.raises(CannotCapture):
        cuda_graph(both)
    assert cuda.events.count("waited") == 3  # twice of the first run, once of the second


def test_other_warnings_are_shown_as_ever(cuda: FakeCuda):
    with pytest.warns(UserWarning, match="^something else$") as told:
        assert wait_in(lambda: warnings.warn("something else", stacklevel=1)) is None
    assert len(told) == 1


def test_filters_that_another_thread_changes_meanwhile(cuda: FakeCuda):
    """It leaves its own filters in the first call, which hides the wait: the function is called again."""
    calls = []
    others = warnings.catch_warnings()

    def run() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            others.__exit__(None, None, None)
        cuda.wait()

    before = list(warnings.filters)
    others.__enter__()
    found = wait_in(run)
    assert found is not None
    assert calls == [0, 1]
    # The other way round: what it saved has our filters in it, and it restores them after us.
    others = warnings.catch_warnings()
    assert wait_in(others.__enter__) is None
    others.__exit__(None, None, None)
    assert list(warnings.filters) == before
    cuda.mode = 1
    with pytest.warns(UserWarning, match=MESSAGE):
        cuda.wait()


def test_it_gives_up_where_the_filters_always_change(cuda: FakeCuda):
    calls = []

    def run() -> None:
        calls.append(warnings.filters)
        warnings.simplefilter("ignore")

    with warnings.catch_warnings():
        assert wait_in(run) is None
    assert len(calls) == device_waits.TRIES


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: an illegal memory access")]
)
@pytest.mark.parametrize("run", [1, 2])
def test_other_errors_are_raised_as_they_are(run: int, error: RuntimeError, cuda: FakeCuda):
    runs = []

    def step() -> None:
        runs.append(cuda.mode)
        if len(runs) == run:
            raise error

    with pytest.raises(type(error)) as raised:
        cuda_graph(step)
    assert raised.value is error
    assert cuda.events == ["side waits for main", "main waits for side"]
    assert cuda.mode == 0


class Cycle:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("on", [True, False])
def test_new_garbage_is_collected_before_a_capture_and_none_in_it(on: bool, cuda: FakeCuda):
    """Whether or not collections are on, which stays as it was, also after an error."""
    garbage = weakref.ref(Cycle())
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        cuda_graph(lambda: None)
        assert cuda.collecting is False
        assert garbage() is None
        assert gc.isenabled() is on
        with pytest.raises(CannotCapture):
            cuda_graph(cuda.wait)
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_two_threads_capture_one_after_the_other(cuda: FakeCuda):
    """The second one waits for the end of the first one's capture, so that collections stay off until both are over."""
    begun, seen = threading.Event(), []

    def first() -> None:
        if "begin" in cuda.events and not seen:
            seen.append(list(cuda.events))
            other.start()
            assert begun.wait(20)
            other.join(0.1)
            assert cuda.events.count("begin") == 1
            assert not gc.isenabled()

    other = threading.Thread(target=lambda: cuda_graph(begun.set))
    was_on = gc.isenabled()
    gc.enable()
    try:
        cuda_graph(first)
        other.join(20)
        assert cuda.events.count("end") == 2
        assert gc.isenabled()
    finally:
        (gc.enable if was_on else gc.disable)()
