"""Hundreds of mixed requests through one `Engine`, from several threads; each must give what it gives alone.

    python -m tests.engine.soak --requests 500 --threads 3 --seed 0 [--worlds drawing blocks] [--fault NAME]

Requests come at random moments; a fifth is aborted at random moments, one in twenty is bad (refused at submit, fails
midway, or outgrows the pool), and the pool is so small that requests are preempted. Then:

  - a good request gave exactly the tokens of `fastdecode.generate` with the same options and seed, alone
  - an aborted one gave a beginning of them, a failed one raised `RequestFailed` with its number and cause
  - events, where somebody listened, told the tokens of the result
  - no page is taken, no request is open or remembered, no thread is left, memory is what it was after the warm-up

Prints a table, and exits with 1 and what was wrong on any fault. ``--fault`` breaks the engine on purpose: the same
comparison must find it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from soak_requests import BAD, WORLDS, Broken, Case, World, random_case

import fastdecode
from fastdecode.engine.batch import Batch
from fastdecode.engine.core import EngineCore
from fastdecode.engine.request import Request
from fastdecode.engine.runner import Runner
from fastdecode.engine.sequence import Sequence as DecodedSequence
from fastdecode.generation.handle import Handle, RequestFailed

ABORTED, BAD_SHARE, REPEATED, LISTENED = 0.2, 0.05, 0.1, 0.1
PATIENCE_S = 300.0
CAUSES = {"raises": Broken, "NaN": RuntimeError, "grows too long": fastdecode.PoolExhausted}
MEMORY_ALLOWED = 48 << 20
"""What a C allocator that several threads use may keep of what was freed."""


@dataclass
class Planned:
    """A request to come: ``delay`` seconds after the one before of its thread; aborted when it has ``abort_after`` new
    tokens, if that is not None.
    """

    case: Case
    delay: float
    priority: int
    abort_after: int | None
    listened: bool
    handle: Handle | None = None
    refused: Exception | None = None
    told: list[int] | None = None


@dataclass
class Report:
    """What a run came to; ``wrong`` has a sentence for everything that was."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    preemptions: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory_growth: int = 0

    def table(self) -> str:
        rows = {name: str(count) for name, count in sorted(self.counts.items())}
        rows |= {"preemptions": str(self.preemptions), "tokens": str(self.tokens), "seconds": f"{self.seconds:.1f}"}
        rows |= {"memory growth MiB": f"{self.memory_growth / 2**20:.1f}", "wrong": str(len(self.wrong))}
        return "\n".join(f"{name:>28} {value:>8}" for name, value in rows.items())


def plan(world: World, count: int, seed: int, mean_delay: float = 0.004) -> list[Planned]:
    """``count`` requests; the same ones for the same seed."""
    rng = random.Random(f"{world.name} {seed}")
    bad = max(1, round(BAD_SHARE * count)) if count >= 10 else 0
    kinds = [BAD[i % len(BAD)] for i in range(bad)] + [None] * (count - bad)
    rng.shuffle(kinds)
    planned: list[Planned] = []
    for number, kind in enumerate(kinds):
        earlier = [p.case for p in planned if p.case.bad is None]
        again = kind is None and earlier and rng.random() < REPEATED
        case = rng.choice(earlier) if again else random_case(world, seed, number, kind)
        aborted = kind is None and rng.random() < ABORTED
        after = rng.choice([0, 0, 1, rng.randint(2, 60)]) if aborted else None
        priority = rng.choice([0, 0, 0, 0, 1, -1])
        planned.append(Planned(case, rng.expovariate(1 / mean_delay), priority, after, rng.random() < LISTENED))
    return planned


