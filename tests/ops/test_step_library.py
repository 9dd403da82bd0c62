"""The operations of a decode step in `torch.ops.fastdecode`: torch's checks, and a layer in one graph."""

import pytest
import torch
from step_cases import paged, rotation
from test_library import all_clean, compiled
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from fastdecode.ops import attend, embed, linear, rms_norm, rope_append, swiglu

OPS = torch.ops.fastdecode
ROWS, HEADS, KV_HEADS, DIM, HIDDEN = 3, 4, 2, 8, 24


def cache_arguments(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    cache = paged([5, 1, 9], KV_HEADS, DIM, 4, dtype, room=2)
    table = cache.table.clamp(min=0)
    return cache.keys.nan_to_num(), cache.values.nan_to_num(), table, cache.lengths


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_all_are_clean(backend: str):
    x, weight = torch.randn(ROWS, HIDDEN), torch.randn(30, HIDDEN).bfloat16()
    options = {"backend": backend}
    assert all_clean(opcheck(OPS.linear, (x, weight), options))
    assert all_clean(opcheck(OPS.linear, (x, weight, torch.randn(30)), options))
    assert all_clean(opcheck(OPS.rms_norm, (x, torch.randn(HIDDEN), 1e-3), options))
    assert all_clean(opcheck(OPS.add_rms_norm, (x, x + 1, torch.randn(HIDDEN)), options))
    for more in ({}, {"activation": "gelu"}, {"activation": "gelu_tanh"}):
        assert all_clean(opcheck(OPS.swiglu, (x,), {**options, **more}))
    assert all_clean(opcheck(OPS.embed, (torch.tensor([2, 0, 29]), weight), options))
    arguments = cache_arguments()
    assert all_clean(opcheck(OPS.attend, (torch.randn(ROWS, HEADS, DIM), *arguments), options))
    assert all_clean(opcheck(OPS.attend, (torch.randn(ROWS, HEADS, DIM), *arguments, 0.25), options))
    cos, sin = rotation(arguments[-1], DIM, torch.float32)
    qkv = torch.randn(ROWS, (HEADS + 2 * KV_HEADS) * DIM)
    for norms in ({}, {"q_norm": torch.ones(HEADS, DIM), "q_norm_bias": torch.ones(HEADS, DIM)}):
        assert all_clean(opcheck(OPS.rope_append, (qkv, cos, sin, *arguments), {**options, **norms}))


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embedding": (20, HIDDEN),
        "qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
        "out": (HIDDEN, HEADS * DIM),
        "gate_up": (2 * 40, HIDDEN),
        "down": (HIDDEN, 40),
    }
    return {name: torch.randn(shape, generator=generator).bfloat16() / 5 for name, shape in shapes.items()}


def layer(w: dict[str, torch.Tensor], tokens, keys, values, table, lengths, cos, sin) -> torch.Tensor:
    ones = torch.ones(HIDDEN)
    residual = embed(tokens, w["embedding"])
    qkv = linear(rms_norm(residual, ones), w["qkv"])
    queries = rope_append(qkv, cos, sin, keys, values, table, lengths)
    found = attend(queries, keys, values, table, lengths + 1)
    normed, residual = rms_norm(linear(found.flatten(1), w["out"]), ones, residual=residual)
    return residual + linear(swiglu(linear(normed, w["gate_up"])), w["down"])


def test_a_layer_in_a_whole_graph():
    """Two steps, what is stored in the pages among it, against the same without the compiler, bit by bit."""
    graph, w = compiled(layer), weights()
    pages, expected_pages = cache_arguments(torch.float16), cache_arguments(torch.float16)
    lengths = pages[-1]
    for step in range(2):
        tokens, (cos, sin) = torch.tensor([3, 19, step]), rotation(lengths, DIM, torch.float32)
        got = graph(w, tokens, *pages[:3], lengths, cos, sin)
        assert torch.equal(got, layer(w, tokens, *expected_pages[:3], lengths, cos, sin))
        assert torch.equal(pages[0], expected_pages[0])
        assert torch.equal(pages[1], expected_pages[1])
        lengths = lengths + 1
    assert not torch.equal(pages[0], cache_arguments(torch.float16)[0])


def test_tracers_record_the_operation():
    x = torch.randn(2, 8)
    graph = make_fx(lambda x: swiglu(x))(x)
    assert "fastdecode.swiglu" in graph.code
    assert torch.equal(graph(x), swiglu(x))
    graph = make_fx(lambda x: swiglu(x, activation="gelu"))(x)
    assert torch.equal(graph(x), swiglu(x, activation="gelu"))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert rms_norm(fake, fake[0]).shape == (2, 8)


def test_a_wrong_call_is_refused_in_a_graph_too():
    with pytest.raises(ValueError, match=r"tokens\[0\] = 9: must be a token in \[0, 3\)"):
        compiled(lambda t, w: embed(t, w))(torch.tensor([9]), torch.zeros(3, 4))
