"""Which optional part of the package a missing module belongs to: what to install."""

from __future__ import annotations

EXTRAS = {
    "transformers": "hf",
    "tokenizers": "hf",
    "safetensors": "hf",
    "huggingface_hub": "hf",
    "accelerate": "hf",
    "PIL": "hf",
    "tqdm": "hf",
    "gguf": "gguf",
    "pyarrow": "jobs",
    "ray": "ray",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "triton": "gpu",
    "matplotlib": "train",
}
"""Module → extra of `pip install 'fastdecode[extra]'`."""


def missing_package(what: str, error: ImportError) -> ImportError:
    """The error to raise instead of `error`: one sentence that says which extra ``what`` needs, where we know it.

    An error that is not about a missing package of an extra is returned as it is.
    """
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return error
    return ModuleNotFoundError(
        f"{what} needs the package {module}, which is not installed: pip install 'fastdecode[{EXTRAS[module]}]'",
        name=error.name,
    )
