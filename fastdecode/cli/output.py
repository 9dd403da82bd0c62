"""An output folder that gets all its files or none, and does not mix them with those of an earlier run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdecode.cli.arguments import shown


def list_name(command: str) -> str:
    """The file, in an output folder, that names the files which ``command`` wrote there."""
    return f".fastdecode-{command}"


def written(target: Path, command: str) -> list[str]:
    """The names of the files in ``target`` that an earlier run of ``command`` wrote, sorted."""
    try:
        listed = (target / list_name(command)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    # Only plain names: whatever the list says, nothing outside the folder is ours.
    return sorted({name for name in listed if Path(name).name == name and (target / name).is_file()})


def check_folder(target: Path, command: str, names: re.Pattern[str], overwrite: bool) -> None:
    """Check that files called ``names`` can be written into ``target``. Changes nothing.

    ValueError if ``target`` is a file or has an impossible name, if it holds files of an earlier run and ``overwrite``
    was not given, or if it holds such files that no earlier run is known to have written.
    """
    _check_is_folder(target)
    if not target.is_dir():
        return
    there = sorted(file.name for file in target.iterdir() if names.fullmatch(file.name))
    own = written(target, command)
    foreign = [name for name in there if name not in own]
    if foreign:
        raise ValueError(
            f"{target / foreign[0]} is there already, and no earlier run is known to have written it: "
            "move it away, or name another output folder"
        )
    if own and not overwrite:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        raise ValueError(
            f"the output folder {target} holds {own[0]}{more} of an earlier run: name another folder, or give "
            "--overwrite, which removes those files"
        )


@contextmanager
def whole_folder(target: Path, command: str) -> Iterator[Path]:
    """A temporary folder. Its files move to ``target`` when the block ends; they are deleted if it fails.

    In ``target`` they replace the files that an earlier run of ``command`` wrote, and files of the same name; other
    files stay. ``ValueError`` if ``target`` is a file or cannot be written.
    """
    _check_is_folder(target)
    made = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target))
    except OSError as error:
        _remove_empty(made)
        raise _unwritable(target, error) from error
    try:
        yield draft
        _move(draft, target, command)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        _remove_empty(made)
        raise
    draft.rmdir()


def _move(draft: Path, target: Path, command: str) -> None:
    older, new = written(target, command), sorted(file.name for file in draft.iterdir())
    # First both: whatever stops this function, each file that it wrote is listed.
    _list(target, command, sorted({*older, *new}))
    for name in new:
        os.replace(draft / name, target / name)
    for name in set(older) - set(new):
        (target / name).unlink()
    _list(target, command, new)


def _list(target: Path, command: str, names: list[str]) -> None:
    (target / list_name(command)).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _check_is_folder(target: Path) -> None:
    try:
        there = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
        for part in target.absolute().relative_to(there.absolute()).parts:  # folders that will be made
            (there / part).exists()  # OSError if no file can have that name
        if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(target, error) from error
    if not there.is_dir():
        raise ValueError(f"the output folder {shown(target, 200)} cannot be made: {shown(there, 200)} is a file")


def _unwritable(target: Path, error: OSError) -> ValueError:
    return ValueError(f"the output folder {shown(target)} cannot be written: {error.strerror}")


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
