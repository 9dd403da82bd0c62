"""A decoder with Triton steps against the same model in PyTorch; on a GPU, captured against not captured."""

import pytest
import torch
from devices import DEVICE, INTERPRETED
from models_for_tests import drawing_model
from test_classes import text_model
from test_cpu_step import SHAPES, run, shaped_model
from traces import IMAGE_ONLY, INTERLEAVED, prompts_of, uncaptured

pytest.importorskip("triton")

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.decoder.step_operations import HALVES, many_rows
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.ops import Matrix, joint_linear, last_backend

ROWS = [[3, 5, 4, 9, 8], [7, 6, 5, 4, 3, 8, 9, 12, 11, 10] * 4, [9, 8, 3]]


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]] if INTERPRETED else SHAPES, ids=str)
def test_steps_and_logits(shape: dict, dtype: torch.dtype):
    model = shaped_model(1, shape).to(DEVICE, dtype)
    ours, torchs = Decoder(model), Decoder(model)
    ours._take_steps_by(TritonStep(model.model, ours.swin, "triton"))
    torchs._fast_step = None
    found, expected = run(ours, ROWS, 2), run(torchs, ROWS, 2)
    assert last_backend() == "triton"
    assert found.dtype == torch.float32
    tolerance = 2e-5 if dtype == torch.float32 else 0.05  # torch rounds every result to bfloat16
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    for spans in (None, [(3, 9), (20, 27)]):
        mine, its = ours.logits(expected[-1].float(), spans), torchs.logits(expected[-1], spans)
        for lo, hi in spans or [(0, mine.shape[1])]:
            assert (mine[:, lo:hi] - its[:, lo:hi]).abs().max() <= tolerance * its[:, lo:hi].abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_models_of_text(family: str):
    model = text_model(family, 2).to(DEVICE)
    ours, torchs = Decoder(model), Decoder(model)
    ours._take_steps_by(TritonStep(model.model, ours.swin, "triton"))
    torchs._fast_step = None
    found, expected = run(ours, ROWS[:2], 1), run(torchs, ROWS[:2], 1)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.skipif(INTERPRETED, reason="torch has this product on a GPU alone")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_products_of_many_rows(dtype: torch.dtype):
    x = torch.randn(40, 320, device=DEVICE)
    matrices = [Matrix(torch.randn(n, 320, device=DEVICE).to(dtype)) for n in (96, 33)]
    found, wanted = many_rows(x, matrices), joint_linear(x.to(dtype).float(), matrices)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.skipif(INTERPRETED, reason="graphs are captured on a GPU alone")
@pytest.mark.parametrize("mode", [IMAGE_ONLY, INTERLEAVED], ids=lambda mode: mode["multimodal_generation_mode"])
@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": 3.0}, {"guidance": Guidance.instruct(), "repetition_penalty": 1.2}, {"num_return_sequences": 2}],
    ids=str,
)
def test_captured_steps_draw_what_others_do(options: dict, mode: dict, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=24).to(DEVICE, torch.bfloat16)
    pool = fastdecode.new_pool(model, pages=60)
    # Some versions of transformers penalise padding. The sampler does not, and leaves padded prompts to them.
    lengths = (9, 9, 9) if "repetition_penalty" in options else (9, 30, 3)
    prompts = {k: v.to(DEVICE) for k, v in prompts_of(model, lengths).items()}
    given = {**prompts, **mode, **options, "kv_pool": pool}
    if mode is INTERLEAVED:
        given["max_new_tokens"] = 80
    first = fastdecode.generate(model, **given)
    kept = len(pool.captured)
    assert kept > 0
    assert "captured as a CUDA graph" in str(fastdecode.explain(model, **given))
    assert torch.equal(fastdecode.generate(model, **given), first)
    assert len(pool.captured) == kept
    uncaptured(monkeypatch)
    assert torch.equal(fastdecode.generate(model, **given), first)
    assert pool.used == 0
