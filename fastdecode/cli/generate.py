"""``fastdecode generate``: makes documents of text and pictures from prompts."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdecode.cli.arguments import (
    DTYPES,
    SEEDS,
    WEIGHTS,
    Refused,
    check_device,
    check_is_chameleon,
    check_weights,
    device,
    file,
    folder,
    number,
    seed,
    shown,
    whole,
)
from fastdecode.cli.output import check_folder, whole_folder
from fastdecode.cli.progress import loading
from fastdecode.cli.prompts import open_pictures, read_prompts

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from fastdecode.generation.engine import Engine
    from fastdecode.generation.handle import Handle
    from fastdecode.guidance import Guidance

COMMAND = "generate"
NAMES = re.compile(r"document(-\d+)?\.md|(document-\d+-)?picture-\d+\.png")
"""The files that this command writes."""
MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")
MODALITIES = {"text": "text", "image": "pictures"}
SAMPLING = ("temperature", "top_k", "top_p")
GUIDANCE_HELP = "give none, a number such as 3.0, or instruct, or instruct:TEXT,IMAGE such as instruct:3.0,1.2"
MAX_ROWS = 64
"""Streams that are decoded at once; further prompts wait."""


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
    prompt.add_argument("--completion", action="store_true", help="do not end the prompts with the turn separator")
    model = generate.add_argument_group("model")
    model.add_argument("--model", default="blocks", help="'blocks', a folder or a hub id (default: %(default)s)")
    model.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: the checkpoint's)"
    )
    model.add_argument(
        "--weights", choices=WEIGHTS, help="make the weights small, on the CPU (default: as in the checkpoint)"
    )
    model.add_argument("--device", type=device, help="cpu, cuda or cuda:N (default: cpu)")
    model.add_argument("--vqgan", type=file, help="Meta's vqgan.ckpt, for a checkpoint without decoder")
    made = generate.add_argument_group("what is made")
    made.add_argument(
        "--mode",
        default="interleaved-text-image",
        choices=MODES,
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: %(default)s)",
    )
    made.add_argument("--num", type=whole(1, 10_000), default=1, help="documents per prompt (default: %(default)s)")
    made.add_argument("--max-new-tokens", type=whole(1), help="tokens of a document (default: what the context allows)")
    made.add_argument(
        "--guidance",
        type=guidance,
        help="of pictures (with text-only: of the text): none, a number (two-way), or instruct[:TEXT,IMAGE] "
        "(default: instruct:1.5,1.2 in modes that draw)",
    )
    made.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="seed of the first document; the next ones get the next numbers (default: %(default)s)",
    )
    sampling = generate.add_argument_group(
        "sampling",
        "--temperature, --top-k and --top-p set text and pictures alike; the options that name one set it alone.",
    )
    sampling.add_argument(
        "--temperature", type=number(0), default=0.7, help="0 takes the likeliest (default: %(default)s)"
    )
    sampling.add_argument(
        "--top-k", type=whole(0), help="tokens that are considered; 0: all (default: as the checkpoint says)"
    )
    sampling.add_argument("--top-p", type=number(0, 1, above=True), default=0.9, help="(default: %(default)s)")
    for name, words in MODALITIES.items():
        sampling.add_argument(f"--{name}-temperature", type=number(0), metavar="T", help=f"temperature of {words} only")
        sampling.add_argument(f"--{name}-top-k", type=whole(0), metavar="K", help=f"top-k of {words} only")
        sampling.add_argument(
            f"--{name}-top-p", type=number(0, 1, above=True), metavar="P", help=f"top-p of {words} only"
        )
    written = generate.add_argument_group("output")
    written.add_argument("-o", "--output", type=folder, required=True, help="folder to write to")
    written.add_argument("--overwrite", action="store_true", help="remove the files that an earlier run wrote there")
    written.add_argument("--explain", action="store_true", help="say what is in effect, then decode")
    written.add_argument("--json", action="store_true", help="print what was made as JSON")


def guidance(text: str) -> str:
    """The type of ``--guidance``, whose spelling it checks; `parse_guidance` reads it when the model is known."""
    name, _, numbers = text.partition(":")
    if text in ("none", "instruct"):
        return text
    try:
        values = [float(word) for word in (numbers.split(",") if name == "instruct" else [text])]
    except ValueError:
        values = []
    if len(values) != (2 if name == "instruct" else 1) or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not understood: {GUIDANCE_HELP}")
    return text


def parse_guidance(text: str | None, draws: bool) -> Guidance | float | None:
    """The guidance that ``--guidance`` names; None: the default of a mode that ``draws`` or does not."""
    from fastdecode.cli.demo import GUIDANCE
    from fastdecode.guidance import Guidance

    if text is None:
        return GUIDANCE if draws else None
    if text == "none":
        return None
    if text == "instruct":
        return Guidance.instruct()
    if text.startswith("instruct:"):
        on_text, on_image = map(float, text.removeprefix("instruct:").split(","))
        return Guidance.instruct(on_text, on_image)
    return float(text)


def sampling_options(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options ``text`` and ``image`` of `fastdecode.generate`, of the modalities that the mode has. `Refused` for
    an option of another one.
    """
    options: dict[str, dict[str, Any]] = {}
    for modality, words in MODALITIES.items():
        own = {name: getattr(args, f"{modality}_{name}") for name in SAMPLING}
        if args.mode in ("text-only", "image-only") and args.mode != f"{modality}-only":
            given = [f"--{modality}-{name.replace('_', '-')}" for name, value in own.items() if value is not None]
            if given:
                raise Refused(f"{given[0]} is for {words}, and --mode {args.mode} makes none")
            continue
        chosen = {name: getattr(args, name) if value is None else value for name, value in own.items()}
        if chosen["temperature"] == 0:
            options[modality] = {"do_sample": False}
        else:
            options[modality] = {"do_sample": True, **{k: v for k, v in chosen.items() if v is not None}}
    return options


