"""The files of a checkpoint, in a folder or on the hub: its config, and the weights of its VQ decoder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from fastdecode.models.vq_decoder import BEFORE_DECODER

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
DECODER_PREFIXES = ("model.vqmodel.decoder.", "vqmodel.decoder.")
BEFORE_PREFIXES = ("model.vqmodel.", "vqmodel.")
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
"""Options of ``from_pretrained`` that say where files come from: they hold for every file of a checkpoint."""


def in_short(error: BaseException) -> str:
    """The message of ``error`` on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


@dataclass
class DecoderWeights:
    """``decoder``: weights of the VQ decoder, with keys relative to it; empty if the checkpoint has none. ``before``:
    the `BEFORE_DECODER` weights, as they are stored. ``encoder``: all others, with keys relative to the VQ model; only
    Meta's own file gives them.
    """

    decoder: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)

    def take(self, key: str, read: Callable[[], Tensor]) -> None:
        prefix = next((p for p in DECODER_PREFIXES if key.startswith(p)), None)
        if prefix is not None:
            self.decoder[key.removeprefix(prefix)] = read()
        for prefix in BEFORE_PREFIXES:
            if key.startswith(prefix) and key.removeprefix(prefix) in BEFORE_DECODER:
                self.before[key.removeprefix(prefix)] = read()


class Checkpoint:
    """A folder, or a repository of the hub, with the options of ``from_pretrained`` that say where its files are."""

    def __init__(self, source: str | Path, options: Mapping[str, Any]) -> None:
        self.source = source
        self.hub = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
        self.variant = options.get("variant")

    def file(self, name: str) -> Path | None:
        """The local path of a file; None if the checkpoint has no such file. OSError if the hub cannot be asked."""
        if Path(self.source).is_dir():
            path = Path(self.source) / self.hub.get("subfolder", "") / name
            return path if path.is_file() else None
        found = cached_file(str(self.source), name, _raise_exceptions_for_missing_entries=False, **self.hub)
        return None if found is None else Path(found)

    def config(self) -> dict[str, Any]:
        """The contents of config.json. If it cannot be read, ValueError or FileNotFoundError says why."""
        source = self.source
        try:
            path = self.file("config.json")
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{source} is neither a folder here nor a repository that the hub gives us: {in_short(error)}"
            ) from error
        if path is None:
            where = "" if Path(source).is_dir() else ", or the hub could not be reached, or does not give it to us"
            inside = f" in its subfolder {self.hub['subfolder']}" if "subfolder" in self.hub else ""
            raise FileNotFoundError(
                f"{source} has no config.json{inside}: it is not a model in Hugging Face format{where}"
            )
        config = _read_json(path)
        if not isinstance(config, dict):
            raise ValueError(f"{path} holds {type(config).__name__}, not the settings of a model")
        return config

    def check_indexes(self) -> None:
        """``ValueError`` if an index of weights names a file outside the checkpoint, or is no index."""
        for name in (SAFETENSORS, PICKLED):
            path = self.file(self._index(name))
            if path is not None:
                _listed(path)

    def decoder_weights(self) -> DecoderWeights:
        """The weights that painting needs, from the first of these that has a VQ decoder: safetensors,
        pytorch_model.bin.
        """
        first: DecoderWeights | None = None
        for name in (SAFETENSORS, PICKLED):
            found = DecoderWeights()
            for path in self._files(name, _painting):
                for key, read in _stored(path):
                    found.take(key, read)
            if found.decoder:
                return found
            first = first or found
        assert first is not None
        return first

    def _index(self, name: str) -> str:
        return self._variant(f"{name}.index.json") if self.variant is None else f"{name}.index.{self.variant}.json"

    def _variant(self, name: str) -> str:
        if self.variant is None:
            return name
        stem, _, kind = name.rpartition(".")
        return f"{stem}.{self.variant}.{kind}"

    def safetensors(self) -> dict[str, Path]:
        """The names of all weights that are stored in safetensors, and the files that hold them; empty if there are
        none. Only headers are read.
        """
        found: dict[str, Path] = {}
        for path in self._files(SAFETENSORS, lambda key: True):
            with safe_open(path, "pt") as stored:
                found |= dict.fromkeys(stored.keys(), path)
        return found

    def _files(self, name: str, wanted: Callable[[str], bool]) -> Iterator[Path]:
        """The files that hold the wanted weights: one whole file, or those that an index names."""
        names = [self._variant(name)]
        index = self.file(self._index(name)) if self.file(names[0]) is None else None
        if index is not None:
            listed = _listed(index)
            names = sorted({file for key, file in listed.items() if wanted(key)})
        for file in names:
            path = self.file(file)
            if path is not None:
                yield path


def _painting(key: str) -> bool:
    """Whether painting needs the weight of this name."""
    return key.startswith((*DECODER_PREFIXES, *(p + b for p in BEFORE_PREFIXES for b in BEFORE_DECODER)))


def _listed(index: Path) -> dict[str, str]:
    """Names of weights and of the files that hold them."""
    content = _read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{index} is no index of weights: its weight_map must give each weight the name of a file")
    for key, file in listed.items():
        if PurePath(file).is_absolute() or os.pardir in PurePath(file).parts or "\\" in file:
            raise ValueError(
                f"{index} says that {key} is in {file!r}, outside the checkpoint: files must lie in its own folder"
            )
    return listed


def _stored(path: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Names of the tensors in a file, with functions that read them."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                yield key, partial(stored.get_tensor, key)
        return
    for key, value in plain_weights(path, str(path)).items():
        if isinstance(value, Tensor):
            yield key, value.detach


def plain_weights(path: Path, name: str) -> dict[str, Any]:
    """What a file of torch.save holds, read without running any code that is in it. ``ValueError`` if that fails."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{name} is not a torch checkpoint of plain weights: {in_short(error)}") from error
    return stored if isinstance(stored, dict) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
