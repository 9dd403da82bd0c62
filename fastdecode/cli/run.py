"""``fastdecode run``: makes a document of every row of a file, each once, however often the command is stopped."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdecode.cli.arguments import (
    Refused,
    add_model_arguments,
    check_device,
    check_weights,
    file,
    folder,
    number,
    seed,
    whole,
)
from fastdecode.cli.decode_options import (
    GUIDANCE_HELP,
    MODALITIES,
    MODE,
    MODES,
    SAMPLING,
    TASKS,
    add_sampling_arguments,
    check_modality,
    guidance,
    own_options,
    parse_guidance,
    size,
)
from fastdecode.wording import count_of

if TYPE_CHECKING:
    from fastdecode.jobs import Job, Maker, Summary

FAILED = 3
"""The exit status if items failed."""


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    rows = run.add_argument_group("rows", "An option in a row of the input wins over one that is given here.")
    rows.add_argument(
        "--input",
        type=file,
        required=True,
        metavar="FILE",
        help="rows with id, prompt, pictures, seed and any option of generate: .jsonl, .csv or .parquet",
    )
    rows.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="only every N-th row, from the I-th on, into a folder of its own",
    )
    rows.add_argument("--task", choices=TASKS, metavar="TASK", help=f"of rows that name none: {', '.join(TASKS)}")
    rows.add_argument("--like", metavar="NAME", help="with tasks: which Chameleon the model is, such as Anole")
    rows.add_argument("--mode", choices=MODES, metavar="MODE", help=f"(default: the task's, or {MODE})")
    rows.add_argument("--image-size", type=size, metavar="WxH", help="of pictures to draw, in pixels")
    rows.add_argument("--max-new-tokens", type=whole(1), help="(default: the task's, or what the context allows)")
    rows.add_argument("--guidance", type=guidance, help=GUIDANCE_HELP)
    rows.add_argument(
        "--seed", type=seed, default=0, help="rows without a seed get one of this and their id (default: %(default)s)"
    )
    add_model_arguments(run)
    add_sampling_arguments(run)
    engine = run.add_argument_group("engine")
    engine.add_argument(
        "--pages", type=whole(1), help="pages of keys and values (default: what the memory has room for)"
    )
    engine.add_argument("--max-rows", type=whole(1), default=64, help="most streams in a step (default: %(default)s)")
    engine.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="items do not depend on what is decoded beside them (default: where the model can)",
    )
    cluster = run.add_argument_group("cluster", "Engines on the machines of a cluster of Ray; this process writes.")
    cluster.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="HOST:PORT, or auto for one that runs on this machine (default: that, or else a new one)",
    )
    cluster.add_argument("--actors", type=whole(1), metavar="N", help="engines (default: as many as there is room for)")
    cluster.add_argument("--cpus", type=whole(1), metavar="N", help="of each (default: those of the smallest machine)")
    cluster.add_argument("--gpus", type=number(0), metavar="N", help="of each engine (default: 1 with --device cuda)")
    written = run.add_argument_group("output", "A run that was stopped goes on when the same command is given again.")
    written.add_argument("-o", "--output", type=folder, required=True, help="folder to write to")
    written.add_argument(
        "--webdataset", type=whole(1), metavar="N", help="tar files of N items (default: a folder for each item)"
    )
    written.add_argument("--retry-failed", action="store_true", help="make items again that failed")
    written.add_argument(
        "--any-version", action="store_true", help="go on with a job that other versions of the packages began"
    )
    written.add_argument("--json", action="store_true", help="print what was done as JSON")


def shard(text: str) -> tuple[int, int]:
    """The type of ``--shard``: I/N, counted from 1."""
    words = text.split("/")
    found = (int(words[0]), int(words[1])) if len(words) == 2 and all(map(str.isdecimal, words)) else (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a shard: give I/N such as 1/8, counted from 1")
    return found


def job_of(args: argparse.Namespace) -> Job:
    """The job that the arguments describe."""
    from fastdecode.jobs import Job

    for modality in MODALITIES:
        check_modality(args.mode, modality, own_options(args, modality), "--mode")
    given: dict[str, Any] = {
        "task": args.task,
        "multimodal_generation_mode": args.mode,
        "image_size": args.image_size,
        "max_new_tokens": args.max_new_tokens,
        "guidance": None if args.guidance is None else guidance_of(args.guidance),
        **{name: getattr(args, name) for name in SAMPLING},
        **{modality: own_options(args, modality) or None for modality in MODALITIES},
    }
    return Job(
        model=args.model,
        dtype=None if args.dtype == "auto" else args.dtype,
        device=args.device,
        vqgan=None if args.vqgan is None else str(args.vqgan),
        weights=args.weights,
        like=args.like,
        options={name: value for name, value in given.items() if value is not None},
        seed=args.seed,
        pages=args.pages,
        max_rows=args.max_rows,
        deterministic=args.deterministic,
    )


def guidance_of(text: str) -> Any:
    """The guidance of ``--guidance``; with none, one that takes the place of a task's."""
    from fastdecode.guidance import Guidance

    return Guidance.none() if text == "none" else parse_guidance(text, draws=True)