@dataclass
class Task:
    """One document to be made."""

    prompt: str
    seed: int
    stem: str
    """Begins the names of its files: "" for the only document, else ``document-N``."""
    how: dict[str, Any] = field(default_factory=dict)
    """The options that made it, for the metadata of its pictures."""
    handle: Handle | None = None

    def metadata(self, number: int) -> PngInfo:
        """What a PNG says of how it was made: the text ``fastdecode`` is JSON with prompt, seed and options."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        made = {"prompt": self.prompt, "seed": self.seed, "picture": number, **self.how}
        info.add_itxt("fastdecode", json.dumps(made, ensure_ascii=False))
        return info

    @property
    def file(self) -> str:
        return f"{self.stem or 'document'}.md"

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the document and its pictures into ``folder``. Returns what was written, for ``--json``."""
        assert self.handle is not None
        parts: list[dict[str, str]] = []
        number = 0
        for part in self.handle.document():
            if isinstance(part, str):
                parts.append({"text": part})
            else:
                number += 1
                name = f"{self.stem}-picture-{number}.png" if self.stem else f"picture-{number}.png"
                part.save(folder / name, pnginfo=self.metadata(number))
                parts.append({"picture": name})
        made = {"prompt": self.prompt, "seed": self.seed, "tokens": len(self.handle.tokens), "file": self.file}
        (folder / self.file).write_text(markdown(parts) + "\n", encoding="utf-8")
        return {**made, "parts": parts}


def markdown(parts: Sequence[dict[str, str]]) -> str:
    """The parts of a document as text, with links to its pictures."""
    lines, number = [], 0
    for part in parts:
        if "text" in part:
            lines.append(part["text"])
        else:
            number += 1
            lines.append(f"![picture {number}]({part['picture']})")
    return "\n\n".join(lines)


