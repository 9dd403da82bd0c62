"""Random-weights Chameleons on disk, written shard by shard: memory never holds more than two shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from benchmarks.models import IMAGE_IDS, SIZES, STD, config_of
from fastdecode.models.loading import EMBEDDED
from fastdecode.models.vq_decoder import VQDecoder

SHARD = 10**9
"""Bytes of a shard. Writing it may need as much again."""


def shards(weights: dict[str, Tensor], limit: int) -> Iterator[list[str]]:
    """The names of ``weights`` in groups of at most ``limit`` bytes of bfloat16; a larger one stands alone."""
    group: list[str] = []
    size = 0
    for key, weight in weights.items():
        if group and size + 2 * weight.numel() > limit:
            yield group
            group, size = [], 0
        group.append(key)
        size += 2 * weight.numel()
    yield group


def filled(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A weight of that name and shape: norms 1, biases 0, everything else normal; integers 0."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    found = torch.empty(like.shape, dtype=torch.bfloat16)
    if key.endswith("bias"):
        return found.zero_()
    if "norm" in key:
        return found.fill_(1)
    return found.normal_(0, STD, generator=generator)


@torch.no_grad()
def random_checkpoint(folder: Path, name: str, seed: int = 0, limit: int = SHARD) -> int:
    """Write a bfloat16 Chameleon of the size ``name`` of `SIZES`, and return the bytes of its weights.

    Its VQ model, with a picture decoder, is the config's default, except with tiny sizes. The tokenizer is that of
    the embedded model, whose words are other tokens: give the model tokens, not texts. The folder appears only when it
    is whole. ``ValueError`` for an unknown size, ``FileExistsError`` if there is such a folder.
    """
    if name not in SIZES:
        raise ValueError(f"there is no size {name!r}; give one of {', '.join(SIZES)}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a folder that does not")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = config_of(name)
    if not name.startswith("tiny"):
        config.vq_config = ChameleonVQVAEConfig(num_embeddings=len(IMAGE_IDS))
    config.dtype, config.architectures = torch.bfloat16, ["ChameleonForConditionalGeneration"]
    with torch.device("meta"):
        weights = ChameleonForConditionalGeneration(config).state_dict()
        decoder = VQDecoder(config.vq_config).state_dict()
    weights |= {f"model.vqmodel.decoder.{key}": weight for key, weight in decoder.items()}
    generator = torch.Generator().manual_seed(seed)
    groups = list(shards(weights, limit))
    index, total = {}, 0
    for number, keys in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        group = {key: filled(key, weights[key], generator) for key in keys}
        save_file(group, partial / file, metadata={"format": "pt"})
        total += sum(weight.nbytes for weight in group.values())
        index |= dict.fromkeys(keys, file)
        del group
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (partial / "model.safetensors.index.json").write_text(json.dumps(content))
    config.save_pretrained(partial)
    for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED["blocks"] / file, partial / file)
    partial.rename(folder)
    return total
