"""Models whose layers accelerate puts on several devices, here a CPU and a disk, are decoded by their own forward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import (
    chameleon,
    emu3_processor,
    janus_processor,
    liquid_tokenizer,
    lumina_model,
    saved,
    saved_liquid,
    tiny_emu3,
    tiny_janus,
)
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode

pytest.importorskip("accelerate")

DRAWN = {"do_sample": True, "seed": 3, "guidance": 2.0, "multimodal_generation_mode": "image-only"}
WRITTEN = {
    "do_sample": True,
    "seed": 3,
    "guidance": 2.0,
    "max_new_tokens": 8,
    "multimodal_generation_mode": "text-only",
}
PROMPT = torch.tensor([[0, 20, 21, 22, 23]])


def of_text(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return {"name": saved(folder, LlamaForCausalLM(config), liquid_tokenizer(320))}


def of_liquid(folder: Path) -> dict[str, Any]:
    name, vqgan = saved_liquid(folder)
    return {"name": name, "vqgan": vqgan}


CHECKPOINTS = {
    "chameleon": (lambda folder: {"name": saved(folder, *chameleon())}, {}),
    "lumina": (lambda folder: {"name": saved(folder, *lumina_model())}, None),
    "janus": (lambda folder: {"name": saved(folder, tiny_janus(), janus_processor())}, {}),
    "emu3": (lambda folder: {"name": saved(folder, tiny_emu3(), emu3_processor())}, {"image_size": (32, 32)}),
    "liquid": (of_liquid, {}),
    "text": (of_text, None),
}
"""By family: writes a checkpoint and returns arguments of `fastdecode.load`; options of a drawing, or None."""


def split(model: Any) -> dict[str, str]:
    """A device_map that leaves the layers from the second on to the disk."""
    [first] = [name for name, _ in model.named_modules() if name.endswith("layers.1") and "vision" not in name]
    stem = first.removesuffix(".1")
    homes = {f"{stem}.{n}": "disk" if n else "cpu" for n in range(len(model.get_submodule(stem)))}
    path = stem.split(".")
    for depth in range(len(path)):
        above = ".".join(path[:depth])
        for name, module in model.get_submodule(above).named_children():
            own = f"{above}.{name}".lstrip(".")
            if name != path[depth] and own not in ADDED and next(module.parameters(), None) is not None:
                homes[own] = "cpu"
    return homes


ADDED = ("vqmodel",)
"""What `fastdecode.load` adds to a Liquid, after transformers has loaded it."""


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_layers_on_a_disk(family: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    make, draws = CHECKPOINTS[family]
    given = make(tmp_path / "model")
    plain, _ = fastdecode.load(**given)
    auto, _ = fastdecode.load(**given, device_map="auto")
    offloaded, _ = fastdecode.load(**given, device_map=split(plain), offload_folder=tmp_path / "disk")
    assert "meta" in {parameter.device.type for parameter in offloaded.parameters()}
    for options in [WRITTEN] if draws is None else [WRITTEN, {**DRAWN, **draws}]:
        expected = fastdecode.generate(plain, PROMPT, **options)
        assert torch.equal(fastdecode.generate(auto, PROMPT, **options), expected)
        assert torch.equal(fastdecode.generate(offloaded, PROMPT, **options), expected)
    said = str(fastdecode.explain(offloaded, PROMPT, **WRITTEN))
    assert "own forward" in said
    assert "hook of accelerate" in said
    handle = fastdecode.Engine(offloaded).submit(PROMPT, **WRITTEN)
    assert torch.equal(handle.result(), fastdecode.generate(plain, PROMPT, **WRITTEN))
