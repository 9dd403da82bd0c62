"""Where the C headers and the library are, for linkers."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """Directory to add to the include path: it holds `fastdecode/fastdecode.h`.

    Raises FileNotFoundError if the package was used without being built.
    """
    return _found(_PACKAGE / "include")


def get_library() -> str:
    """Path of `libfastdecode.so`, which needs nothing but libc.

    Raises FileNotFoundError if the package was used without being built.
    """
    return _found(_PACKAGE / "lib" / "libfastdecode.so")


def _found(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the package (pip install .) to build it")
    return str(path)
