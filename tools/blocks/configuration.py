"""Shapes of ``blocks``, and the training material made from the world. One place for both stages of training."""

from __future__ import annotations

import random

import numpy as np
import torch
from transformers import ChameleonVQVAEConfig

from tools.blocks import world

IMAGE_TOKENS = 64
"""Codes of one picture: 8 x 8, each of 8 x 8 pixels."""

VQ = ChameleonVQVAEConfig(
    embed_dim=32,
    num_embeddings=256,
    latent_channels=64,
    resolution=world.SIDE,
    base_channels=32,
    channel_multiplier=[1, 1, 2, 2],
    num_res_blocks=1,
    attn_type="none",
)
LANGUAGE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
}


def pixels(scenes: list[world.Scene]) -> torch.Tensor:
    """Scenes as ``(n, 3, 64, 64)`` float32 in [-1, 1], as the image processor makes them."""
    stack = np.stack([np.asarray(world.draw(scene)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() * (2 / 255) - 1


def any_scene(rng: random.Random) -> world.Scene:
    """Scenes of every task: random ones, and the stages of random goals."""
    if rng.random() < 0.5:
        return world.random_scene(rng, most=6)
    return rng.choice(world.random_goal(rng).steps).scene
