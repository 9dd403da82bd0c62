"""`load` reads a model and its processor; a Chameleon with the VQ decoder if the checkpoint has one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.utils import logging

from fastdecode.models.chameleon import attach_decoder, fill_encoder
from fastdecode.models.checkpoint import Checkpoint, DecoderWeights, in_short, plain_weights
from fastdecode.models.families import vocabulary_of
from fastdecode.models.gguf import package, read_gguf
from fastdecode.models.janus import name_begin
from fastdecode.models.liquid import attach_vqgan, is_liquid, name_tokens
from fastdecode.models.memory import Sizes, check_file
from fastdecode.models.move_weights import move_weights
from fastdecode.models.other_loading import OTHERS, read_other
from fastdecode.models.quantise import Width, quantise
from fastdecode.models.small_loading import check_options, read_small
from fastdecode.models.vq_decoder import BEFORE_DECODER
from fastdecode.wording import kind_of

EMBEDDED = {"blocks": Path(__file__).parents[1] / "assets" / "blocks"}


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    vqgan: str | Path | None = None,
    weights: str | Mapping[str, Any] | None = None,
    gguf: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load ``(model, processor)``.

        name     "blocks" (embedded), a folder in Hugging Face format, or a hub id
        dtype    dtype of the weights, such as torch.bfloat16 or "bfloat16"; default: as in the checkpoint's config
        device   device of the model; default: the CPU
        vqgan    Meta's vqgan.ckpt, for checkpoints without weights of the VQ decoder, or of the whole VQ-GAN
        weights  "int8" or "int4": weights are made small while they are read, each matrix by itself, as
                 `fastdecode.quantise` does; so memory need not hold the whole checkpoint. A dict gives more, such as
                 ``dict(type="int4", group=64, symmetric=False)``. For safetensors, and on the CPU only
        gguf     a GGUF file (its path, also relative to the folder ``name``) that has the language model's weights;
                 everything else comes from ``name``. Matrices of Q8_0 and Q4_0 are read as they lie. On the CPU only
        kwargs   further arguments of the model's ``from_pretrained``. ``revision``, ``subfolder``, ``token``,
                 ``cache_dir``, ``local_files_only`` and ``trust_remote_code`` hold for the processor and the VQ decoder
                 too

    The model is an ordinary one of transformers, in eval mode: a ``ChameleonForConditionalGeneration`` or what its
    config asks for (Janus, Emu3, LLaVA, Llama, Mistral, Qwen2, Qwen3, Gemma). ``model.vqmodel`` of a Chameleon has a
    ``decoder`` if the weights were found (in safetensors or in pytorch_model.bin). The VQ decoder is float32 whatever
    ``dtype`` says, and stays so: pictures of given tokens do not depend on the dtype. Code that a checkpoint brings is
    not run unless ``trust_remote_code=True``.

    ``ValueError``, ``TypeError`` or ``FileNotFoundError`` say what is wrong with an argument or the checkpoint;
    ``MemoryError``, before weights are read, that the model does not fit, what it needs, and which weights would fit.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"load takes a name, a folder or a hub id, not {kind_of(name)}: {name!r}")
    if not str(name):
        raise ValueError("load takes a name, a folder or a hub id, not an empty name; the embedded model is 'blocks'")
    for switch in ("trust_remote_code", "local_files_only"):
        if kwargs.get(switch) is not None and not isinstance(kwargs[switch], bool):
            raise ValueError(f"{switch}={kwargs[switch]!r}: give True or False")
    if "output_loading_info" in kwargs:
        raise ValueError(
            "output_loading_info: load returns (model, processor), and checks what was missing: leave it out"
        )
    options = dict(kwargs)
    chosen = _dtype(dtype, options)
    target = _device(device, options)
    width = None if weights is None else Width.of(weights)
    small = _small_option(width, gguf, target)
    if vqgan is not None and not isinstance(vqgan, (str, os.PathLike)):
        raise TypeError(f"vqgan={vqgan!r}: give the path of Meta's vqgan.ckpt")
    painting = None if vqgan is None else _vqgan_weights(Path(vqgan).expanduser())
    source = _source(name)
    if Path(source, "adapter_config.json").is_file() and not Path(source, "config.json").is_file():
        raise ValueError(
            f"{name} holds an adapter of PEFT, not a model: load its base model with fastdecode.load, and give that to "
            f"peft.PeftModel.from_pretrained(model, {str(name)!r})"
        )
    checkpoint = Checkpoint(source, options)
    config = checkpoint.config()
    kind = config.get("model_type")
    if kind != "chameleon" and kind not in OTHERS:
        raise ValueError(
            f"{name} is a model of type {kind!r}; fastdecode.load reads checkpoints whose config.json has model_type "
            f"'chameleon', {', '.join(map(repr, OTHERS))}; others are loaded with transformers itself"
        )
    if kind != "chameleon":
        for option, value in (("gguf=", gguf), ("vqgan=", None if is_liquid(config) else vqgan)):
            if value is not None:
                raise ValueError(f"{option} is for Chameleons, and {name} is of type {kind!r}: leave it out")
    checkpoint.check_indexes()
    if small is not None and kind == "chameleon":
        check_options(options, config, small)
    file = None if gguf is None else _gguf_file(gguf, source)
    if file is not None:
        check_file(file)
    elif target is None or target.type == "cpu":
        _check_memory(checkpoint, config, chosen, width, options, str(name))
    trust = options.pop("trust_remote_code", False)
    try:
        with _quiet():
            if kind in OTHERS:
                model, processor, missing = read_other(kind, source, checkpoint, chosen, options, trust)
            else:
                processor = ChameleonProcessor.from_pretrained(source, trust_remote_code=trust, **checkpoint.hub)
                if width is not None:
                    model, missing = read_small(source, checkpoint, chosen, width, options)
                elif file is not None:
                    model, missing = read_gguf(source, file, chosen, options)
                else:
                    read: Any = ChameleonForConditionalGeneration.from_pretrained
                    model, info = read(source, dtype=chosen, output_loading_info=True, **options)
                    missing = info["missing_keys"]
        if kind == "chameleon":
            painting = painting or checkpoint.decoder_weights()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} cannot be loaded: {in_short(error)}") from error
    except Exception as error:  # whatever transformers, a tokenizer or a hostile file raises
        raise ValueError(f"{name} cannot be loaded: {_advice(error)}") from error
    missing = set(missing)
    if kind == "chameleon" and painting is not None:
        missing -= fill_encoder(model, missing, painting.encoder)
    if missing:
        encoder = all(key.startswith("model.vqmodel.") for key in missing)
        raise ValueError(
            f"{name} is incomplete: it lacks {len(missing)} weights of the model ({', '.join(sorted(missing)[:3])}, …)"
            + (": the encoder of pictures; give Meta's vqgan.ckpt with vqgan=PATH" if encoder else "")
        )
    if is_liquid(config):
        name_tokens(model, processor)
    if kind == "janus":
        name_begin(model, processor)
    vocabulary_of(model)
    if painting is not None and painting.decoder:
        (attach_vqgan if is_liquid(config) else _attach_decoder)(model, painting)
    model.eval()
    if target is not None:
        model.to(target)
    if kind in OTHERS and width is not None:
        quantise(model, width.type, group=width.group, symmetric=width.symmetric)
    elif file is None:  # those of a GGUF file lie well already
        move_weights(model.parameters())
    return model, processor


def _small_option(width: Width | None, gguf: Any, target: torch.device | None) -> str | None:
    """The option that makes weights small, for messages; None without one. ``ValueError`` if it cannot be followed."""
    if width is not None and gguf is not None:
        raise ValueError("weights= and gguf= were given: a GGUF file says itself how small its weights are; give one")
    option = "gguf=" if gguf is not None else None if width is None else "weights="
    if option and target is not None and target.type != "cpu":
        raise ValueError(f"{option} with device='{target}': small weights are read on the CPU only, leave out device")
    return option


def _gguf_file(gguf: Any, source: str | Path) -> Path:
    if not isinstance(gguf, (str, os.PathLike)):
        raise TypeError(f"gguf={gguf!r}: give the path of a GGUF file")
    path = Path(gguf).expanduser()
    file = next((found for found in (path, Path(source) / path) if found.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"gguf={str(gguf)!r}: there is no such file, here or in {source}")
    package()
    return file


def _check_memory(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    dtype: torch.dtype | str,
    width: Width | None,
    options: Mapping[str, Any],
    name: str,
) -> None:
    """``MemoryError`` if the weights surely do not fit. Nothing is said about weights that cannot be looked at."""
    elsewhere = ("device_map", "quantization_config", "state_dict", "config", "gguf_file")
    if config.get("quantization_config") or any(options.get(option) is not None for option in elsewhere):
        return
    if options.get("use_safetensors") is False:
        return
    stated = config.get("dtype") or config.get("torch_dtype")
    wanted = getattr(torch, stated, None) if dtype == "auto" and isinstance(stated, str) else dtype
    try:
        sizes = Sizes.of(checkpoint.safetensors(), wanted if isinstance(wanted, torch.dtype) else None)
    except Exception:  # the files are read below, and what is wrong with them is told there
        return
    sizes.check(name, width)


def _source(name: str | os.PathLike[str]) -> str | Path:
    """The folder or hub id that ``name`` means. An error says that there is none."""
    source: str | Path = EMBEDDED.get(str(name), Path(name) if isinstance(name, os.PathLike) else name)
    if str(source).startswith("~"):
        source = Path(source).expanduser()
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local and not Path(source).exists():
        names = ", ".join(sorted(EMBEDDED))
        raise FileNotFoundError(f"there is no folder {source}, and no embedded model of that name (embedded: {names})")
    if Path(source).is_file():
        raise ValueError(f"{source} is a file; give the folder that holds config.json")
    return source


def _dtype(dtype: Any, options: dict[str, Any]) -> torch.dtype | str:
    """The dtype that is asked for, or "auto". Takes ``torch_dtype``, its old name, out of ``options``."""
    old = options.pop("torch_dtype", None)
    if old is not None and dtype is not None and old != dtype:
        raise ValueError(f"dtype={dtype!r} and torch_dtype={old!r} were given: give one of them")
    wanted = old if dtype is None else dtype
    if wanted is None or wanted == "auto":
        return "auto"
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype={wanted!r}: give a dtype of weights, such as torch.float32 or torch.bfloat16")
    return found


def _device(device: Any, options: dict[str, Any]) -> torch.device | None:
    """The device that is asked for. ``ValueError`` if torch has no such device here."""
    if device is None:
        return None
    if options.get("device_map") is not None:
        raise ValueError(f"device={device!r} and device_map={options['device_map']!r} were given: give one of them")
    try:
        if isinstance(device, bool):
            raise TypeError("it is a bool")
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("the meta device holds no values")
        torch.empty(0, device=found)
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"device={device!r} cannot be used: {in_short(error)}; give 'cpu', or a device that torch has here"
        ) from error
    return found


def _advice(error: Exception) -> str:
    """The error in short, with what to do about it where that is known."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            "it brings code of its own, which is not run unless you ask for it; read that code, then give "
            "trust_remote_code=True"
        )
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return f"load, like from_pretrained, has no option {text.rpartition('argument ')[2]}"
    return in_short(error)


