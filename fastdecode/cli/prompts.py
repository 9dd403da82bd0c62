"""The prompts of ``fastdecode generate`` and their pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdecode.cli.arguments import Refused, shown

if TYPE_CHECKING:
    from PIL import Image


def read_prompts(given: Sequence[str], file: Path | None, *, needed: bool = True) -> list[str]:
    """The prompts of ``--prompt``, then those of ``--prompts``: one per line, empty lines skipped, ``-`` for standard
    input. `Refused` if there are none or the file cannot be read; without any, and none ``needed``, an empty one.
    """
    prompts = [*given]
    if file is not None:
        prompts += [line.strip() for line in _text(file).splitlines() if line.strip()]
        if len(prompts) == len(given):
            raise Refused(f"--prompts {shown(file)} holds no prompt: write one per line")
    if not prompts and not needed:
        return [""]
    if not prompts:
        raise Refused("give --prompt TEXT, which may be repeated, or --prompts FILE")
    for number, prompt in enumerate(prompts):
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise Refused(f"prompt {number + 1} is not text in UTF-8: {prompt[:60]!a}")
    return prompts


def _text(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.read()
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"--prompts {shown(file)} is not text in UTF-8") from None
    except OSError as error:
        raise Refused(f"--prompts {shown(file)} cannot be read: {error.strerror}") from None


def open_pictures(files: Sequence[Path]) -> list[Image.Image]:
    """Read the pictures of ``--image`` as RGB. `Refused` names a file that is not a picture or is too large."""
    from fastdecode.models.picture_files import picture_of

    try:
        return [picture_of(file, "--image") for file in files]
    except ValueError as error:
        raise Refused(str(error)) from None
