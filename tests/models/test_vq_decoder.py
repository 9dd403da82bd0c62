"""The VQ decoder against that of Janus in transformers, which has the same architecture."""

import re

import pytest
import torch
from models_for_tests import tiny_model, vq_config
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from fastdecode.models.chameleon import attach_decoder
from fastdecode.models.families import vocabulary_of
from fastdecode.models.painting import to_pictures
from fastdecode.models.pictures import check_can_draw, decode_pictures, encode_pictures, missing_decoder_keys
from fastdecode.models.vq_decoder import VQDecoder, decode_codes, latent_side


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        key: 1.0 * (key.endswith("weight") and value.ndim == 1) + 0.1 * torch.randn(value.shape, generator=drawn)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("multipliers", [[1, 2, 2], [1, 1, 2, 2], [2, 1]])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("faint", [False, True])
def test_equals_janus_with_levels_reversed(multipliers: list[int], blocks: int, faint: bool):
    """``faint``: what reaches the last norm is so small that its epsilon counts."""
    levels, resolution = len(multipliers), 16
    lowest = resolution >> (levels - 1)
    config = vq_config(
        resolution, channel_multiplier=multipliers, num_res_blocks=blocks, attn_resolutions=[lowest], latent_channels=6
    )
    ours = VQDecoder(config).eval()
    weights = random_weights(ours, 1)
    if faint:
        for key in weights:  # no block adds anything, and nothing but the latents counts
            weights[key] *= not (re.search(r"conv2|proj_out", key) or key.endswith(("conv.bias", "conv_in.bias")))
            weights[key] *= not key.endswith("nin_shortcut.bias")
    ours.load_state_dict(weights)
    theirs = JanusVQVAEDecoder(
        JanusVQVAEConfig(
            base_channels=32, channel_multiplier=multipliers, num_res_blocks=blocks, latent_channels=6, out_channels=3
        )
    ).eval()
    reverse = {
        re.sub(r"^up\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key): value
        for key, value in weights.items()
    }
    theirs.load_state_dict(reverse)
    latents = torch.randn((2, 6, lowest, lowest), generator=torch.Generator().manual_seed(2))
    latents *= 1e-3 if faint else 1
    with torch.no_grad():
        expected = theirs(latents)
        got = ours(latents)
    assert got.shape == (2, 3, resolution, resolution)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_keys_are_those_of_taming_transformers():
    config = vq_config(16, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[8])
    norm = [f"norm.{p}" for p in ("weight", "bias")]
    block = [f"{m}.{p}" for m in ("norm1", "conv1", "norm2", "conv2") for p in ("weight", "bias")]
    attention = norm + [f"{m}.{p}" for m in ("q", "k", "v", "proj_out") for p in ("weight", "bias")]
    shortcut = ["nin_shortcut.weight", "nin_shortcut.bias"]
    expected = {f"{m}.{p}" for m in ("conv_in", "norm_out", "conv_out") for p in ("weight", "bias")}
    expected |= {f"mid.{b}.{key}" for b in ("block_1", "block_2") for key in block}
    expected |= {f"mid.attn_1.{key}" for key in attention}
    for level in (0, 1):
        for i in (0, 1):
            expected |= {f"up.{level}.block.{i}.{key}" for key in block}
    expected |= {f"up.0.block.0.{key}" for key in shortcut}  # 64 to 32 channels
    expected |= {f"up.1.attn.{i}.{key}" for i in (0, 1) for key in attention}
    expected |= {"up.1.upsample.conv.weight", "up.1.upsample.conv.bias"}
    assert set(VQDecoder(config).state_dict()) == expected


def test_chameleon_has_attention_in_the_middle_only():
    keys = VQDecoder(vq_config(16)).state_dict()
    assert not any(".attn." in key for key in keys)
    assert any(key.startswith("mid.attn_1") for key in keys)
    without = VQDecoder(vq_config(16, attn_type="none"))
    assert not any("attn" in key for key in without.state_dict())
    assert without(torch.zeros(1, 8, 4, 4)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("resolution", "multipliers", "side"), [(512, [1, 1, 2, 2, 4], 32), (8, [1, 2, 2], 2), (8, [1], 8)]
)
def test_latent_side(resolution: int, multipliers: list[int], side: int):
    assert latent_side(vq_config(resolution, channel_multiplier=multipliers)) == side


@pytest.mark.parametrize("scattered", [False, True])
def test_ids_of_a_block_are_decoded_in_rows(scattered: bool):
    model = tiny_model(0, scattered=scattered, resolution=16)
    v = vocabulary_of(model)
    codes = torch.arange(16).view(1, 4, 4)
    block = [v.code_ids[c] for c in range(16)]
    vq = model.model.vqmodel
    grid = vq.quantize.embedding.weight[:16].view(4, 4, 8).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = vq.decoder(vq.post_quant_conv(grid))
    torch.testing.assert_close(decode_codes(vq, codes), expected)
    (drawn,) = decode_pictures(model, [block], v)
    assert all(abs(a - b) <= 1 for a, b in zip(drawn.tobytes(), to_pictures(expected)[0].tobytes(), strict=True))
    assert drawn.size == (16, 16)
    assert decode_pictures(model, [], v) == []


def test_encoding_names_the_ids_of_the_codes():
    for scattered in (False, True):
        model = tiny_model(0, scattered=scattered)
        v = vocabulary_of(model)
        shown = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        ids = encode_pictures(model, shown)
        with torch.no_grad():
            codes = model.model.vqmodel.encode(shown).image_tokens.view(3, 4)
        assert [[v.id_to_code[i] for i in row] for row in ids.tolist()] == codes.tolist()
        with pytest.raises(
            ValueError, match=r"pixel_values is \(1, 3, 8, 9\); this checkpoint takes \(pictures, 3, 8, 8\)"
        ):
            encode_pictures(model, torch.zeros(1, 3, 8, 9))


def test_pixels_become_bytes():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    (drawn,) = to_pictures(pixels)
    assert list(drawn.tobytes()[::3]) == [0, 0, 128, 191, 255, 255]


def test_attaching():
    model = tiny_model(0, draws=False)
    weights = random_weights(VQDecoder(model.config.vq_config), 3)
    missing = missing_decoder_keys(model)
    assert missing == [f"model.vqmodel.decoder.{key}" for key in weights]
    with pytest.raises(ValueError, match=rf"no VQ decoder.*{len(missing)} weights are missing \({missing[0]}"):
        check_can_draw(model)
    lacking = {key: value for key, value in weights.items() if key != "conv_in.bias"}
    with pytest.raises(ValueError, match=r"missing \['conv_in.bias'\] \(1 in all\), unexpected none"):
        attach_decoder(model, lacking)
    with pytest.raises(ValueError, match=r"missing none \(0 in all\), unexpected \['loss'\] \(1 in all\)"):
        attach_decoder(model, weights | {"loss": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"conv_in.bias is \(3,\); config.vq_config asks for \(64,\)"):
        attach_decoder(model, weights | {"conv_in.bias": torch.zeros(3)})
    assert missing_decoder_keys(model) == missing
    model.to(torch.bfloat16)
    attach_decoder(model, weights)
    assert missing_decoder_keys(model) == []
    check_can_draw(model)
    decoder = model.model.vqmodel.decoder
    assert not decoder.training
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in decoder.parameters())
    assert "model.vqmodel.decoder.conv_in.bias" in model.state_dict()
