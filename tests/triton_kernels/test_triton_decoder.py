"""A decoder with Triton steps against the same model in PyTorch; on a GPU, captured against not captured."""

from types import SimpleNamespace

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
from fastdecode.ops import Int4Rows, Matrix, joint_linear, last_backend

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


@pytest.mark.parametrize("group", [32, pytest.param(64, marks=pytest.mark.long)])
def test_a_model_of_torchaos_int4(group: int):
    """Read in place: the values of the reference, and others after a change."""
    torchao = pytest.importorskip("torchao.quantization")
    model = text_model("qwen2", 2, hidden_size=64, intermediate_size=128).bfloat16()
    for module in (*model.model.layers.modules(), model.lm_head):
        if isinstance(module, torch.nn.Linear):
            module.weight = int4_of(torchao.Int4Tensor, module.weight, group)
    model = model.to(DEVICE)
    ours, reference = Decoder(model), Decoder(model)
    ours._take_steps_by(TritonStep(model.model, ours.swin, "triton"))
    reference._take_steps_by(TritonStep(model.model, reference.swin, "reference"))
    mlp, read = model.model.layers[1].mlp, ours._fast_step.layers[1].down.weight
    assert isinstance(read, Int4Rows)
    assert [t.data_ptr() for t in read.tensors] == [
        getattr(mlp.down_proj.weight, name).data_ptr() for name in ("qdata", "scale", "zero_point")
    ]
    found, expected = run_steps(ours), run_steps(reference)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    mine, its = ours.logits(expected), reference.logits(expected)
    assert ours._small_matrix is not None
    assert (mine - its).abs().max() <= 2e-5 * its.abs().max()
    again = TritonStep(model.model, ours.swin, "triton")
    assert ours._fast_step.stand_in_for(again)
    mlp.down_proj.weight.zero_point.mul_(-2)
    changed, expected = run_steps(ours), run_steps(reference)
    assert (changed - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (changed - found).abs().max() > 0.01 * found.abs().max()
    mlp.down_proj.weight = int4_of(torchao.Int4Tensor, mlp.down_proj.weight.zero_point.new_ones(64, 128), group)
    assert not ours._fast_step.stand_in_for(TritonStep(model.model, ours.swin, "triton"))


def int4_of(kind, weight: torch.Tensor, group: int) -> torch.nn.Parameter:
    """As torchao's ``Int4WeightOnlyConfig`` rounds a weight on a GPU."""
    grouped = weight.detach().float().view(len(weight), -1, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = (high - low).clamp(min=1e-6) / 15
    zero = low + scale * 8
    values = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int8).view(weight.shape) - 8
    scale, zero = (part.to(weight.dtype).t().contiguous() for part in (scale, zero))
    data = (values[:, ::2] & 15) | (values[:, 1::2] << 4)
    return torch.nn.Parameter(kind(data.contiguous(), scale, zero, [1, group], weight.shape), requires_grad=False)


def run_steps(decoder: Decoder) -> torch.Tensor:
    """The hidden states of two rows after a token each, over keys and values that torch cannot compute from int4."""
    generator = torch.Generator().manual_seed(3)
    step = decoder._fast_step
    inner = decoder.inner
    heads, dim = step.sizes.kv_heads, step.sizes.head_dim
    keys = [torch.randn(4, heads, 8, dim, generator=generator).to(DEVICE, torch.bfloat16) for _ in inner.layers]
    values = [torch.randn(4, heads, 8, dim, generator=generator).to(DEVICE, torch.bfloat16) for _ in inner.layers]
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32, device=DEVICE)
    cache = SimpleNamespace(keys=keys, values=values, lengths=torch.tensor([9, 4], device=DEVICE), page_table=table)
    x = torch.randn(2, inner.config.hidden_size, generator=generator).to(DEVICE)
    return step(cache, x, *decoder.rope(cache.lengths, 9))


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
