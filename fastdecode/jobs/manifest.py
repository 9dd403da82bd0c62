"""What a job is, as a file: with another model, other parameters or other rows it would be another job."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import LOCK, draft_of, writing, written_file
from fastdecode.jobs.rows import Row, digest
from fastdecode.jobs.told import told
from fastdecode.jobs.worker import Job
from fastdecode.models.checkpoint import Checkpoint
from fastdecode.models.loading import EMBEDDED

NAME = "manifest.json"
FORMAT = 1
CHECKPOINT = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.ckpt", "*.jinja")
"""The files of a checkpoint."""

WORDS = {
    "model": "another model or other weights",
    "parameters": "other parameters",
    "input": "other rows",
    "output": "another form of output",
    "shard": "another shard of the rows",
    "versions": "other versions",
}


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("fastdecode", "torch", "transformers")}


def hashes_of(job: Job) -> dict[str, str]:
    """What `files_of` says of the job's checkpoint, and the hash of its ``vqgan``."""
    vqgan = {} if job.vqgan is None else {"vqgan": hash_of(Path(job.vqgan))}
    return {**files_of(job.model), **vqgan}


def files_of(model: str) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint that a document depends on, by name; of one on the hub, its revision.
    ``FileNotFoundError`` for what is neither.
    """
    folder = EMBEDDED.get(model, Path(model).expanduser())
    if not folder.is_dir():
        checkpoint = Checkpoint(model, {})
        checkpoint.config()
        file = checkpoint.file("config.json")
        return {} if file is None else {"revision": file.parent.name}
    files = sorted({file for pattern in CHECKPOINT for file in folder.glob(pattern) if file.is_file()})
    return {file.name: hash_of(file) for file in files}


def hash_of(file: Path) -> str:
    stat = file.stat()
    return _hash_of(file, stat.st_size, stat.st_mtime_ns)


@cache
def _hash_of(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe(job: Job, rows: Sequence[Row], per_tar: int | None, shard: tuple[int, int]) -> dict[str, Any]:
    """The manifest of a job: what its items depend on."""
    named = {"model": job.model, "vqgan": job.vqgan}  # the files may lie elsewhere next time
    model = {name: getattr(job, name) for name in ("dtype", "weights", "like")} | {"device": job.device or "cpu"}
    engine: dict[str, Any] = {"deterministic": job.deterministic}
    if job.deterministic is False:  # else they change no token
        engine |= {"pages": job.pages, "max_rows": job.max_rows}
    return {
        "format": FORMAT,
        "named": named,
        "model": {**model, "files": hashes_of(job)},
        "parameters": {"options": told(job.options), "usual": told(job.usual), "seed": job.seed, "engine": engine},
        "input": {"rows": len(rows), "sha256": digest(rows)},
        "output": {"items per tar": per_tar},
        "shard": {"number": shard[0], "of": shard[1]},
        "versions": versions(),
    }


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], target: Path, any_version: bool = False) -> None:
    """``ValueError`` says in what the job in ``target`` differs from this one."""
    if old.get("format") != FORMAT:
        raise ValueError(f"{target / NAME} is not as this version of fastdecode writes it: name another output folder")
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
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
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
            other = next((name for name in found if name not in (draft_of(file).name, LOCK)), None)
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


def folder_of_shard(target: Path, shard: tuple[int, int]) -> Path:
    """Where a shard of the job in ``target`` is written."""
    number, count = shard
    return target if count == 1 else target / f"shard-{number}-of-{count}"


def check_shards(target: Path, wanted: Mapping[str, Any], any_version: bool = False) -> None:
    """``ValueError`` if ``target`` holds something else than shards of the job ``wanted``."""
    number, count = wanted["shard"]["number"], wanted["shard"]["of"]
    own = {folder_of_shard(target, (each, count)).name: each for each in range(1, count + 1)}
    found = sorted(target.iterdir()) if target.is_dir() else []
    for path in found:
        if path.name not in own:
            raise ValueError(
                f"the output folder {target} holds {path.name}, which is none of {count} shards: name another output "
                "folder"
            )
        if own[path.name] != number and (path / NAME).is_file():
            shard = {"number": own[path.name], "of": count}
            check_target(path, {**wanted, "shard": shard}, any_version)


@contextmanager
def held(target: Path, wanted: Mapping[str, Any], any_version: bool = False) -> Iterator[None]:
    """The job ``wanted`` in ``target``, begun or gone on with, which no other process works on meanwhile.
    ``ValueError`` as of `check_target`, and if another process works on it.
    """
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        folder = os.open(target, os.O_RDONLY)
    lock = None
    try:
        lock = _lock(folder, target)
        if not check_target(target, wanted, any_version):
            with writing(target), written_file(target / NAME) as draft:
                draft.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        yield
    finally:
        if lock is not None:
            (target / LOCK).unlink(missing_ok=True)
            os.close(lock)
        os.close(folder)


def _lock(folder: int, target: Path) -> int | None:
    """Lock ``folder``; where folders cannot be locked, as on NFS, a file in it, which is returned."""
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            raise
        except OSError:
            file = os.open(target / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(file)
                raise
            return file
    except BlockingIOError:
        raise ValueError(
            f"another process works on the job in {target}: wait for it, or give each a shard of the rows with "
            "--shard I/N"
        ) from None
    except OSError:
        return None  # this file system has no locks
