"""The decoder half of Chameleon's VQ-GAN, in the layout of taming-transformers.

transformers ships the encoder only. Checkpoints that can draw carry the decoder's weights under
``model.vqmodel.decoder.*``: ``conv_in``, ``mid``, ``up.<level>`` (level 0 is the full resolution), ``norm_out``
and ``conv_out``. The blocks come from transformers' Janus VQ-VAE, which has the same architecture. They are connected
as in taming (levels numbered from the full resolution, attention only at ``attn_resolutions``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.janus.modeling_janus import (
    JanusVQVAEAttnBlock,
    JanusVQVAEConvUpsample,
    JanusVQVAEMidBlock,
    JanusVQVAEResnetBlock,
)

BEFORE = ("quantize.embedding.weight", "post_quant_conv.weight", "post_quant_conv.bias")
"""The weights of a ``ChameleonVQVAE`` that a code goes through before the decoder."""


class VQDecoder(nn.Module):
    """Decodes latents ``(n, latent_channels, h, w)`` to pixels ``(n, in_channels, H, W)`` in about [-1, 1].

    It keeps its dtype: ``to``, ``half`` and the like move it to another device only. Rounding to bfloat16 is visible in
    pictures.

    ``before``: float32 copies of the codebook and ``post_quant_conv``, by `BEFORE`, from before the model was cast to a
    smaller dtype; not a part of the state dict.
    """

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        multipliers = config.channel_multiplier
        attends = config.attn_type == "vanilla"
        attended = tuple(config.attn_resolutions or ()) if attends else ()
        channels = config.base_channels * multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, kernel_size=3, padding=1)
        blocks: Any = config  # the Janus blocks only read its dropout
        middle: Any = JanusVQVAEMidBlock(blocks, channels)
        if not attends:
            middle.attn_1 = nn.Identity()
        self.mid = middle
        self.up = nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            up: Any = nn.Module()
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                out_channels = config.base_channels * multipliers[level]
                up.block.append(JanusVQVAEResnetBlock(blocks, channels, out_channels))
                channels = out_channels
                if config.resolution >> level in attended:
                    up.attn.append(JanusVQVAEAttnBlock(channels))
            if level > 0:
                up.upsample = JanusVQVAEConvUpsample(channels)
            self.up.insert(0, up)
        for name in BEFORE:
            self.register_buffer(name.replace(".", "_"), None, persistent=False)
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.in_channels, kernel_size=3, padding=1)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, recurse)

    def keep_before(self, weights: Mapping[str, Tensor]) -> None:
        """Keep float32 copies of ``weights``, named as in `BEFORE`."""
        for name in BEFORE:
            if name in weights and not weights[name].is_meta:
                kept = weights[name].detach().to(self.conv_out.weight.device, torch.float32, copy=True)
                setattr(self, name.replace(".", "_"), kept)

    def exact(self, name: str, weight: Tensor) -> Tensor:
        """``weight`` in the decoder's dtype, before it was rounded: what `keep_before` kept of the same weight."""
        kept: Tensor | None = getattr(self, name.replace(".", "_"))
        if kept is not None and (weight.is_meta or self._same(kept, weight)):
            return kept
        return weight.to(self.conv_out.weight)

    @staticmethod
    def _same(kept: Tensor, weight: Tensor) -> bool:
        return kept.shape == weight.shape and torch.equal(kept.to(weight.device, weight.dtype), weight)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        levels: list[Any] = list(self.up)
        for up in reversed(levels):
            for i, block in enumerate(up.block):
                x = block(x)
                if len(up.attn):
                    x = up.attn[i](x)
            if hasattr(up, "upsample"):
                x = up.upsample(x)
        pixels: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return pixels


def latent_side(config: ChameleonVQVAEConfig) -> int:
    """The number of rows (and of columns) in a picture's grid of codes."""
    return config.resolution >> (len(config.channel_multiplier) - 1)


@torch.inference_mode()
def decode_codes(vqmodel: Any, codes: Tensor) -> Tensor:
    """Decode codebook indices ``(n, side * side)`` int64 to pixels ``(n, in_channels, H, W)`` in about [-1, 1].

    ``vqmodel`` is a ``ChameleonVQVAE`` with a ``decoder``. All is computed in the decoder's dtype, float32,
    whatever the model's, and under `torch.autocast` too.
    """
    side = latent_side(vqmodel.config)
    decoder, conv = vqmodel.decoder, vqmodel.post_quant_conv
    weights = (vqmodel.quantize.embedding.weight, conv.weight, conv.bias)
    codebook, weight, bias = (decoder.exact(name, w) for name, w in zip(BEFORE, weights, strict=True))
    with torch.autocast(codes.device.type, enabled=False):
        quantised = nn.functional.embedding(codes, codebook).view(len(codes), side, side, -1).permute(0, 3, 1, 2)
        pixels: Tensor = decoder(nn.functional.conv2d(quantised, weight, bias))
    return pixels
