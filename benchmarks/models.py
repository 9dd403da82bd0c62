"""Chameleons with random weights in realistic sizes, with Chameleon's own vocabulary, and prompts for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonRotaryEmbedding

from fastdecode.engine.core import EngineCore
from fastdecode.models.chameleon import attach_decoder
from fastdecode.models.move_weights import move_weights
from fastdecode.models.vq_decoder import VQDecoder

BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3
IMAGE_IDS = range(4, 8196)
END_IMAGE, BEGIN_IMAGE, SEPARATOR, PLACEHOLDER = 8196, 8197, 8710, 8711
FIRST_WORD = 8712
STD = 0.02


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    mlp: int
    heads: int
    dtype: torch.dtype
    vocab: int = 65536
    resolution: int = 512
    context: int = 4096
    kv_heads: int | None = None
    swin_norm: bool = False


SIZES = {
    "37M": Size(256, 4, 704, 4, torch.float32),
    "289M": Size(1024, 12, 2816, 8, torch.bfloat16),
    "7B-2": Size(4096, 2, 11008, 32, torch.bfloat16),
    "7B-8": Size(4096, 8, 11008, 32, torch.bfloat16),
    "7B": Size(4096, 32, 11008, 32, torch.bfloat16),
    "34B": Size(8192, 48, 22016, 64, torch.bfloat16, kv_heads=8, swin_norm=True),
    "tiny": Size(32, 2, 64, 4, torch.float32, vocab=8800, resolution=64, context=1024),
    "tiny bfloat16": Size(32, 2, 64, 4, torch.bfloat16, vocab=8800, resolution=64, context=1024),
}
"""``7B-2`` and ``7B-8`` are two and eight layers of Chameleon 7B; 7B and 34B, whole, are for GPUs, and the tiny ones
for tests.
"""


def vocabulary_map(vocab: int) -> dict[str, int]:
    """Names to tokens, with the image tokens, begin and end of image where Chameleon has them."""
    marked = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN}
    marked |= {"<eoss>": END_IMAGE, "<racm3:break>": BEGIN_IMAGE, "<reserved08706>": SEPARATOR, "<image>": PLACEHOLDER}
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    pictures = {f"IMGIMG{str(code).translate(letters)}Z": i for code, i in enumerate(IMAGE_IDS)}
    taken = {*marked.values(), *IMAGE_IDS}
    return marked | pictures | {f"w{i}": i for i in range(vocab) if i not in taken}


def config_of(name: str) -> ChameleonConfig:
    """The config of that size, whose VQ model is as small as it can be."""
    size = SIZES[name]
    return ChameleonConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads or size.heads,
        swin_norm=size.swin_norm,
        max_position_embeddings=size.context,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        vq_config=ChameleonVQVAEConfig(
            resolution=size.resolution,
            num_embeddings=len(IMAGE_IDS),
            embed_dim=8,
            latent_channels=8,
            base_channels=32,  # its norms have 32 groups
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
        ),
        vocabulary_map=vocabulary_map(size.vocab),
    )


@torch.no_grad()
def random_model(name: str, seed: int = 0, device: str = "cpu") -> ChameleonForConditionalGeneration:
    """The model of that size in eval mode: every matrix normal with standard deviation `STD`, norms as they begin.

    It is filled on ``device``, where its memory is got once; on the CPU its weights lie in pages of 2 MB, as
    ``fastdecode.load`` lets them lie. Its VQ model has codes for pictures of
    (resolution / 16)² ids and is as small as it can be: nothing to look at.
    """
    size, config = SIZES[name], config_of(name)
    torch.manual_seed(seed)
    with torch.device("meta"):  # so that torch and transformers do not initialise the weights, too
        model = ChameleonForConditionalGeneration(config).to(size.dtype)
        decoder = VQDecoder(config.vq_config)
    model.to_empty(device=device)
    for key, weights in model.named_parameters():
        if weights.ndim > 1 and "_norm." not in key:
            weights.normal_(0, STD)
        else:
            weights.fill_(1.0 if "norm" in key and key.endswith("weight") else 0.0)
    model.model.rotary_emb = ChameleonRotaryEmbedding(config).to(device)
    attach_decoder(model, {key: torch.zeros(value.shape) for key, value in decoder.state_dict().items()})
    move_weights(model.parameters())
    return model.eval().requires_grad_(False)


def text_prompts(model: ChameleonForConditionalGeneration, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """(count, length) int64: begin of sequence, random words, separator."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, model.config.vocab_size, (count, length), generator=generator)
    ids[:, 0], ids[:, -1] = BOS, SEPARATOR
    return ids


def edit_prompts(
    model: ChameleonForConditionalGeneration, count: int, words: int, picture: int, seed: int = 0
) -> torch.Tensor:
    """(count, words + picture + 4) int64: begin of sequence, a picture of ``picture`` tokens, words, separator.

    The decode loop accepts a picture of any length in a prompt, so a few tokens can replace a whole one.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, model.config.vocab_size, (count, words + picture + 4), generator=generator)
    drawn = torch.randint(IMAGE_IDS.start, IMAGE_IDS.stop, (count, picture), generator=generator)
    ids[:, 0], ids[:, 1], ids[:, 2 : picture + 2], ids[:, picture + 2] = BOS, BEGIN_IMAGE, drawn, END_IMAGE
    ids[:, -1] = SEPARATOR
    return ids


@contextmanager
def engines() -> Iterator[list[EngineCore]]:
    """The engines that `fastdecode.generate` makes inside the block, for inspection while they run."""
    made: list[EngineCore] = []
    build = EngineCore.__init__

    def noting(self: EngineCore, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        made.append(self)

    with patch.object(EngineCore, "__init__", noting):
        yield made
