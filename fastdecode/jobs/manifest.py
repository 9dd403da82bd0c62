"""What a job is, as a file: with another model, other parameters or other rows it would be another job."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastdecode.jobs.store import UNFINISHED, write_file
from fastdecode.models.checkpoint import Checkpoint
from fastdecode.models.loading import EMBEDDED

NAME = "manifest.json"
FORMAT = 1
READ_AT_ONCE = 1 << 22
CHECKPOINT = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.ckpt", "*.jinja")
"""The files of a checkpoint."""

WORDS = {
    "model": "another model or other weights",
    "parameters": "other parameters",
    "input": "other rows",
    "output": "another form of output",
    "part": "another part of the rows",
    "versions": "other versions",
}


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("fastdecode", "torch", "transformers")}


def files_of(model: str) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint that a document depends on, by name; of one on the hub, its revision."""
    folder = EMBEDDED.get(model, Path(model).expanduser())
    if not folder.is_dir():
        config = Checkpoint(model, {}).file("config.json")
        return {} if config is None else {"revision": config.parent.name}
    files = sorted({file for pattern in CHECKPOINT for file in folder.glob(pattern) if file.is_file()})
    return {file.name: hash_of(file) for file in files}


def hash_of(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as source:
        while block := source.read(READ_AT_ONCE):
            found.update(block)
    return found.hexdigest()


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], target: Path, any_version: bool = False) -> None:
    """``ValueError`` says in what the job in ``target`` differs from this one."""
    if old.get("format") != FORMAT:
        raise ValueError(f"{target / NAME} is of another version of fastdecode: name another output folder")
    for part, words in WORDS.items():
        if part == "versions" and any_version:
            continue
        differing = _first_difference(old.get(part), new.get(part), part)
        if differing is not None:
            name, before, now = differing
            advice = "name another output folder"
            if part == "versions":
                advice += ", or give --any-version: its tokens may differ from those that are there"
            raise ValueError(
                f"the output folder {target} holds a job with {words}: {name} was {_cut(before)} and is {_cut(now)}: "
                f"{advice}"
            )


def _first_difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _first_difference(old.get(key), new.get(key), f"{name}.{key}")
            if found is not None:
                return found
        return None
    return None if old == new else (name, old, new)


def _cut(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_target(target: Path, wanted: Mapping[str, Any], any_version: bool = False) -> bool:
    """Whether ``target`` holds the job ``wanted`` already. ``ValueError`` if it holds another one, or anything else, or
    cannot be written. Changes nothing.
    """
    file = target / NAME
    try:
        there = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise ValueError(f"the output folder {target} cannot be made: {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"the output folder {target} cannot be written: {os.strerror(errno.EACCES)}")
        if not file.is_file():
            found = sorted(each.name for each in target.iterdir()) if target.is_dir() else []
            other = next((name for name in found if not name.startswith(UNFINISHED)), None)
            if other is None:
                return False
            raise ValueError(
                f"the output folder {target} holds {other} and no {NAME}, so it is of no job: name an empty folder"
            )
        text = file.read_bytes()
    except OSError as error:
        raise ValueError(f"the output folder {target} cannot be used: {error.strerror}") from None
    try:
        old = json.loads(text)
    except ValueError:
        old = None
    if not isinstance(old, dict):
        raise ValueError(f"{file} does not say what job this is: name another output folder")
    check_same(old, json.loads(json.dumps(wanted)), target, any_version)
    return True


@contextmanager
def held(target: Path, wanted: Mapping[str, Any], any_version: bool = False) -> Iterator[None]:
    """The job ``wanted`` in ``target``, begun or gone on with, which no other process works on meanwhile.
    ``ValueError`` as of `check_target`, and if another process works on it.
    """
    if not check_target(target, wanted, any_version):
        target.mkdir(parents=True, exist_ok=True)
        write_file(target / NAME, (json.dumps(wanted, indent=1, ensure_ascii=False) + "\n").encode())
    with open(target / NAME, "r+b") as file:
        _lock(file, target)
        yield


def _lock(file: BinaryIO, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process works on the job in {target}: wait for it, or give each a part with --shard I/N"
        ) from None
    except OSError:
        pass  # a file system without locks


def part_of(text: str) -> tuple[int, int]:
    """I/N, counted from 1, as ``--shard`` has it."""
    number, _, count = text.partition("/")
    try:
        found = int(number), int(count)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"{text!r} is not a part: give I/N such as 1/8, counted from 1")
    return found
