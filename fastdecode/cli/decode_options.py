"""The options of ``fastdecode generate`` that become options of `fastdecode.generate`."""

from __future__ import annotations

import argparse
import math
import re
from typing import TYPE_CHECKING, Any

from fastdecode.cli.arguments import Refused, number, shown, whole

if TYPE_CHECKING:
    from fastdecode.guidance import Guidance

MODE = "interleaved-text-image"
"""Without a task."""
TEMPERATURE, TOP_P = 0.7, 0.9
USUAL = {"temperature": TEMPERATURE, "top_p": TOP_P}
"""Without a task."""
MODALITIES = {"text": "text", "image": "pictures"}
MODES = ("text-only", "image-only", "interleaved-text-image", "unrestricted")
TASKS = ("text-to-image", "interleaved", "edit", "caption", "chat", "infill")
"""Of `fastdecode.recipe`; the parser does not wait for torch."""
SAMPLING = ("temperature", "top_k", "top_p")
GUIDANCE_HELP = "give none, a number such as 3.0, or instruct, or instruct:TEXT,IMAGE such as instruct:3.0,1.2"


def add_sampling_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that say how tokens are sampled."""
    sampling = command.add_argument_group(
        "sampling",
        "--temperature, --top-k and --top-p set text and pictures alike; the options that name one set it alone.",
    )
    sampling.add_argument(
        "--temperature", type=number(0), help=f"0 takes the likeliest (default: the task's, or {TEMPERATURE})"
    )
    sampling.add_argument(
        "--top-k",
        type=whole(0),
        help="tokens that are considered; 0: all (default: the task's, or as the checkpoint says)",
    )
    sampling.add_argument("--top-p", type=number(0, 1, above=True), help=f"(default: the task's, or {TOP_P})")
    for name, words in MODALITIES.items():
        sampling.add_argument(f"--{name}-temperature", type=number(0), metavar="T", help=f"temperature of {words} only")
        sampling.add_argument(f"--{name}-top-k", type=whole(0), metavar="K", help=f"top-k of {words} only")
        sampling.add_argument(
            f"--{name}-top-p", type=number(0, 1, above=True), metavar="P", help=f"top-p of {words} only"
        )


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


def size(text: str) -> tuple[int, int]:
    """The type of ``--image-size``: WIDTHxHEIGHT in pixels."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,5})[x×]0*([1-9][0-9]{0,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a size: give WIDTHxHEIGHT in pixels, such as 768x512")
    return int(found[1]), int(found[2])


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
    an option of another one. With ``args.task`` only what was given; else also `USUAL`.
    """
    usual = {} if args.task is not None else USUAL
    mode = args.mode or (MODE if args.task is None else None)
    options: dict[str, dict[str, Any]] = {}
    for modality in MODALITIES:
        own = own_options(args, modality)
        check_modality(mode, modality, own, "--mode")
        if mode in ("text-only", "image-only") and mode != f"{modality}-only":
            continue
        common = {name: getattr(args, name) for name in SAMPLING}
        chosen = {name: _first(own.get(name), common[name], usual.get(name)) for name in SAMPLING}
        if chosen["temperature"] == 0:
            options[modality] = {"do_sample": False}
        elif any(value is not None for value in chosen.values()):
            options[modality] = {"do_sample": True, **{k: v for k, v in chosen.items() if v is not None}}
    return options


def own_options(args: argparse.Namespace, modality: str) -> dict[str, Any]:
    """The sampling parameters that were given for a modality alone."""
    own = {name: getattr(args, f"{modality}_{name}") for name in SAMPLING}
    return {name: value for name, value in own.items() if value is not None}


def check_modality(mode: str | None, modality: str, own: dict[str, Any], why: str) -> None:
    """`Refused` if one of ``own``, the options of a modality alone, was given and the mode has none of it."""
    given = [f"--{modality}-{name.replace('_', '-')}" for name in own]
    if given and mode in ("text-only", "image-only") and mode != f"{modality}-only":
        raise Refused(f"{given[0]} is for {MODALITIES[modality]}, and {why} {mode} makes none")


def chosen_options(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    """With ``args.task``: the options that were given, for the ``mode`` that the request will have. `Refused` for those
    of a modality that it does not have.
    """
    found: dict[str, Any] = {}
    for modality, values in sampling_options(args).items():
        check_modality(mode, modality, own_options(args, modality), f"--task {args.task} is")
        if mode not in ("text-only", "image-only") or mode == f"{modality}-only":
            found[modality] = values
    if args.mode is not None:
        found["multimodal_generation_mode"] = args.mode
    if args.guidance is not None:
        found["guidance"] = parse_guidance(args.guidance, draws=True)
    if args.max_new_tokens is not None:
        found["max_new_tokens"] = args.max_new_tokens
    return found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