class References:
    """What requests of a world give alone; equal ones are computed once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._known: dict[str, list[int]] = {}

    def __call__(self, case: Case) -> list[int]:
        """New tokens of ``case`` by `fastdecode.generate`; of one that fails midway, those it would have without."""
        if case.key not in self._known:
            options = case.options(self.world) if case.bad is None else dict(case.plain)
            found = fastdecode.generate(self.world.model, **case.inputs(self.world), **options, deterministic=True)
            self._known[case.key] = found[0, len(case.prompt) :].tolist()
        return self._known[case.key]

    def compute(self, planned: Sequence[Planned]) -> None:
        for p in planned:
            if p.case.bad not in ("refused", "never fits"):
                self(p.case)


# --- one run ----------------------------------------------------------------------------------------------------


def submit_all(
    engine: fastdecode.Engine,
    world: World,
    planned: list[Planned],
    watched: list[Planned],
    submitted: threading.Barrier | None,
) -> None:
    """What one of the submitting threads does."""
    listening = []
    for p in planned:
        time.sleep(p.delay)
        try:
            p.handle = engine.submit(p.case.inputs(world), priority=p.priority, **p.case.options(world))
        except Exception as error:
            p.refused = error
            continue
        if p.abort_after == 0:
            p.handle.abort()
        elif p.abort_after is not None:
            watched.append(p)
        if p.listened:
            listening.append(p)
    if submitted is not None:
        submitted.wait(PATIENCE_S)
    for p in listening:
        p.told = []
        assert p.handle is not None
        with contextlib.suppress(RequestFailed):
            for event in p.handle:
                if isinstance(event, fastdecode.Tokens):
                    p.told += event.tokens


def abort_all(watched: list[Planned], submitted: threading.Event) -> None:
    """Aborts requests when they have the tokens after which they shall be."""
    while True:
        last = submitted.is_set()
        for p in list(watched):
            assert p.handle is not None
            assert p.abort_after is not None
            if p.handle.done or len(p.handle.tokens) >= p.abort_after:
                p.handle.abort()
                watched.remove(p)
        if last and not watched:
            return
        time.sleep(0.001)


def run(
    world: World,
    planned: list[Planned],
    references: References,
    *,
    threads: int = 3,
    least_preemptions: int = 0,
    fault: str | None = None,
    queued: bool = False,
) -> Report:
    """All of ``planned`` through an engine of its own, compared. What was wrong is in the report; nothing is raised.

    ``queued``: the engine begins when all are submitted, so that pages run out however busy the machine is.
    """
    references.compute(planned)
    report = Report()
    before = set(threading.enumerate())
    engine = fastdecode.Engine(world.model, pages=world.pages, max_rows=world.max_rows, deterministic=True)
    watched: list[Planned] = []
    submitted = threading.Event()
    barrier = threading.Barrier(threads, engine.start) if queued else None
    workers = [
        threading.Thread(target=submit_all, args=(engine, world, planned[i::threads], watched, barrier))
        for i in range(threads)
    ]
    aborter = threading.Thread(target=abort_all, args=(watched, submitted), daemon=True)
    start = time.perf_counter()
    with FAULTS[fault]() if fault else contextlib.nullcontext():
        if not queued:
            engine.start()
        aborter.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        submitted.set()
        for p in planned:
            compare(p, references, report, start + PATIENCE_S)
        aborter.join(10)
        report.seconds = time.perf_counter() - start
        check_engine(engine, planned, report, least_preemptions)
        engine.close()
    left = set(threading.enumerate()) - before
    if left:
        report.wrong.append(f"threads are left: {sorted(t.name for t in left)}")
    if aborter in left:
        watched.clear()
    return report


def compare(p: Planned, references: References, report: Report, deadline: float) -> None:
    """Wait for a request, and compare it with what it gives alone."""
    case, who = p.case, f"case {p.case.key} ({p.case.kind})"
    wrong = report.wrong.append
    if p.handle is None:
        report.counts["refused"] += 1
        if case.bad not in ("refused", "never fits") or type(p.refused) is not ValueError:
            wrong(f"{who} was refused: {p.refused!r}")
        elif case.naming not in str(p.refused):
            wrong(f"{who} was refused without a word of {case.naming}: {p.refused}")
        return
    if case.bad in ("refused", "never fits"):
        wrong(f"{who} was not refused")
        p.handle.abort()
        return
    expected, error = references(case), None
    try:
        found = p.handle.result(max(1.0, deadline - time.perf_counter()))[0, len(case.prompt) :].tolist()
    except TimeoutError as late:
        wrong(f"{who}: {late}")
        p.handle.abort()
        return
    except RequestFailed as failed:
        found, error = p.handle.tokens, failed
    kind = {"stop": "finished", "length": "finished", "error": "failed"}.get(p.handle.reason or "", p.handle.reason)
    report.counts[str(kind)] += 1
    report.counts[f"{kind}: {case.kind}"] += 1
    if p.told is not None and p.told != found:
        wrong(f"{who}: events told {p.told}, and the result is {found}")
    if found != expected[: len(found)] or (error is None and len(found) != len(expected)):
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        wrong(
            f"{who} differs from what it gives alone, from new token {at} of {len(expected)} on, after "
            f"{p.handle._request.preemptions} preemptions: {found[at : at + 4]}, alone {expected[at : at + 4]}"
        )
    if error is not None and f"request {p.handle.number} " not in str(error):
        wrong(f"{who}, request {p.handle.number}: {error} has not its number")
    if case.bad is not None:
        cause = error.__cause__ if error is not None else None
        if not isinstance(cause, CAUSES[case.bad]) or case.naming not in str(error):
            wrong(
                f"{who} should have failed with {CAUSES[case.bad].__name__} and {case.naming}: {error!r} of {cause!r}"
            )
        elif case.hooks and len(found) != case.hooks[0][1]:
            wrong(f"{who} failed after {len(found)} tokens, and should after {case.hooks[0][1]}")
    elif kind == "failed" or (kind == "aborted" and p.abort_after is None):
        wrong(f"{who} {kind}: {error!r}")


def check_engine(engine: fastdecode.Engine, planned: list[Planned], report: Report, least_preemptions: int) -> None:
    """Nothing is open, no page is taken, and the counts add up."""
    engine.forget_prompts()
    now, wrong = engine.statistics(), report.wrong.append
    report.preemptions, report.tokens = now.preemptions, now.tokens
    handles = [p.handle for p in planned if p.handle is not None]
    if now.submitted != len(handles) or now.submitted != now.finished + now.aborted + now.failed:
        wrong(f"{len(handles)} requests were submitted, and the engine counts {now}")
    if now.waiting or now.running or now.rows or engine._handles or not engine._core.idle or engine._core._owners:
        wrong(f"requests are open at the end: {now}, {list(engine._handles)}")
    pool = engine._core.cache.pool
    if now.pages_used or now.pages_retained or pool.used:
        wrong(f"pages are taken at the end: {now}")
    if now.tokens != sum(len(h.tokens) for h in handles):
        wrong(f"the engine counts {now.tokens} tokens, and its requests have {sum(len(h.tokens) for h in handles)}")
    if now.preemptions < least_preemptions:
        wrong(f"only {now.preemptions} preemptions, and {least_preemptions} were wanted: give a smaller pool")


# --- memory -----------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory, after what can be given back was."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def soak(
    world: World, count: int, seed: int, *, threads: int = 3, least_preemptions: int = 0, fault: str | None = None
) -> Report:
    """A warm-up, then the run, with a look at memory before and after. References are computed before both."""
    references = References(world)
    warm_up = plan(world, min(count, 60), seed + 1)
    planned = plan(world, count, seed)
    references.compute(planned)
    warmed_up = run(world, warm_up, references, threads=threads)
    before = resident()
    report = run(world, planned, references, threads=threads, least_preemptions=least_preemptions, fault=fault)
    report.wrong += [f"in the warm-up: {sentence}" for sentence in warmed_up.wrong]
    kept = [weakref.ref(p.handle) for p in planned if p.handle is not None]
    for p in planned:
        p.handle = p.refused = None
    report.memory_growth = resident() - before
    alive = sum(ref() is not None for ref in kept)
    if alive:
        report.wrong.append(f"{alive} handles are alive after all was forgotten")
    if report.memory_growth > MEMORY_ALLOWED:
        report.wrong.append(f"memory grew by {report.memory_growth / 2**20:.0f} MiB")
    return report


# --- negative controls ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def resume_drops_a_token() -> Iterator[None]:
    """A preempted sequence's streams come back without the token before their last."""
    preempt, start = EngineCore.preempt, Runner.start
    preempted: dict[int, DecodedSequence] = {}

    def noting(self: EngineCore, request: Request) -> None:
        preempted.update((id(s), s) for s in request.live)
        preempt(self, request)

    def dropping(self: Runner, starting: list[Any]) -> None:
        kept = []
        for s, streams in starting:
            drops = id(s) in preempted and not s.rows
            kept.append((s, [t[:-2] + t[-1:] if drops and len(t) > 2 else t for t in streams]))
        start(self, kept)

    with patch.object(EngineCore, "preempt", noting), patch.object(Runner, "start", dropping):
        yield


