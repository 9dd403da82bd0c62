"""Where the C headers and the library are, for linkers."""

from __future__ import annotations

import shlex
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY = "libfastdecode.so.2"
"""Beside it `libfastdecode.so` is a text file by which linkers find it, since a wheel holds no symbolic links."""


def get_include() -> str:
    """Directory to add to the include path: it holds `fastdecode/fastdecode.h`.

    Raises FileNotFoundError if the package was used without being built.
    """
    return _found(_PACKAGE / "include")


def get_library() -> str:
    """Path of `libfastdecode.so.2`, which needs nothing but libc.

    Raises FileNotFoundError if the package was used without being built.
    """
    return _found(_PACKAGE / "lib" / _LIBRARY)


def compiler_flags() -> str:
    """What a C or C++ compiler needs: ``-I…``. Words with special characters are quoted, as for a shell."""
    return shlex.join([f"-I{get_include()}"])


def linker_flags() -> str:
    """What a linker needs to find the library, then and at run time: ``-L… -lfastdecode -Wl,-rpath,…``.

    Words with special characters are quoted, as for a shell. `-Wl` takes a comma as the end of a word, so a path
    with one is passed by `-Xlinker`.
    """
    folder = Path(get_library()).parent
    return shlex.join([f"-L{folder}", "-lfastdecode", *_run_time_path(folder)])


def cmake_prefix() -> str:
    """What CMAKE_PREFIX_PATH needs, for ``find_package(fastdecode)``."""
    return str(Path(get_library()).parent.parent)


def _run_time_path(folder: Path) -> list[str]:
    if "," in str(folder):
        return ["-Xlinker", "-rpath", "-Xlinker", str(folder)]
    return [f"-Wl,-rpath,{folder}"]


def _found(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the package (pip install .) to build it")
    return str(path)
