"""``fastdecode generate``: makes a document of text and pictures from one prompt."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from fastdecode.cli.demo import GUIDANCE
from fastdecode.cli.output import whole_folder
from fastdecode.generation.api import explain, generate
from fastdecode.guidance import Guidance
from fastdecode.models.chameleon import check_can_draw, with_placeholders
from fastdecode.models.documents import to_documents
from fastdecode.models.loading import load

GUIDANCE_HELP = "give none, a number such as 3.0, or instruct, or instruct:TEXT,IMAGE such as instruct:3.0,1.2"


def parse_guidance(text: str | None, draws: bool) -> Guidance | float | None:
    """Parse the ``--guidance`` option. ``ValueError`` says how to write it."""
    if text is None:
        return GUIDANCE if draws else None
    if text == "none":
        return None
    name, _, numbers = text.partition(":")
    try:
        if name == "instruct":
            if not numbers:
                return Guidance.instruct()
            on_text, on_image = map(float, numbers.split(","))
            return Guidance.instruct(on_text, on_image)
        return float(text)
    except ValueError:
        raise ValueError(f"--guidance {text!r} is not understood: {GUIDANCE_HELP}") from None


def open_pictures(files: list[Path]) -> list[Image.Image]:
    """Read the prompt's pictures. ``ValueError`` names a file that is not a picture."""
    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pictures.append(picture.convert("RGB"))
        except FileNotFoundError:
            raise ValueError(f"--image {file}: there is no such file") from None
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"--image {file} is not a picture that can be read: {error}") from error
    return pictures


def write_document(args: argparse.Namespace) -> None:
    """Load the model, decode, and write ``document.md`` and its ``picture-N.png`` files into ``args.output``."""
    draws = args.mode != "text-only"
    guidance = parse_guidance(args.guidance, draws)
    pictures = open_pictures(args.image)
    prompt = with_placeholders(args.prompt, len(pictures), "--image")
    model, processor = load(args.model, vqgan=args.vqgan)
    if draws:
        check_can_draw(model)
    inputs = processor(
        text=prompt, images=pictures or None, return_tensors="pt", return_for_text_completion=args.completion
    )
    length = inputs["input_ids"].shape[1]
    options: dict[str, Any] = {
        "multimodal_generation_mode": args.mode,
        "guidance": guidance,
        "seed": args.seed,
        "progress": True,
    }
    if args.temperature == 0:
        options["do_sample"] = False
    else:
        options |= {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    elif args.mode != "image-only":
        options["max_new_tokens"] = max(1, model.config.max_position_embeddings - length)
    if args.explain:
        print(explain(model, **inputs, **options), end="\n\n")
    torch.manual_seed(args.seed)
    with whole_folder(args.output) as folder:
        start = time.perf_counter()
        sequences: Any = generate(model, **inputs, **options)
        seconds = time.perf_counter() - start
        [document] = to_documents(model, processor, sequences, start=length)
        lines, number = [], 0
        for part in document:
            if isinstance(part, str):
                lines.append(part)
            else:
                number += 1
                part.save(folder / f"picture-{number}.png")
                lines.append(f"![picture {number}](picture-{number}.png)")
        (folder / "document.md").write_text("\n\n".join(lines) + "\n")
    tokens = sequences.shape[1] - length
    print("\n".join(lines))
    print(f"\n{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s; written to {args.output}")