def run_job(args: argparse.Namespace) -> int:
    """Make the items that the output lacks. Returns the exit status: `FAILED` if items have."""
    check_weights(args.weights, args.device)
    if args.ray is None:
        check_device(args.device)
    import pyarrow  # noqa: F401  told before minutes of loading

    from fastdecode.jobs import read_rows, run
    from fastdecode.jobs.manifest import folder_of_shard

    output = folder_of_shard(args.output, args.shard)
    job = job_of(args)
    maker = maker_of(args, job)
    rows = read_rows(args.input, args.seed, args.task)
    if args.like is not None and args.task is None and not any("task" in row.options for row in rows):
        raise Refused("--like needs a task, such as --task text-to-image, or a column task")
    try:
        with sigterm_interrupts():
            done = run(
                job,
                rows,
                args.output,
                per_tar=args.webdataset,
                shard=args.shard,
                retry_failed=args.retry_failed,
                any_version=args.any_version,
                maker=maker,
            )
    except MemoryError as error:
        said = " ".join(str(error).split())
        raise RuntimeError(
            f"the memory is full{': ' * bool(said)}{said}; the items that are there stay, and the same command goes on "
            "from there; fewer --pages or --max-rows take less"
        ) from error
    except KeyboardInterrupt:
        print("fastdecode: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps({"output": str(output), **vars(done)}))
    else:
        print(sentence(done, output))
    failed = done.failed + done.failed_before
    if failed:
        print(
            f"fastdecode: {count_of(failed, 'item')} failed, {done.first_error}; index.parquet says why each did, and "
            "--retry-failed tries again",
            file=sys.stderr,
        )
    return FAILED if failed else 0


def maker_of(args: argparse.Namespace, job: Job) -> Callable[[], Maker] | None:
    """The engines of a cluster; None: an engine in this process."""
    if args.ray is None:
        given = next((name for name in ("actors", "cpus", "gpus") if getattr(args, name) is not None), None)
        if given is not None:
            raise Refused(f"--{given} is for engines on a cluster: give --ray too")
        return None
    from fastdecode.ray import RayMaker

    sizes = {"actors": args.actors, "cpus": args.cpus, "gpus": args.gpus}
    return partial(RayMaker, job, args.ray or None, **sizes, any_version=args.any_version)


def sentence(done: Summary, output: Path) -> str:
    """What a run did, for people."""
    failed = f", {done.failed} failed" if done.failed else ""
    rate = f" in {done.seconds:.1f} s, {done.made / done.seconds:.2f} items/s" if done.made else ""
    there = f"; {done.there} there already" if done.there else ""
    before = f", of which {done.failed_before} failed" if done.failed_before else ""
    return f"{count_of(done.made - done.failed, 'item')} made{failed}{rate}{there}{before}; written to {output}"


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """A scheduler's SIGTERM ends the job as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
