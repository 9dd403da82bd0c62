"""The step that consists of single operations returns the same bits as the C++ step."""

import pytest
import torch
from models_for_tests import drawing_model, text_ids
from test_classes import FAMILIES, text_model
from test_cpu_step import SHAPES, run, shaped_model

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder, ForwardDecoder, decoder_for
from fastdecode.decoder import support as support_of_steps
from fastdecode.decoder.step_operations import HALVES, many_rows
from fastdecode.decoder.support import READ, unsupported_by_triton
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.ops import Matrix, joint_linear, last_backend

LENGTHS = (9, 70, 5, 33)


def both(model, backend: str | None = None) -> tuple[Decoder, Decoder]:
    """One with the C++ step, one of operations."""
    one, other = Decoder(model), Decoder(model)
    other._take_steps_by(TritonStep(model.model, other.swin, backend))
    assert one.uses_cpu_step
    assert other.uses_triton_step
    assert not other.uses_cpu_step
    return one, other


@torch.inference_mode()
def assert_same_bits(model) -> None:
    rows = [[i + 1, *text_ids(model, i, n)] if hasattr(model.config, "vq_config") else numbers(i, n)
            for i, n in enumerate(LENGTHS)]  # fmt: skip
    one, other = both(model)
    expected, found = run(one, rows, 4), run(other, rows, 4)
    assert last_backend() == "cpu"
    assert torch.equal(found, expected)
    assert torch.equal(other.logits(found[-1]), one.logits(expected[-1]))
    spans = [(3, 9), (20, 27)]
    for lo, hi in spans:
        wanted = one.logits(expected[-1], spans)[:, lo:hi].clone()
        assert torch.equal(other.logits(found[-1], spans)[:, lo:hi], wanted)


def numbers(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (count,), generator=generator).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chameleons(shape: dict, dtype: torch.dtype):
    assert_same_bits(shaped_model(1, shape).to(dtype))


@pytest.mark.parametrize(
    "more", [{}, {"attention_bias": True, "head_dim": 24}, {"head_dim": 256}, {"hidden_act": "gelu"}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_text(family: str, more: dict):
    assert_same_bits(text_model(family, 2, **more).bfloat16())


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_with_the_reference_operations(shape: dict):
    model = shaped_model(2, shape)
    one, other = both(model, "reference")
    rows = [[i + 1, *text_ids(model, i, n)] for i, n in enumerate(LENGTHS)]
    expected, found = run(one, rows, 4), run(other, rows, 4)
    assert last_backend() == "reference"
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gemma_with_the_reference_operations(dtype: torch.dtype):
    one, other = both(text_model("gemma", 3, head_dim=256).to(dtype), "reference")
    rows = [numbers(i, n) for i, n in enumerate(LENGTHS)]
    expected, found = run(one, rows, 4), run(other, rows, 4)
    assert last_backend() == "reference"
    assert (found - expected).abs().max() <= (2e-5 if dtype == torch.float32 else 2e-2) * expected.abs().max()


def test_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16)
    ids = torch.tensor([text_ids(model, 0, 9)])
    options = {"multimodal_generation_mode": "image-only", "guidance": Guidance.instruct(), "seed": 3}
    expected = fastdecode.generate(model, ids, do_sample=True, **options)
    made, init = [], Decoder.__init__

    def of_operations(self, model, deterministic=False):
        init(self, model, deterministic)
        self._take_steps_by(TritonStep(model.model, self.swin))
        made.append(self)

    monkeypatch.setattr(Decoder, "__init__", of_operations)
    assert torch.equal(fastdecode.generate(model, ids, do_sample=True, **options), expected)
    assert made
    assert "each step made of Triton kernels" in str(fastdecode.explain(model, ids, do_sample=True, **options))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_products_of_many_rows(dtype: torch.dtype):
    """cuBLAS' product is stood in for by one of the same arguments: float32 sums of rounded numbers."""

    def product(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        assert a.dtype == b.dtype == dtype
        return (a.double() @ b.double()).to(out_dtype)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 24, generator=generator)
    biases = (None, torch.randn(7, generator=generator))
    matrices = [Matrix(torch.randn(7, 24, generator=generator).to(dtype), bias) for bias in biases]
    for given in (matrices, matrices[:1]):
        found = many_rows(x, given, product)
        wanted = joint_linear(x.to(dtype).float(), given, backend="reference")
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_what_is_in_place_is_seen():
    model = shaped_model(3, SHAPES[0])
    one, other = both(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 0.5
    rows = [[i + 1, *text_ids(model, i, n)] for i, n in enumerate(LENGTHS)]
    assert torch.equal(run(other, rows, 2), run(one, rows, 2))


@pytest.mark.parametrize(
    ("capability", "hip", "backend", "expected"),
    [
        ((9, 0), None, "", None),
        ((8, 0), None, "", None),
        ((7, 5), None, "", "the GPU has compute capability 7.5, and no bfloat16: 8.0 is needed"),
        ((9, 0), "7.0", "", "the GPU is not one of NVIDIA's"),
        ((9, 0), None, "cuda", None),  # it draws tokens; a step's other operations run as without it
        ((9, 0), None, "reference", "the environment variable FASTDECODE_BACKEND names reference"),
    ],
)
def test_which_gpus(capability, hip, backend, expected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastdecode.ops.backends.unavailable", lambda backend: None)
    monkeypatch.setattr("fastdecode.ops.backends._default", backend)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.version.hip", hip)
    assert support_of_steps._unsupported_on(torch.device("cuda")) == expected


def test_a_model_on_several_devices_is_decoded_by_its_own_forward():
    model = shaped_model(3, SHAPES[0])
    model.model.layers[1].to("meta")
    decoder = decoder_for(model)
    assert isinstance(decoder, ForwardDecoder)
    assert decoder.forward_reason == "its weights are on cpu, meta"


def test_why_not(monkeypatch: pytest.MonkeyPatch):
    model = shaped_model(3, SHAPES[0])
    monkeypatch.setattr("fastdecode.decoder.support.unavailable", lambda backend: f"no {backend}")
    assert unsupported_by_triton(model) == "no triton"
    monkeypatch.setattr("fastdecode.decoder.support.unavailable", lambda backend: None)
    assert unsupported_by_triton(model) is None
    assert unsupported_by_triton(model.to("meta")) is None
    model = shaped_model(3, SHAPES[0]).to("meta")
    model.model.layers[1].mlp.up_proj.to(torch.float64)
    expected = f"layers.1: mlp.up_proj.weight is float64 on meta, not {READ.replace('the CPU', 'meta')}"
    assert unsupported_by_triton(model) == expected
