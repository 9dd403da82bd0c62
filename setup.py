"""Builds the C++ parts with CMake and Ninja; everything else is in pyproject.toml."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
"""One module and one wheel serve every Python from 3.11 on. A Python without a GIL has no such stable interface: it
gets a module of its own.
"""


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt and installs lib/, include/ and _C into the package directory.

    That is the one under `build_lib`, and for an editable install also the source tree's
    `fastdecode/`; the module finds the library by `$ORIGIN/lib` in both.
    """

    def _cuda(self) -> str:
        """ON or OFF: whether libfastdecode_cuda.so is built too.

        It takes half a minute on two cores, and Python does not need it, so a machine with nvcc builds it
        only when FASTDECODE_CUDA=1 says so. Plain CMake builds it wherever there is nvcc.
        """
        wanted = os.environ.get("FASTDECODE_CUDA", "0")
        if wanted not in ("0", "1"):
            raise SystemExit(f"FASTDECODE_CUDA = {wanted}: must be 1, to build libfastdecode_cuda.so, or 0")
        return "ON" if wanted == "1" else "OFF"

    def _cmake_directory(self) -> Path:
        return (Path(self.build_temp) / "cmake").resolve()

    def _install(self, package: Path) -> None:
        old = (*package.glob("lib/libfastdecode*"), *package.glob("lib/**/*fastdecode_cuda*"), *package.glob("_C.*.so"))
        for file in old:  # of a build with other names or options
            file.unlink(missing_ok=True)
        command = ["cmake", "--install", str(self._cmake_directory()), "--prefix", str(package)]
        subprocess.run(command, check=True)

    def build_extension(self, ext: Extension) -> None:
        build = self._cmake_directory()
        build.mkdir(parents=True, exist_ok=True)
        options = [
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DFASTDECODE_PYTHON=ON",
            f"-DFASTDECODE_LIMITED_API={'ON' if LIMITED_API else 'OFF'}",
            f"-DFASTDECODE_CUDA={self._cuda()}",
            "-DFASTDECODE_SYMLINKS=OFF",  # a wheel has none
            "-DCMAKE_INSTALL_LIBDIR=lib",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *options]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        self._install(Path(self.get_ext_fullpath(ext.name)).resolve().parent)

    def copy_extensions_to_source(self) -> None:
        self._install(ROOT / "fastdecode")


setup(
    packages=[
        *find_packages(include=["fastdecode", "fastdecode.*"]),
        "fastdecode.triton_kernels",
    ],
    # Another package is imported as `triton_kernels`: ours exists only under `fastdecode`.
    package_dir={"fastdecode.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("fastdecode._C", sources=[], py_limited_api=LIMITED_API)],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
