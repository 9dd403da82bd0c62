"""``fastdecode generate``: makes documents of text and pictures from prompts."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastdecode.cli.arguments import (
    SEEDS,
    Refused,
    add_model_arguments,
    check_weights,
    file,
    folder,
    seed,
    whole,
)
from fastdecode.cli.decode_options import MODE, MODES, TASKS, add_sampling_arguments, guidance, sampling_options, size
from fastdecode.cli.document import Wanted, markdown
from fastdecode.cli.output import check_folder, whole_folder
from fastdecode.cli.progress import loading
from fastdecode.cli.prompts import open_pictures, read_prompts
from fastdecode.cli.requests import load_engine, submit

if TYPE_CHECKING:
    from fastdecode.generation.engine import Engine

COMMAND = "generate"
NAMES = re.compile(r"document(-\d+)?\.md|(document-\d+-)?picture-\d+\.png")
"""The files that this command writes."""


def add_arguments(generate: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    prompt = generate.add_argument_group("prompts")
    prompt.add_argument(
        "--prompt", action="append", default=[], help="text; <image> marks where a picture goes; repeatable"
    )
    prompt.add_argument(
        "--prompts", type=file, metavar="FILE", help="a file with one prompt per line; - for standard input"
    )
    prompt.add_argument(
        "--image", type=file, action="append", default=[], help="picture, the same for every prompt; repeatable"
    )
    prompt.add_argument(
        "--task",
        choices=TASKS,
        metavar="TASK",
        help=f"write the prompts and choose the options as fastdecode.recipe does: {', '.join(TASKS)}; options that "
        "are given go before the task's",
    )
    prompt.add_argument("--like", metavar="NAME", help="with a task: which Chameleon the model is, such as Anole")
    prompt.add_argument("--completion", action="store_true", help="do not end the prompts with the turn separator")
    add_model_arguments(generate)
    made = generate.add_argument_group("what is made")
    made.add_argument(
        "--mode",
        choices=MODES,
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: the task's, or {MODE})",
    )
    made.add_argument(
        "--image-size",
        type=size,
        metavar="WxH",
        help="with a task: size of the pictures in pixels, such as 768x512 (default: the model's usual size)",
    )
    made.add_argument("--num", type=whole(1, 10_000), default=1, help="documents per prompt (default: %(default)s)")
    made.add_argument(
        "--max-new-tokens", type=whole(1), help="tokens of a document (default: the task's, or what the context allows)"
    )
    made.add_argument(
        "--guidance",
        type=guidance,
        help="of pictures (with text-only: of the text): none, a number (two-way), or instruct[:TEXT,IMAGE] "
        "(default: the task's, or instruct:1.5,1.2 in modes that draw)",
    )
    made.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="seed of the first document; the next ones get the next numbers (default: %(default)s)",
    )
    add_sampling_arguments(generate)
    written = generate.add_argument_group("output")
    written.add_argument("-o", "--output", type=folder, required=True, help="folder to write to")
    written.add_argument("--overwrite", action="store_true", help="remove the files that an earlier run wrote there")
    written.add_argument(
        "--explain", action="store_true", help="say what is in effect, the task's recipe included, then decode"
    )
    written.add_argument("--json", action="store_true", help="print what was made as JSON")


def wanted(prompts: Sequence[str], num: int, first_seed: int) -> list[Wanted]:
    """``num`` documents of each prompt, with seeds from ``first_seed`` on. `Refused` if there are not so many seeds."""
    count = len(prompts) * num
    if first_seed + count - 1 > SEEDS[1]:
        raise Refused(f"--seed {first_seed}: {count} documents need as many seeds, and the largest is {SEEDS[1]}")
    stems = [""] if count == 1 else [f"document-{n + 1}" for n in range(count)]
    return [Wanted(prompts[n // num], first_seed + n, stem) for n, stem in enumerate(stems)]


def write_documents(args: argparse.Namespace) -> None:
    """Load the model, decode all prompts together, and write the documents into ``args.output``."""
    check_weights(args.weights, args.device)
    check_task(args)
    sampling_options(args)
    check_folder(args.output, COMMAND, NAMES, args.overwrite)
    todo = wanted(read_prompts(args.prompt, args.prompts, needed=args.task != "caption"), args.num, args.seed)
    pictures = open_pictures(args.image)
    with loading(args.model):
        engine = load_engine(args)
    with whole_folder(args.output, COMMAND) as draft:
        explained = submit(engine, todo, pictures, args)
        if explained and not args.json:
            print(explained, end="\n\n")
        start = time.perf_counter()
        decode(engine, todo)
        seconds = time.perf_counter() - start
        documents = [document.write(draft) for document in todo]
    if args.json:
        result = {"output": str(args.output), "seconds": round(seconds, 3), "documents": documents}
        print(json.dumps({**result, "explanation": explained} if explained else result, indent=2))
        return
    for made in documents:
        if len(documents) > 1:
            print(f"--- {made['file']}: {made['prompt']} (seed {made['seed']})")
        print(markdown(made["parts"]), end="\n\n")
    tokens = sum(made["tokens"] for made in documents)
    count = f"{len(documents)} documents, " if len(documents) > 1 else ""
    print(f"{count}{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s; written to {args.output}")


def check_task(args: argparse.Namespace) -> None:
    """`Refused` for options that need a task without one, and for one that a task leaves no place for."""
    if args.task is not None:
        if args.completion:
            raise Refused(f"--completion with --task {args.task}: the task says how its prompts end; leave one out")
        return
    for name, given in (("--image-size", args.image_size), ("--like", args.like)):
        if given is not None:
            raise Refused(f"{name} needs a task, such as --task text-to-image")


def decode(engine: Engine, todo: Sequence[Wanted]) -> None:
    """Decode all documents, with a bar on a terminal. RuntimeError if one fails."""
    from tqdm.auto import tqdm

    with tqdm(unit="token", disable=None, file=sys.stderr) as bar:
        for document in todo:
            handle = document.handle
            assert handle is not None
            while not handle.done:
                engine.advance(handle)
                bar.update(engine.statistics().tokens - bar.n)
            handle.result()
