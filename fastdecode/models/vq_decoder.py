"""The decoder half of Chameleon's VQ-GAN, in the layout of taming-transformers.

transformers ships the encoder only. Checkpoints that can draw carry the decoder's weights under
``model.vqmodel.decoder.*``: ``conv_in``, ``mid``, ``up.<level>`` (level 0 is the full resolution), ``norm_out``
and ``conv_out``. The blocks come from transformers' Janus VQ-VAE, which has the same architecture. They are connected
as in taming (levels numbered from the full resolution, attention only at ``attn_resolutions``).

Pictures are painted in float32 whatever the dtype of the model, as Meta's code does: in bfloat16 they would differ by
up to 13 of 255 grey levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.janus.modeling_janus import (
    JanusVQVAEAttnBlock,
    JanusVQVAEConvUpsample,
    JanusVQVAEMidBlock,
    JanusVQVAEResnetBlock,
)

BEFORE_DECODER = ("quantize.embedding.weight", "post_quant_conv.weight", "post_quant_conv.bias")
"""The weights of the VQ model that codes go through before the decoder. They change their dtype with the model."""


class VQDecoder(nn.Module):
    """Decodes latents ``(n, latent_channels, h, w)`` to pixels ``(n, in_channels, H, W)`` in about [-1, 1].

    Its weights are float32 and stay so when the model around it is converted (``model.to(torch.bfloat16)``,
    ``model.half()``); they move between devices with it.
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
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.in_channels, kernel_size=3, padding=1)
        for name in BEFORE_DECODER:
            self.register_buffer(_buffer(name), None, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQDecoder:
        def keep_dtype(t: Tensor) -> Tensor:
            found = fn(t)
            return found if found.dtype == t.dtype else t.to(found.device)

        return super()._apply(keep_dtype, recurse)

    def remember(self, vqmodel: Any, originals: Mapping[str, Tensor]) -> None:
        """Keep float32 copies of the `BEFORE_DECODER` weights of ``vqmodel``. ``originals``: some of them as the
        checkpoint has them, for a model that was loaded with a shorter dtype; those that are not the model's are not
        used.
        """
        for name in BEFORE_DECODER:
            present = vqmodel.get_parameter(name).detach()
            original = originals.get(name)
            known = original is not None and _shortened(original, present)
            exact: Tensor = original if known and original is not None else present
            setattr(self, _buffer(name), exact.to(present.device, torch.float32, copy=True))

    def in_float32(self, vqmodel: Any, name: str) -> Tensor:
        """A `BEFORE_DECODER` weight of ``vqmodel`` in float32: the remembered one, unless the model's was replaced."""
        present: Tensor = vqmodel.get_parameter(name).detach()
        kept: Tensor | None = getattr(self, _buffer(name))
        if present.dtype != torch.float32 and kept is not None and _shortened(kept, present):
            return kept.to(present.device)
        return present.float()

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


def _buffer(name: str) -> str:
    return "float32_" + name.replace(".", "_")


def _shortened(original: Tensor, present: Tensor) -> bool:
    """Whether ``present`` is ``original`` in another dtype."""
    return original.shape == present.shape and torch.equal(original.to(present.device, present.dtype), present)


def latent_side(config: ChameleonVQVAEConfig) -> int:
    """The number of rows (and of columns) in a picture's grid of codes."""
    return config.resolution >> (len(config.channel_multiplier) - 1)


@torch.inference_mode()
def decode_codes(vqmodel: Any, codes: Tensor) -> Tensor:
    """Decode codes ``(n, rows, columns)`` int64 to pixels ``(n, in_channels, H, W)`` float32 in about [-1, 1].

    ``vqmodel`` is a ``ChameleonVQVAE`` with a `VQDecoder` as ``decoder``. Its device is used; autocast has no effect.
    """
    decoder = vqmodel.decoder
    table, weight, bias = (decoder.in_float32(vqmodel, name) for name in BEFORE_DECODER)
    with torch.autocast(codes.device.type, enabled=False):
        quantised = F.embedding(codes, table).permute(0, 3, 1, 2)
        pixels: Tensor = decoder(F.conv2d(quantised, weight, bias))
    return pixels
