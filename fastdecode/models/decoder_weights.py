"""The weights of the VQ decoder in a checkpoint's files: safetensors, or what torch saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from fastdecode.models.vq_decoder import BEFORE

PREFIXES = ("model.vqmodel.", "vqmodel.")
DECODER = "decoder."
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
"""Options of ``from_pretrained`` that say where the files of a checkpoint are."""


class Weights(NamedTuple):
    """``decoder``: by taming's names. ``before``: what of `BEFORE` was found, in the dtype of the file."""

    decoder: dict[str, Tensor]
    before: dict[str, Tensor]


class Files:
    """The files of a checkpoint: of a folder, or of a hub repository. ``options``: those of `HUB_OPTIONS`."""

    def __init__(self, source: str | Path, options: Mapping[str, Any], variant: str | None = None) -> None:
        self.source, self.options, self.variant = source, dict(options), variant

    def find(self, name: str) -> Path | None:
        """The local path of a file; None if there is none of that name."""
        if Path(self.source).is_dir():
            path = Path(self.source) / (self.options.get("subfolder") or "") / name
            return path if path.is_file() else None
        options = {key: value for key, value in self.options.items() if value is not None}
        found = cached_file(str(self.source), name, _raise_exceptions_for_missing_entries=False, **options)
        return None if found is None else Path(found)

    def find_variant(self, name: str) -> Path | None:
        """As `find`, for a file of weights or their index, of the variant if there is one."""
        if self.variant:
            stem, _, suffix = name.rpartition(".")
            found = self.find(f"{stem}.{self.variant}.{suffix}")
            if found is not None:
                return found
        return self.find(name)

    def index(self, name: str) -> dict[str, str] | None:
        """The weights that an index lists, each with its file; None without such an index.

        ``ValueError`` if it cannot be read, or lists a file that is not in the checkpoint's folder.
        """
        path = self.find_variant(name)
        if path is None:
            return None
        try:
            listed = json.loads(path.read_text())["weight_map"]
            files = set(listed.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is no index of weights: {type(error).__name__} {error}") from error
        for file in files:
            if not isinstance(file, str) or _leaves(file):
                raise ValueError(f"{name} lists {file!r}, which is not in the checkpoint's folder")
        return dict(listed)

    def check(self) -> None:
        """``ValueError`` if an index lists a file that is not in the checkpoint's folder."""
        self.index(INDEX)
        self.index(TORCH_INDEX)


def _leaves(file: str) -> bool:
    paths = (PurePosixPath(file), PureWindowsPath(file))
    return not file or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def decoder_weights(files: Files) -> Weights:
    """The weights of the VQ decoder; none if the checkpoint has none. Files of torch are read as plain weights only."""
    for single, index, read in ((WEIGHTS, INDEX, _from_safetensors), (TORCH_WEIGHTS, TORCH_INDEX, _from_torch)):
        listed = files.index(index)
        if listed is None:
            path = files.find_variant(single)
            paths = [] if path is None else [path]
        else:
            names = sorted({file for key, file in listed.items() if _name(key) is not None})
            paths = [path for path in map(files.find, names) if path is not None]
        found = {name: tensor for path in paths for name, tensor in read(path)}
        decoder = {key.removeprefix(DECODER): value for key, value in found.items() if key.startswith(DECODER)}
        if decoder:
            return Weights(decoder, {key: found[key] for key in BEFORE if key in found})
    return Weights({}, {})


def _name(key: str) -> str | None:
    """The name within the VQ model of a weight that is read; None for others."""
    for prefix in PREFIXES:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            return name if name.startswith(DECODER) or name in BEFORE else None
    return None


def _from_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as stored:
        for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
            name = _name(key)
            if name is not None:
                yield name, stored.get_tensor(key)


def _from_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    for key, value in read_torch(path, str(path.name)).items():
        name = _name(key)
        if name is not None:
            yield name, value


def vqgan_weights(path: Path) -> Weights:
    """The decoder in a taming-transformers checkpoint (``decoder.*`` of its ``state_dict``)."""
    if not path.is_file():
        raise FileNotFoundError(f"vqgan={path}: there is no such file")
    stored = read_torch(path, f"vqgan={path}")
    state = stored.get("state_dict", stored)
    if not isinstance(state, dict):
        state = {}
    weights = {k.removeprefix(DECODER): v for k, v in state.items() if isinstance(k, str) and k.startswith(DECODER)}
    if not weights:
        raise ValueError(f"vqgan={path} has no decoder.* weights; Meta's vqgan.ckpt has")
    return Weights(weights, {key: state[key] for key in BEFORE if key in state})


def read_torch(path: Path, name: str) -> dict[str, Any]:
    """What torch saved at ``path``, if it is a dict of plain weights. ``ValueError`` for anything else: nothing of it
    is run.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{name} is not a torch checkpoint of plain weights, and may run code when it is read "
            f"({type(error).__name__}): get the checkpoint as safetensors"
        ) from error
    return stored if isinstance(stored, dict) else {}


def path_of(vqgan: Any) -> Path:
    """``TypeError`` unless ``vqgan`` is a path."""
    if not isinstance(vqgan, (str, os.PathLike)):
        raise TypeError(f"vqgan is a {type(vqgan).__name__}: give the path of Meta's vqgan.ckpt")
    return Path(vqgan).expanduser()
