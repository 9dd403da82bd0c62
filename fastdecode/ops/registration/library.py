"""How an operation is registered: with a schema, a function for every device, and the shapes of its results.

libfastdecode_torch.so registers the same operations in C++, for the CPU, in programs without Python. Whichever is
loaded first defines the schemas. If that was the C++ library, its functions run on the CPU and ours on other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("fastdecode", "FRAGMENT")


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Registers `torch.ops.fastdecode.<name>`.

        schema  arguments and results, as "(Tensor x) -> Tensor"
        run     called with the operation's arguments
        fake    the same with tensors that have shapes and no values

    ImportError if the operation has another schema already.
    """
    ours = str(torch._C.parse_schema(f"fastdecode::{name}{schema}"))
    found = [str(known) for known in torch._C._jit_get_schemas_for_operator(f"fastdecode::{name}")]
    if not found:
        _library.define(name + schema)
    elif found != [ours]:
        raise ImportError(
            f"torch.ops.fastdecode.{name} is registered already as {found[0]}, by a libfastdecode_torch.so of another "
            f"version; this fastdecode has {ours}. Load libraries of one version"
        )
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdecode::{name}", fake, lib=_library)
