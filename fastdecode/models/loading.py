"""`load` reads a Chameleon and its processor, with the VQ decoder if the checkpoint has one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.utils import cached_file, logging

from fastdecode.models.chameleon import LUMINA, Vocabulary, attach_decoder, is_lumina

EMBEDDED = {"blocks": Path(__file__).parents[1] / "assets" / "blocks"}
DECODER_PREFIXES = ("model.vqmodel.decoder.", "vqmodel.decoder.")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vqgan: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load ``(model, processor)``.

        name     "blocks" (embedded), a folder in Hugging Face format, or a hub id
        dtype    dtype of the weights; default: as in the checkpoint's config
        device   device of the model; default: the CPU
        vqgan    Meta's vqgan.ckpt, for checkpoints without weights of the VQ decoder
        kwargs   further arguments of the model's ``from_pretrained``

    The model is an ordinary ``ChameleonForConditionalGeneration`` in eval mode. Its ``model.vqmodel`` has a ``decoder``
    if the weights were found. ``ValueError`` or ``FileNotFoundError`` say what is wrong with the checkpoint.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"load takes a name, a folder or a hub id, not a {type(name).__name__}: {name!r}")
    source: str | Path = EMBEDDED.get(str(name), name)
    if str(source).startswith("~"):
        source = Path(source).expanduser()
    config = _config(source)
    kind = config.get("model_type")
    if kind != "chameleon":
        raise ValueError(
            f"{name} is a model of type {kind!r}; fastdecode.load reads Chameleon checkpoints "
            "(config.json with model_type 'chameleon'); models of text are loaded with transformers itself"
        )
    if is_lumina(config, str(name)):
        raise ValueError(
            f"{name} cannot be loaded: {LUMINA}, and its checkpoints hold no picture encoder. For its text, give "
            "fastdecode.generate what transformers' ChameleonForConditionalGeneration.from_pretrained returns"
        )
    try:
        with _quiet():
            read: Any = ChameleonForConditionalGeneration.from_pretrained
            model, info = read(source, dtype=dtype or "auto", output_loading_info=True, **kwargs)
            processor = ChameleonProcessor.from_pretrained(source)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{name} cannot be loaded: {_in_short(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} is incomplete: it lacks {len(missing)} weights of the model ({', '.join(missing[:3])}, …)"
        )
    Vocabulary.of(model)
    weights = _vqgan_weights(Path(vqgan).expanduser()) if vqgan is not None else _decoder_weights(source)
    if weights:
        attach_decoder(model, weights)
    model.eval()
    if device is not None:
        model.to(device)
    return model, processor


def _file(source: str | Path, filename: str) -> Path | None:
    """The local path of ``filename`` in a folder or hub repository; None if it has no such file."""
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    found = cached_file(str(source), filename, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _config(source: str | Path) -> dict[str, Any]:
    """Read config.json of ``source``. If it cannot be read, the error says why."""
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local and not Path(source).exists():
        names = ", ".join(sorted(EMBEDDED))
        raise FileNotFoundError(f"there is no folder {source}, and no embedded model of that name (embedded: {names})")
    if Path(source).is_file():
        raise ValueError(f"{source} is a file; give the folder that holds config.json")
    try:
        path = _file(source, "config.json")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source} is neither a folder here nor a repository that the hub gives us: {_in_short(error)}"
        ) from error
    if path is None:
        where = "" if Path(source).is_dir() else ", or the hub does not give it to us"
        raise FileNotFoundError(f"{source} has no config.json: it is not a model in Hugging Face format{where}")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, not the settings of a model")
    return config


def _decoder_weights(source: str | Path) -> dict[str, Tensor]:
    """The weights of the checkpoint's VQ decoder, with keys relative to it; empty if it has none."""
    index = _file(source, INDEX)
    if index is not None:
        listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted({file for key, file in listed.items() if key.startswith(DECODER_PREFIXES)})
    else:
        files = [WEIGHTS]
    weights = {}
    for file in files:
        path = _file(source, file)
        if path is None:
            continue
        with safe_open(path, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                prefix = next((p for p in DECODER_PREFIXES if key.startswith(p)), None)
                if prefix is not None:
                    weights[key.removeprefix(prefix)] = stored.get_tensor(key)
    return weights


def _vqgan_weights(path: Path) -> dict[str, Tensor]:
    """The decoder's weights in a taming-transformers checkpoint (``decoder.*`` of its ``state_dict``)."""
    if not path.is_file():
        raise FileNotFoundError(f"vqgan={path}: there is no such file")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"vqgan={path} is not a torch checkpoint of plain weights: {_in_short(error)}") from error
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    weights = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    if not weights:
        raise ValueError(f"vqgan={path} has no decoder.* weights; Meta's vqgan.ckpt has")
    return weights


def _in_short(error: BaseException) -> str:
    """The message of ``error`` on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, which reports the decoder's weights as unexpected and shows a bar for each load."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
