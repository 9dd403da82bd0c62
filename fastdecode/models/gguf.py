"""Weights of a language model from a GGUF file, as llama.cpp's converter writes it.

Its names are other than transformers', and in the architectures ``llama`` and ``chameleon`` the rows of a head of
queries or keys are in another order: pairs that are turned together lie side by side, and not half a head apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdecode import ops
from fastdecode.decoder.classes import CHAMELEON, Sizes, classes_of
from fastdecode.models.checkpoint import in_short
from fastdecode.models.move_weights import move_weights
from fastdecode.models.quantise import small_parameter
from fastdecode.models.small_loading import add_layers, without_layers

SMALL, DENSE = {"Q8_0": "q8_0", "Q4_0": "q4_0"}, {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READ = "F32, F16, BF16, Q8_0 and Q4_0 are read"

_ARCHITECTURES = {
    "ChameleonForConditionalGeneration": "chameleon",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_PAIRED = ("llama", "chameleon")
"""Architectures whose rows of queries and keys are reordered."""

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ANGLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What the config says too."""


def read_gguf(
    source: str | Path, path: Path, dtype: torch.dtype | str, options: Mapping[str, Any]
) -> tuple[Any, set[str]]:
    """A Chameleon whose language model comes from a GGUF file, and all else from the checkpoint ``source``, with the
    names of weights that this lacks. Errors as `load_matrices`.
    """
    model, missing = without_layers(source, dtype, options)
    add_layers(model)
    load_matrices(model, path)
    return model, {name for name in missing if name.removesuffix(".weight") not in _WHOLE}


def load_matrices(model: Any, path: str | Path) -> Any:
    """Replace all weights of a language model, in place, by those of a GGUF file, and return the model.

        model    one that `generate` takes, on the CPU or (its layers) on the meta device: a Chameleon, Llama, Mistral,
                 Qwen2 or Qwen3 with the config of the checkpoint that the file was made from
        path     a whole GGUF file of that architecture, as llama.cpp's converter or quantiser writes it

    Matrices of Q8_0 and Q4_0 become `fastdecode.ops.SmallTensor` of the same blocks. F32, F16 and BF16 become ordinary
    tensors of the model's dtype, and norms and biases too.

    ``ModuleNotFoundError`` without the package ``gguf``. ``FileNotFoundError`` or ``ValueError``, before anything is
    changed, name the tensor that is missing, too much, of another shape, or of a type that is not read.
    """
    path = Path(path)
    kind = classes_of(model).model.__name__
    if kind not in _ARCHITECTURES:
        raise ValueError(f"GGUF files are read for {', '.join(_ARCHITECTURES)}; the model is a {type(model).__name__}")
    file = _File.opened(path)
    file.check_settings(model)
    places = list(_places(model, file))
    known = {place.stored for place in places}
    extra = sorted(set(file.tensors) - known - set(_ANGLES))
    if extra:
        raise ValueError(f"{path} has {len(extra)} tensors that this model has not: {', '.join(extra[:3])}")
    for place in places:
        file.check(place)
    dtype, shared = model.dtype, model.lm_head.weight is model.model.embed_tokens.weight
    for place in places:
        setattr(place.module, place.own, file.parameter(place, dtype))
    if shared:
        model.lm_head.weight = model.model.embed_tokens.weight
    move_weights(getattr(place.module, place.own) for place in places)
    return model


def package() -> Any:
    """The package gguf; ``ModuleNotFoundError`` says how it is installed."""
    try:
        import gguf
    except ImportError as error:
        raise ModuleNotFoundError(
            "GGUF files are read with the package gguf, which is not installed: pip install gguf", name="gguf"
        ) from error
    return gguf


@dataclass(frozen=True)
class _Place:
    """A parameter ``own`` of ``module``, the name ``stored`` in the file, and the order of rows that it needs."""

    module: Any
    own: str
    stored: str
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.module, self.own).shape)

    @property
    def is_matrix(self) -> bool:
        return isinstance(self.module, (nn.Linear, nn.Embedding)) and self.own == "weight"


