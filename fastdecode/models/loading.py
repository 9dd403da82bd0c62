"""`load` reads a Chameleon and its processor, with the VQ decoder if the checkpoint has one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.utils import logging

from fastdecode.models.chameleon import Vocabulary, attach_decoder
from fastdecode.models.decoder_weights import HUB_OPTIONS, Files, decoder_weights, path_of, vqgan_weights

EMBEDDED = {"blocks": Path(__file__).parents[1] / "assets" / "blocks"}


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vqgan: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load ``(model, processor)``. Nothing of the checkpoint is run as code.

        name     "blocks" (embedded), a folder in Hugging Face format, or a hub id
        dtype    dtype of the weights; default: as in the checkpoint's config (torch_dtype is its old name)
        device   device of the model; default: the CPU
        vqgan    Meta's vqgan.ckpt, for checkpoints without weights of the VQ decoder
        kwargs   further arguments of the model's ``from_pretrained``; those that say where files are (revision,
                 subfolder, token, cache_dir, local_files_only, …) hold for the processor and the decoder too

    The model is an ordinary ``ChameleonForConditionalGeneration`` in eval mode. Its ``model.vqmodel`` has a ``decoder``
    if the weights were found, in safetensors or in ``pytorch_model.bin``. The decoder stays in float32 whatever the
    dtype, also after ``model.to(torch.bfloat16)``: pictures are those of a float32 model.

    ``ValueError`` or ``FileNotFoundError`` say what is wrong with the checkpoint, an option or the device;
    ``TypeError`` for a name or a vqgan that is no path.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"load takes a name, a folder or a hub id, not a {type(name).__name__}: {name!r}")
    if not str(name):
        raise ValueError("load takes a name, a folder or a hub id, and got an empty one")
    source: str | Path = EMBEDDED.get(str(name), name)
    if str(source).startswith("~"):
        source = Path(source).expanduser()
    chosen = _dtype(dtype, kwargs.pop("torch_dtype", None))
    target = _device(device, kwargs.get("device_map"))
    vqgan_path = None if vqgan is None else path_of(vqgan)
    where = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    files = Files(source, where, kwargs.get("variant"))
    config = _config(source, files)
    kind = config.get("model_type")
    if kind != "chameleon":
        raise ValueError(
            f"{name} is a model of type {kind!r}; fastdecode.load reads Chameleon checkpoints "
            "(config.json with model_type 'chameleon'); models of text are loaded with transformers itself"
        )
    try:
        files.check()
        with _quiet():
            read: Any = ChameleonForConditionalGeneration.from_pretrained
            trusted = kwargs.pop("trust_remote_code", False)  # without it transformers would ask on the terminal
            model, info = read(source, dtype=chosen, output_loading_info=True, **kwargs)
            processor = ChameleonProcessor.from_pretrained(source, trust_remote_code=trusted, **where)
    except UnpicklingError as error:
        raise ValueError(
            f"{name} cannot be loaded: its weights hold more than plain tensors, and may run code when they are read; "
            "get the checkpoint as safetensors"
        ) from error
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded: {_in_short(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} is incomplete: it lacks {len(missing)} weights of the model ({', '.join(missing[:3])}, …)"
        )
    Vocabulary.of(model)
    weights = decoder_weights(files) if vqgan_path is None else vqgan_weights(vqgan_path)
    if weights.decoder:
        attach_decoder(model, weights.decoder, weights.before)
    model.eval()
    if target is not None:
        model.to(target)
    return model, processor


def _config(source: str | Path, files: Files) -> dict[str, Any]:
    """Read config.json of ``source``. If it cannot be read, the error says why."""
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local and not Path(source).exists():
        names = ", ".join(sorted(EMBEDDED))
        raise FileNotFoundError(f"there is no folder {source}, and no embedded model of that name (embedded: {names})")
    if Path(source).is_file():
        raise ValueError(f"{source} is a file; give the folder that holds config.json")
    try:
        path = files.find("config.json")
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


def _dtype(dtype: Any, torch_dtype: Any) -> Any:
    """The dtype to load; ``torch_dtype`` is its old name. ``ValueError`` for what is no floating dtype."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} were given: give dtype only")
    chosen = torch_dtype if dtype is None else dtype
    if chosen is None or (isinstance(chosen, str) and chosen == "auto"):
        return "auto"
    found = getattr(torch, chosen.removeprefix("torch."), None) if isinstance(chosen, str) else chosen
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={chosen!r}: give a floating dtype, such as torch.bfloat16, or 'auto'")
    return found


def _device(device: Any, device_map: Any) -> torch.device | None:
    """The device to load to. ``ValueError`` if there is no such device here."""
    if device is None:
        return None
    if device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} were given: give one of them")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device={device!r} is no device of torch: give 'cpu' or 'cuda', or 'cuda:1'") from None
    if found.type == "meta":
        raise ValueError("device='meta': tensors have no values there; give 'cpu' or 'cuda'")
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ValueError(f"device={device!r}: torch finds {count or 'no'} GPUs here; give another, or 'cpu'")
    try:
        torch.empty(0, device=found)
    except Exception as error:
        raise ValueError(f"device={device!r} cannot be used here: {_in_short(error)}") from error
    return found


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
