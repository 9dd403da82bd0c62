"""Files and folders that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Begins the names of files and folders that are not whole yet, or that are being removed."""


LOCK = f"{UNFINISHED}lock"
"""What is locked where folders cannot be."""


class CannotWrite(RuntimeError):
    """The disk is full, or the like. What was whole before stays."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """`CannotWrite` in place of the system's errors, for the job in ``target``."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"the output folder {target} cannot be written: {error.strerror or error}; the items that are there stay, "
            "and the same command goes on from there"
        ) from error


def draft_of(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder with these files. It must not be there yet. The disk is not waited for."""
    draft = str(draft_of(folder))
    try:  # from before there is a folder: Ctrl-C may come when it has just been made
        os.mkdir(draft)
        for name, content in files.items():
            with open(f"{draft}/{name}", "xb", buffering=0) as file:
                _write_all(file, content)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def append(file: Path, content: bytes, size: int) -> None:
    """Add ``content`` to a file of ``size`` bytes, or to none. If it fails, the file is as long as before. The disk is
    not waited for.
    """
    with open(file, "ab", buffering=0) as opened:
        try:
            _write_all(opened, content)
        except BaseException:
            opened.truncate(size)
            raise


def _write_all(file: FileIO, content: bytes) -> None:
    """``write`` may write less: it tells why it does no more the next time."""
    written = file.write(content)
    while written < len(content):
        written += file.write(content[written:])


@contextmanager
def written_file(file: Path) -> Iterator[Path]:
    """Another name, to write the contents of ``file`` to. They replace it when the block ends and they are on the disk;
    if it fails, ``file`` stays as it was.
    """
    draft = draft_of(file)
    try:
        yield draft
        synchronise(draft)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    synchronise(file.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there: all of it, whatever stops the process meanwhile."""
    if folder.is_dir():
        os.rename(folder, draft_of(folder))
        shutil.rmtree(draft_of(folder))


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was stopped left in ``folder``."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.name == LOCK:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