def _vqgan_weights(path: Path) -> DecoderWeights:
    """The weights for painting in a taming-transformers checkpoint (``decoder.*`` of its ``state_dict``)."""
    if not path.is_file():
        raise FileNotFoundError(f"vqgan={path}: there is no such file")
    stored = plain_weights(path, f"vqgan={path}")
    state = stored.get("state_dict", stored)
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    found = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    if not found:
        raise ValueError(f"vqgan={path} has no decoder.* weights; Meta's vqgan.ckpt has")
    others = {key: value for key, value in state.items() if not key.startswith(("decoder.", "loss."))}
    return DecoderWeights(found, {key: state[key] for key in BEFORE_DECODER if key in state}, others)


def add_decoder(model: Any) -> None:
    """Give a Chameleon that transformers has loaded the VQ decoder of its checkpoint, which transformers drops. No
    effect if the model has one, or its checkpoint has none.
    """
    if model.config.model_type != "chameleon" or hasattr(model.model.vqmodel, "decoder"):
        return
    revision = getattr(model.config, "_commit_hash", None)
    painting = Checkpoint(model.config.name_or_path, {"revision": revision}).decoder_weights()
    if painting.decoder:
        _attach_decoder(model, painting)


def _attach_decoder(model: Any, painting: DecoderWeights) -> None:
    attach_decoder(model, painting.decoder, painting.before)


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