def tasks(prompts: Sequence[str], num: int, first_seed: int) -> list[Task]:
    """``num`` documents of each prompt, with seeds from ``first_seed`` on. `Refused` if there are not so many seeds."""
    count = len(prompts) * num
    if first_seed + count - 1 > SEEDS[1]:
        raise Refused(f"--seed {first_seed}: {count} documents need as many seeds, and the largest is {SEEDS[1]}")
    stems = [""] if count == 1 else [f"document-{n + 1}" for n in range(count)]
    return [Task(prompts[n // num], first_seed + n, stem) for n, stem in enumerate(stems)]


def write_documents(args: argparse.Namespace) -> None:
    """Load the model, decode all prompts together, and write the documents into ``args.output``."""
    check_weights(args.weights, args.device)
    sampling = sampling_options(args)
    check_folder(args.output, COMMAND, NAMES, args.overwrite)
    todo = tasks(read_prompts(args.prompt, args.prompts), args.num, args.seed)
    pictures = open_pictures(args.image)
    with loading(args.model):
        engine = load_engine(args)
    with whole_folder(args.output, COMMAND) as draft:
        explained = submit(engine, todo, pictures, sampling, args)
        if explained and not args.json:
            print(explained, end="\n\n")
        start = time.perf_counter()
        decode(engine, todo)
        seconds = time.perf_counter() - start
        documents = [task.write(draft) for task in todo]
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


def load_engine(args: argparse.Namespace) -> Engine:
    """An engine of the model that ``args`` name. `Refused` before it is read if there is no such device."""
    from fastdecode.generation.engine import Engine
    from fastdecode.models.loading import load
    from fastdecode.models.pictures import check_can_draw

    check_device(args.device)
    dtype = None if args.dtype == "auto" else args.dtype
    model, processor = load(args.model, dtype=dtype, device=args.device, vqgan=args.vqgan, weights=args.weights)
    check_is_chameleon(model, args.model)
    if args.mode != "text-only":
        check_can_draw(model)
    return Engine(model, processor, max_rows=MAX_ROWS)


def submit(
    engine: Engine,
    todo: Sequence[Task],
    pictures: Sequence[Image.Image],
    sampling: dict[str, dict[str, Any]],
    args: argparse.Namespace,
) -> str:
    """Submit all tasks. Returns the explanation of the first if it was asked for, else "".

    ValueError, which names the prompt where there are several, for one that cannot be decoded.
    """
    from fastdecode.generation.api import explain
    from fastdecode.models.pictures import with_placeholders

    scale = parse_guidance(args.guidance, draws=args.mode != "text-only")
    options: dict[str, Any] = {"multimodal_generation_mode": args.mode, "guidance": scale, **sampling}
    explained = ""
    for n, task in enumerate(todo):
        try:
            text = with_placeholders(task.prompt, len(pictures), "--image")
            inputs = engine.processor(
                text=text,
                images=list(pictures) or None,
                return_tensors="pt",
                return_for_text_completion=args.completion,
            ).to(engine.model.device)
            own = {**options, "seed": task.seed}
            if args.max_new_tokens is not None:
                own["max_new_tokens"] = args.max_new_tokens
            elif args.mode != "image-only":
                length = inputs["input_ids"].shape[1]
                own["max_new_tokens"] = max(1, engine.model.config.max_position_embeddings - length)
            if args.explain and n == 0:
                explained = str(explain(engine.model, **inputs, **own))
            others = {name: value for name, value in own.items() if name not in ("guidance", "seed")}
            task.how = {"model": args.model, "guidance": args.guidance, **others}
            task.handle = engine.submit(inputs, **own)
        except (ValueError, TypeError, RuntimeError) as error:
            if len({t.prompt for t in todo}) == 1:
                raise
            raise Refused(f"prompt {n // args.num + 1}: {error}") from error
    return explained


def decode(engine: Engine, todo: Sequence[Task]) -> None:
    """Decode all tasks, with a bar on a terminal. RuntimeError if one fails."""
    from tqdm.auto import tqdm

    with tqdm(unit="token", disable=None, file=sys.stderr) as bar:
        for task in todo:
            assert task.handle is not None
            while not task.handle.done:
                engine.advance(task.handle)
                bar.update(engine.statistics().tokens - bar.n)
            task.handle.result()
