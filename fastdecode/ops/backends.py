"""Which backends can run on this machine, why the others cannot, and which one a call uses.

    reference   PyTorch, any device: the definition that the others reproduce
    cpu         C++, tensors on the CPU
    triton      Triton, tensors on a GPU; on the CPU in Triton's interpreter (TRITON_INTERPRET=1)
    cuda        libfastdecode_cuda.so, tensors on an NVIDIA GPU: sample, advance and sample_advance

The environment variable FASTDECODE_BACKEND, read at import, names the backend that `backend=None`
means; a decode step's operations, which "cuda" does not have, then run as if it were not set.
"""

from __future__ import annotations

import os
import threading
import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from fastdecode.ops import cuda_library

BACKENDS = ("reference", "cpu", "triton", "cuda")
BY_NAME = ("cuda",)
"""Backends that run only where they are named: no measurement says that they are faster than the others."""

ENVIRONMENT_VARIABLE = "FASTDECODE_BACKEND"

_default = os.environ.get(ENVIRONMENT_VARIABLE)

_C: ModuleType | None
try:
    from fastdecode import _C as _C  # type: ignore[attr-defined, no-redef, unused-ignore]

    _C_ERROR = ""
except ImportError as error:
    _C = None
    _C_ERROR = str(error)

_last = threading.local()


def core() -> ModuleType:
    """The compiled module. Raises ImportError with the reason if it could not be loaded."""
    if _C is None:
        raise ImportError(f"fastdecode._C cannot be loaded: {_C_ERROR}")
    return _C


def _interpreted() -> bool:
    """Whether Triton, once imported, will interpret its kernels: it reads this variable then."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _triton_unavailable(interpreted: bool) -> str | None:
    if not interpreted and not torch.cuda.is_available():
        return "no GPU that torch can use, and TRITON_INTERPRET=1 is not set"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def unavailable(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None if it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return None if _C is not None else f"fastdecode._C cannot be loaded: {_C_ERROR}"
    if backend == "triton":
        return _triton_unavailable(_interpreted())
    if backend == "cuda":
        return cuda_library.cuda_unavailable()
    return f"unknown; must be one of {', '.join(BACKENDS)}"


def available_backends() -> list[str]:
    """Names of the backends that can run on this machine."""
    return [name for name in BACKENDS if unavailable(name) is None]


@cache
def _warn_of_the_reference(device_type: str) -> None:
    """Say once that the slow reference runs, and why."""
    faster = "cpu" if device_type == "cpu" else "triton"
    warnings.warn(
        f"fastdecode runs its reference in PyTorch, which gives the same tokens many times slower, because the backend "
        f"{faster} cannot run: {unavailable(faster)}. Reinstall the package to build what is missing, or ask for "
        "backend='reference' (or FASTDECODE_BACKEND=reference) to accept it",
        RuntimeWarning,
        stacklevel=4,
    )


def _fastest(device_type: str) -> str:
    if device_type == "cpu" and _C is not None:
        return "cpu"
    if device_type == "cuda" and unavailable("triton") is None:
        return "triton"
    if device_type in ("cpu", "cuda"):
        _warn_of_the_reference(device_type)
    return "reference"


def choose_backend(backend: str | None, device_type: str) -> str:
    """The backend to run for tensors on a device.

    None picks FASTDECODE_BACKEND if it is set, else the fastest that can run; a RuntimeWarning says once if that is the
    reference, since a library is missing. Raises ValueError, with the reason, for a named backend that cannot run.
    """
    source = "backend"
    if backend is None:
        backend, source = _default or None, ENVIRONMENT_VARIABLE  # empty: as if it were not set
    if backend is not None and (not isinstance(backend, str) or not backend):
        raise ValueError(f"{source} = {backend!r}: must be one of {', '.join(BACKENDS)}, or None")
    if backend is None:
        return _fastest(device_type)
    if backend not in BACKENDS:
        raise ValueError(f"{source} = {backend!r}: {unavailable(backend)}")
    reason = unavailable(backend)
    if reason is not None:
        raise ValueError(f"{source} = {backend!r}: not available: {reason}")
    if backend == "cpu" and device_type != "cpu":
        raise ValueError(f"{source} = 'cpu': needs CPU tensors, logits are on {device_type}")
    if backend == "triton" and device_type != "cuda" and not (device_type == "cpu" and _interpreted()):
        raise ValueError(f"{source} = 'triton': needs tensors on a GPU, logits are on {device_type}")
    if backend == "cuda" and device_type != ("cpu" if cuda_library.ON_HOST else "cuda"):
        raise ValueError(f"{source} = 'cuda': needs tensors on a GPU, logits are on {device_type}")
    return backend


def choose_step_backend(backend: str | None, device: torch.device) -> str:
    """As `choose_backend`, for a decode step's operations: ValueError for a named backend that does not have them."""
    chosen = choose_backend(backend, device.type)
    if chosen != "cuda":
        return chosen
    if backend is None:  # the environment variable names it
        return _fastest(device.type)
    raise ValueError(f"backend = {backend!r}: has no such operation; must be cpu, triton or reference")


def last_backend() -> str | None:
    """The backend of this thread's last operation; None before the first."""
    return getattr(_last, "backend", None)


def record_backend(backend: str) -> None:
    """Stores the backend of this operation for `last_backend`."""
    _last.backend = backend
