"""Types of the command line's arguments. A wrong one is refused, in one sentence, before anything is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

SEEDS = (-(2**63), 2**63 - 1)
DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHTS = ("int8", "int4")


class Refused(ValueError):
    """A command that cannot be run as it was given."""


class Parser(argparse.ArgumentParser):
    """Raises `Refused` for a wrong command, where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but what is left over is refused in the name of the command that it was given to."""
        found, left = self.parse_known_args(args, namespace)
        if not left:
            return found
        command = getattr(found, "command", None)
        bare = command == "generate" and not left[0].startswith("-")
        advice = "; give the prompt with --prompt" if bare else ""
        see = self.prog if command is None else f"{self.prog} {command}"
        raise Refused(f"unrecognized arguments: {shown(' '.join(left), 200)[1:-1]}{advice}; see {see} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            *others, last = action.choices
            raise argparse.ArgumentError(
                None, f"there is no command {shown(value)[1:-1]}; there are {', '.join(others)} and {last}"
            )
        super()._check_value(action, value)


def shown(text: object, most: int = 60) -> str:
    """``text`` in quotes, for a message: not more than ``most`` characters of it."""
    whole = str(text)
    return repr(whole if len(whole) <= most else f"{whole[:most]}…")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of whole numbers of at least ``least``, and at most ``most``."""
    wanted = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number {wanted}")
        return value

    return read


def number(least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """The type of finite numbers of at least (or ``above``) ``least``, and at most ``most``."""
    wanted = f"{'above' if above else 'of at least'} {least:g}" + ("" if most == math.inf else f" and at most {most:g}")

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or value > most or (above and value == least):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number {wanted}")
        return value

    return read


def folder(text: str) -> Path:
    """The type of an output folder: any name but an empty one, which would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder; the current one is called .")
    return Path(text)


def file(text: str) -> Path:
    """The type of a file: any name but an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no file")
    return Path(text)


seed = whole(*SEEDS)


def device(text: str) -> str:
    """The type of a device: cpu, cuda or cuda:N. `check_device` says later whether this machine has it."""
    kind, colon, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isascii() and index.isdigit())):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a device: give cpu, cuda, or cuda:N such as cuda:0")
    return text


def check_device(text: str | None) -> None:
    """`Refused` if this machine, or this torch, lacks the device."""
    if text is None or text == "cpu":
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(text.partition(":")[2] or 0)
    if index >= count:
        found = f"{count} of them, counted from 0" if count else "none; `fastdecode env` tells more"
        raise Refused(f"--device {text}: there is no such GPU that torch can use: it finds {found}")


def check_weights(weights: str | None, device: str | None) -> None:
    """`Refused` if small weights are asked for on a GPU: they are read on the CPU only."""
    if weights is not None and device not in (None, "cpu"):
        raise Refused(f"--weights {weights} with --device {device}: small weights are for the CPU, leave out --device")


def check_is_chameleon(model: Any, name: str) -> None:
    """`Refused` for a model whose prompts nobody writes without a task."""
    from fastdecode.models.families import family_of

    family = family_of(model).name
    if family != "Chameleon":
        kind = type(model).__name__ if family == "text" else family
        article, task = "an" if kind[0] in "AEIOU" else "a", "chat" if family == "text" else "text-to-image"
        raise Refused(
            f"{name} is {article} {kind}, and without a task the command writes prompts of Chameleons, such as Anole: "
            f"give a task, such as --task {task}"
        )


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that say which model is loaded, and how."""
    model = command.add_argument_group("model")
    model.add_argument("--model", default="blocks", help="'blocks', a folder or a hub id (default: %(default)s)")
    model.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: the checkpoint's)"
    )
    model.add_argument(
        "--weights", choices=WEIGHTS, help="make the weights small, on the CPU (default: as in the checkpoint)"
    )
    model.add_argument("--device", type=device, help="cpu, cuda or cuda:N (default: cpu)")
    model.add_argument("--vqgan", type=file, help="Meta's vqgan.ckpt, for a checkpoint without decoder")
