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


def compiler_flags() -> str:
    """What a C or C++ compiler needs: ``-I…``."""
    return f"-I{get_include()}"


def linker_flags() -> str:
    """What a linker needs to find the library, then and at run time: ``-L… -lfastdecode -Wl,-rpath,…``."""
    folder = Path(get_library()).parent
    return f"-L{folder} -lfastdecode -Wl,-rpath,{folder}"


def cmake_prefix() -> str:
    """What CMAKE_PREFIX_PATH needs, for ``find_package(fastdecode)``."""
    return str(Path(get_library()).parent.parent)


def _found(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the package (pip install .) to build it")
    return str(path)
