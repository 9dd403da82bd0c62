"""What a command does in its own process before the libraries are imported: less to import, and none of their noise.

Only ``fastdecode …`` and ``python -m fastdecode …`` do this. A program that imports fastdecode, or calls
`fastdecode.cli.main` with arguments, is left as it is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

OPTIONAL_OF_TRANSFORMERS = ("scipy", "sklearn", "torchao")
"""Packages that transformers imports wherever they are installed. Models with ordinary weights need none."""

NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that warn while torchao is imported, whatever one does with it."""

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")


def silence() -> None:
    """Silences what libraries say while they are imported."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("torchao", "triton", "torch"):
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def hide_unneeded(model: str) -> None:
    """Hides the packages that decoding a model does without.

    model  what the command's ``--model`` names. From a hub it may be quantised, so then nothing of transformers' is
           hidden
    """
    if _has_ordinary_weights(model):
        _hide(*OPTIONAL_OF_TRANSFORMERS)
    # torch imports triton for torch.compile, which needs it on a GPU only.
    wants_triton = "TRITON_INTERPRET" in os.environ or os.environ.get("FASTDECODE_BACKEND") == "triton"
    if not wants_triton and not any(map(os.path.exists, GPU_DEVICES)):
        _hide("triton")


def _hide(*names: str) -> None:
    """Python then says of these packages that they are not installed."""
    modules: dict[str, Any] = sys.modules  # None stands for a package that cannot be imported
    for name in names:
        modules.setdefault(name, None)


def _has_ordinary_weights(model: str) -> bool:
    if model == "blocks":
        return True
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # of a hub, or no model; loading it will tell
    return isinstance(config, dict) and "quantization_config" not in config