def _places(model: Any, file: _File) -> Iterator[_Place]:
    """Every parameter of the language model, with the tensor of the file that it gets."""
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for name, stored in _WHOLE.items():
        if name == "lm_head" and tied:
            continue
        module = model.get_submodule(name)
        for own, _ in module.named_parameters():
            yield _Place(module, own, f"{stored}.{own}")
    paired = file.architecture in _PAIRED
    for number, layer in enumerate(model.model.layers):
        head_dim = Sizes.of(layer).head_dim
        for name, stored in _LAYER.items():
            module = getattr(layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], None)
            if module is None:
                continue
            turned = paired and name.startswith(("self_attn.q_", "self_attn.k_"))
            for own, parameter in module.named_parameters():
                rows = parameter.shape[0] if isinstance(module, nn.Linear) else parameter.numel()
                order = _halves_of_pairs(rows, head_dim) if turned else None
                yield _Place(module, own, f"blk.{number}.{stored}.{own}", order)


def _halves_of_pairs(rows: int, head_dim: int) -> Tensor:
    """The place in the file of each row in transformers' order."""
    return torch.arange(rows).view(-1, head_dim // 2, 2).transpose(1, 2).reshape(-1)


class _File:
    """The settings and tensors of a GGUF file, which is mapped, and so read where a tensor is asked for."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.reader = path, reader
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = str(self.setting("general.architecture"))

    @classmethod
    def opened(cls, path: Path) -> _File:
        reader = package().GGUFReader
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such GGUF file")
        try:
            return cls(path, reader(str(path)))
        except Exception as error:  # the reader raises what numpy does where the file ends
            raise ValueError(f"{path} is no whole GGUF file, or is cut off: {in_short(error)}") from error

    def setting(self, name: str) -> Any:
        """A setting of the file; None without it."""
        field = self.reader.get_field(name)
        return None if field is None else field.contents()

    def check_settings(self, model: Any) -> None:
        """``ValueError`` if the file is of another model than the config."""
        wanted = _ARCHITECTURES[classes_of(model).model.__name__]
        if self.architecture != wanted:
            raise ValueError(
                f"{self.path} is of the architecture {self.architecture!r}, and the config is that of a "
                f"{type(model).__name__}, which takes {wanted!r}"
            )
        if (self.setting("split.count") or 1) > 1:
            raise ValueError(f"{self.path} is a part of a split file: merge the parts with llama-gguf-split --merge")
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        settings = {
            "block_count": config.num_hidden_layers,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": rope.get("rope_theta"),
            "swin_norm": config.swin_norm if classes_of(model) is CHAMELEON else None,
        }
        for name, value in settings.items():
            found = self.setting(f"{wanted}.{name}")
            if found is None or value is None:
                continue
            if not np.isclose(float(found), float(value), rtol=1e-5, atol=0):
                raise ValueError(f"{self.path} has {wanted}.{name} = {found}, and the config has {value}")

    def check(self, place: _Place) -> None:
        """``ValueError`` unless the file has the tensor of a place, in its shape and a type that is read."""
        name = place.stored
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name}, which the config asks for")
        tensor = self.tensors[name]
        kind = tensor.tensor_type.name
        if kind not in DENSE and (kind not in SMALL or not place.is_matrix):
            advice = f"{READ}, for norms and biases the first three"
            if kind.startswith("Q"):
                advice += "; make the file with llama-quantize --pure, or its --output-tensor-type q8_0 for the head"
            raise ValueError(f"{self.path}: {name} is of type {kind}: {advice}")
        shape = tuple(int(size) for size in reversed(tensor.shape))
        same = shape == place.shape if place.is_matrix else np.prod(shape) == np.prod(place.shape)
        if not same:
            raise ValueError(f"{self.path}: {name} is {shape}, and the config asks for {place.shape}")

    def parameter(self, place: _Place, dtype: torch.dtype) -> nn.Parameter:
        """The parameter for a place that was checked."""
        tensor = self.tensors[place.stored]
        kind = tensor.tensor_type.name
        data = torch.from_numpy(np.array(tensor.data))  # a copy: the file may change
        if kind in SMALL:
            small = ops.SmallWeights(SMALL[kind], place.shape[1], data.view(place.shape[0], -1))
            small = small if place.order is None else small.of(place.order)
            return small_parameter(small.panels(), dtype)
        values = data.reshape(-1).view(DENSE[kind])
        if place.is_matrix:
            values = values.view(place.shape)
        if place.order is not None:  # of a matrix its rows; of norms and biases of heads each value
            values = values[place.order]
        return nn.Parameter(values.view(place.shape).to(dtype, copy=True))
