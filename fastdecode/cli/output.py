"""An output folder that gets all its files or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder. Its files move to ``target`` when the block ends; they are deleted if it fails.

    Files of the same name in ``target`` are replaced; others stay. ``ValueError`` if ``target`` is a file or cannot
    be written.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"the output {target} is a file; name a folder")
    made = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target))
    except OSError as error:
        raise ValueError(f"the output folder {target} cannot be written: {error.strerror}") from error
    try:
        yield draft
        for file in sorted(draft.iterdir()):
            os.replace(file, target / file.name)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    draft.rmdir()
