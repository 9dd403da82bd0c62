"""The C++ step of models whose matrices are of several types, small ones among them: against PyTorch's modules."""

from itertools import cycle

import pytest
import torch
from isas import DECODE_ISAS, assert_runs_with, each
from models_for_tests import drawing_model, padded, text_ids, tiny_model, whole_logits
from test_classes import batch, text_model
from test_cpu_step import run
from torch import nn

import fastdecode
from fastdecode import ops
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of
from fastdecode.models.quantise import modules_to_shrink
from fastdecode.ops.backends import core

SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6}
WAYS = [
    ("int4", {"group": 32}),
    (None, {}),
    ("q8_0", {}),
    ("int8", {}),
    ("q4_0", {}),
    ("int4", {"group": 64, "symmetric": False}),
    (None, {}),
    ("int4", {"group": 128}),
]
CLOSE = 0.02
"""Another order of sums moves now and then an input of a product to the next of its 255 steps."""


def shrunk(model, *types: str):
    """The model with matrices of these types in turn; without any, of all of them, dense ones in between."""
    ways = cycle([(type, {}) for type in types] or WAYS)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for _, module in modules_to_shrink(model):
        if module is model.lm_head and tied:
            module.weight = model.model.embed_tokens.weight
            continue
        type, options = next(ways)
        if type is not None:
            type = "int8" if module.weight.shape[1] % 32 else type
            small = ops.quantise(module.weight.detach(), type, **options)
            module.weight = nn.Parameter(ops.SmallTensor(small, module.weight.dtype), requires_grad=False)
    return model


def chameleon(seed: int = 0, **settings):
    return shrunk(tiny_model(seed, draws=False, **{"sizes": SIZES, "kv_heads": 6, "layers": 3, **settings}))


def llama(seed: int = 0, **settings):
    return shrunk(text_model("llama", seed, **{"hidden_size": 64, "intermediate_size": 96, **settings}))


GEMMA = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 64}
MODELS = {
    "chameleon": lambda: chameleon(1),
    "swin norms and biases": lambda: chameleon(2, swin_norm=True, bias=True, kv_heads=3),
    "odd sizes": lambda: shrunk(
        tiny_model(
            3, draws=False, sizes={"hidden_size": 36, "intermediate_size": 101, "num_attention_heads": 6}, kv_heads=2
        )
    ),
    "llama, grouped queries": lambda: llama(4),
    "llama, tied": lambda: llama(5, tie_word_embeddings=True),
    "qwen2, biases": lambda: shrunk(text_model("qwen2", 6)),
    "gemma, tied": lambda: shrunk(text_model("gemma", 9, **GEMMA, tie_word_embeddings=True)),
    "int8 only": lambda: shrunk(text_model("llama", 7), "int8"),
    "q4_0 only": lambda: shrunk(text_model("llama", 8, intermediate_size=96), "q4_0"),
}


def decoders(model) -> tuple[Decoder, Decoder]:
    """One with the C++ step, one without."""
    with_it, without = Decoder(model), Decoder(model)
    assert with_it.uses_cpu_step
    without._fast_step = without._small_matrix = None
    return with_it, without


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def rows_of(model, lengths: list[int]) -> list[list[int]]:
    if hasattr(model.config, "vocabulary_map"):
        return [text_ids(model, i, n) for i, n in enumerate(lengths)]
    return [[3 + (7 * i + 11 * j) % 200 for j in range(n)] for i, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [[9], [6, 70, 7, 20, 33], [8] * 13], ids=len)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_equal_to_pytorch(make, lengths: list[int]):
    model = make()
    rows = rows_of(model, lengths)
    fast, plain = decoders(model)
    got, expected = run(fast, rows, 5), run(plain, rows, 5)
    assert got.isfinite().all()
    errors = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.max() <= CLOSE
    assert errors.min() <= 1e-6  # where no input moved
    heads = [d.logits(expected[-1]).clone() for d in (fast, plain)]
    assert off(*heads) <= 1e-5
    spans = [(3, 9), (20, 27)]
    part = fast.logits(expected[-1], spans)
    for lo, hi in spans:
        assert torch.equal(part[:, lo:hi], heads[0][:, lo:hi])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_logits_are_those_of_the_model_itself(make, deterministic: bool):
    """Prefill by torch's operations and by steps, then one step: as the model's own forward, which has no pages."""
    model = make()
    rows = rows_of(model, [30, 1, 12])
    decoder = Decoder(model, deterministic=deterministic)
    cache = decoder.new_cache()
    decoder.prefill(cache, [row[:-1] for row in rows])
    got = decoder.logits(decoder.step(cache, torch.tensor([row[-1] for row in rows])))
    for mine, row in zip(got, rows, strict=True):
        assert off(mine, whole_logits(model, row)[-1]) <= CLOSE


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_row_has_the_same_bits_alone_and_among_others(make):
    model = make()
    lengths = (7, 30, 12, 12, 9, 41, 7, 8, 9)
    rows = [[i + 4, *row] for i, row in enumerate(rows_of(model, list(lengths)))]
    decoder = Decoder(model, deterministic=True)

    def logits_of(some: list[list[int]]) -> torch.Tensor:
        cache = decoder.new_cache()
        decoder.prefill(cache, [row[:-1] for row in some])
        return decoder.logits(decoder.step(cache, torch.tensor([row[-1] for row in some]))).clone()

    together = logits_of(rows)
    for i, row in enumerate(rows):
        assert torch.equal(logits_of([row])[0], together[i])
    assert torch.equal(logits_of(rows[3:]), together[3:])