@contextlib.contextmanager
def guidance_is_left_out() -> Iterator[None]:
    """Only the full stream runs."""

    def plan_streams(self: DecodedSequence) -> None:
        self.streams, self.weights, self.streams_from = [], [1.0], len(self.tokens)

    with patch.object(DecodedSequence, "plan_streams", plan_streams):
        yield


@contextlib.contextmanager
def noise_of_the_next_step() -> Iterator[None]:
    """Every draw takes the noise of the step behind it."""
    right = Batch._lay_out

    def lay_out(self: Batch, *args: Any) -> None:
        right(self, *args)
        assert self.state is not None
        self.state.step += 1

    with patch.object(Batch, "_lay_out", lay_out):
        yield


FAULTS = {
    "resume": resume_drops_a_token,
    "guidance": guidance_is_left_out,
    "step": noise_of_the_next_step,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="of all worlds together")
    parser.add_argument("--threads", type=int, default=3, help="that submit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=["drawing", "blocks"])
    parser.add_argument("--pages", type=int, help="of the pool, for all worlds")
    parser.add_argument("--max-rows", type=int, help="of the engine; at least 8, which some requests need")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="break the engine so; it must be found")
    args = parser.parse_args()
    wrong: list[str] = []
    preemptions = 0
    for place, name in enumerate(args.worlds):
        world = WORLDS[name](args.pages) if args.pages else WORLDS[name]()
        world = replace(world, max_rows=args.max_rows)
        count = args.requests // len(args.worlds) + (place < args.requests % len(args.worlds))
        start = time.perf_counter()
        report = soak(world, count, args.seed, threads=args.threads, fault=args.fault)
        print(f"{name}: {count} requests, {args.threads} threads, seed {args.seed}, {world.pages} pages")
        print(report.table())
        print(f"{'with all references, seconds':>28} {time.perf_counter() - start:8.1f}", flush=True)
        wrong += [f"{name}: {sentence}" for sentence in report.wrong]
        preemptions += report.preemptions
    if preemptions < args.requests // 10:
        wrong.append(f"only {preemptions} preemptions of {args.requests} requests: give fewer --pages")
    for sentence in wrong[:20]:
        print("WRONG:", sentence)
    print("nothing was wrong" if not wrong else f"{len(wrong)} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
