"""The caller's default dtype and default device of torch do not change any result."""

import pytest
import torch
from models_for_tests import BOS, drawing_model, padded, text_ids

import fastdecode
from fastdecode import ops


@pytest.fixture(params=[torch.bfloat16, torch.float64, "meta"], ids=str)
def other_default(request: pytest.FixtureRequest):
    """Returns a function: from its call on the default is another one."""

    def set_it() -> None:
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    yield set_it
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_operations(backend: str, other_default):
    x, w = torch.randn(3, 8), torch.randn(4, 8)
    pages = torch.randn(2, 1, 4, 4)
    table, lengths = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, dtype=torch.int64)
    tokens, queries, cos = torch.tensor([1, 0, 3]), torch.randn(3, 2, 4), torch.ones(3, 4)
    own = torch.arange(3, dtype=torch.int32)[:, None]
    streams, seeds = torch.tensor([[0, 1], [2, -1]], dtype=torch.int32), torch.tensor([1, 2])

    def results() -> list[torch.Tensor]:
        stored = torch.zeros_like(pages[:1]).repeat(3, 1, 1, 1)
        drawn = ops.sample(x, streams=streams, seed=seeds, top_p=0.9, backend=backend)
        return [
            ops.linear(x, w, backend=backend),
            ops.joint_linear(x, [ops.Matrix(w), ops.Matrix(w)], backend=backend),
            *ops.rms_norm(x, w[0], residual=x, backend=backend),
            ops.rms_norm(x, w[0], backend=backend),
            ops.swiglu(x, backend=backend),
            ops.embed(tokens, w, backend=backend),
            ops.attend(queries, pages, pages, table, lengths, backend=backend),
            ops.rope_append(x.repeat(1, 2), cos, cos, stored, stored.clone(), own, lengths, backend=backend),
            drawn.token,
            drawn.logprob,
        ]

    expected = results()
    other_default()
    found = results()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("other_default", [torch.bfloat16, torch.float64], ids=str, indirect=True)
@pytest.mark.parametrize("way", ["fused", "operations", "forward"])
def test_generate(way: str, other_default, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=16)
    prompts = padded([[BOS, *text_ids(model, i, n)] for i, n in enumerate((9, 5))])
    options = {"multimodal_generation_mode": "interleaved-text-image", "do_sample": True, "seed": 3, "guidance": 2.0}
    if way == "operations":
        monkeypatch.setattr("fastdecode.decoder.decoder.unsupported_reason", lambda model: "no")
    if way == "forward":
        model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    expected = fastdecode.generate(model, **prompts, **options, repetition_penalty=1.2, max_new_tokens=60)
    other_default()
    found = fastdecode.generate(model, **prompts, **options, repetition_penalty=1.2, max_new_tokens=60)
    torch.set_default_device(None)
    assert torch.equal(found, expected)