def test_greedy_tokens():
    """Of the fast step and of the model's own loop in transformers."""
    for model, kinds in (
        (llama(11), "int4, int8, q4_0, q8_0"),
        (shrunk(text_model("llama", 12), "int8"), "int8"),
        (shrunk(text_model("mistral", 13), "q8_0"), "int8, q8_0"),
    ):
        options = {**batch(3, [20, 1, 9]), "max_new_tokens": 25, "min_new_tokens": 25, "do_sample": False}
        assert torch.equal(fastdecode.generate(model, **options), model.generate(**options))
        steps = fastdecode.explain(model, **options).decoder
        called = f"each step one call of the C++ library ({core().cpu_isa()})"
        assert steps.endswith(f"cpu, float32 with weights of {kinds}, {called}")


def pictures(model) -> dict:
    options = padded([text_ids(model, i, 6 - i) for i in range(2)])
    return {**options, "multimodal_generation_mode": "image-only", "do_sample": True}


@pytest.mark.parametrize("types", [("int8",), ("int4",), ()], ids=str)
def test_pictures_with_guidance(types: tuple[str, ...]):
    """Each draw's logits come of two streams; a batch draws what its requests draw alone."""
    model = shrunk(drawing_model(3, resolution=16, sizes={"hidden_size": 64, "intermediate_size": 96}), *types)
    options, length = pictures(model), vocabulary_of(model).image_length
    given = {"guidance": 2.0, "deterministic": True}
    ids = fastdecode.generate(model, **options, seed=[1, 2], **given)
    assert ids.shape[1] == options["input_ids"].shape[1] + length + 2
    assert not torch.equal(ids, fastdecode.generate(model, **options, seed=[1, 2], guidance=1.0, deterministic=True))
    for i in range(2):
        mask = options["attention_mask"][i] != 0
        ids_of_one = options["input_ids"][i : i + 1, mask]
        one = {**options, "input_ids": ids_of_one, "attention_mask": torch.ones_like(ids_of_one)}
        alone = fastdecode.generate(model, **one, seed=i + 1, **given)
        assert torch.equal(alone[0, -length - 2 :], ids[i, -length - 2 :])


def test_an_engine():
    model = llama(14)
    inputs = batch(5, [12, 3])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    expected = fastdecode.generate(model, **inputs, **options, deterministic=True)
    with fastdecode.Engine(model, deterministic=True) as engine:
        handles = [
            engine.submit(ids[mask != 0], **options)
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        for row, handle in zip(expected, handles, strict=True):
            new = handle.result()[0].tolist()
            assert new[-12:] == row[-12:].tolist()


def test_what_no_step_reads():
    model = tiny_model(6, draws=False)
    shrunk(model, "int8")
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(ops.SmallTensor(weight.small[:24]), requires_grad=False)
    assert not Decoder(model).uses_cpu_step


@pytest.mark.parametrize("isa", each(DECODE_ISAS))
def test_every_instruction_set(isa: str):
    assert_runs_with(
        isa,
        "import test_small_step as t\n"
        "for make in t.MODELS.values():\n"
        "    for lengths in ([9], [6, 70, 7, 20, 33]): t.test_equal_to_pytorch(make, lengths)\n"
        "    t.test_a_row_has_the_same_bits_alone_and_among_others(make)\n",
    )


@pytest.mark.parametrize("ids", [[5], [5, 6, 7]], ids=["one token", "three tokens"])
def test_embeddings_with_a_largest_norm_are_refused(ids: list[int]):
    model = llama(14)
    assert isinstance(model.model.embed_tokens.weight, ops.SmallTensor)
    model.model.embed_tokens.max_norm = 1.0
    with pytest.raises(ValueError, match=r"max_norm = 1.0: must be None for weights of int4"):
        fastdecode.generate(model, input_ids=torch.tensor([ids]), max_new_tokens=2, do_sample=False)
