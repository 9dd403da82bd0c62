"""Odd calls: what is legal gives transformers' tokens, and what is wrong is refused in a sentence."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from models_for_tests import (
    BOS,
    drawing_model,
    picture,
    pixels,
    placeholder_block,
    text_ids,
    tiny_model,
    tiny_processor,
)
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.chameleon import modeling_chameleon
from transformers.models.llama import modeling_llama

import fastdecode
from fastdecode import Guidance, Stream
from fastdecode.generation.validation import OTHER_NAMES
from fastdecode.models.families import vocabulary_of

MODEL = tiny_model(0)
PROCESSOR = tiny_processor()
PROMPT = torch.tensor([[BOS, *text_ids(MODEL, 0, 5)]])
BLOCK = torch.tensor([[BOS, *placeholder_block(vocabulary_of(MODEL))]])
SHORT = {"max_new_tokens": 8}
LINEAR = functional.linear


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=60, num_hidden_layers=2, max_position_embeddings=64, **sizes, **special)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.6)
    return model


def same(model, **more) -> None:
    call = {"input_ids": PROMPT, **SHORT} | more
    assert torch.equal(fastdecode.generate(model, **call), model.generate(**call))


def generate(**options):
    return fastdecode.generate(MODEL, **{"input_ids": PROMPT, **SHORT} | options)


def draw(**options):
    return fastdecode.generate(drawing_model(1), PROMPT[:, :1], multimodal_generation_mode="image-only", **options)


# --- the model ------------------------------------------------------------------------------------------------------


class Negated:
    """A mode of torch that negates what is computed with ``weight``, known by its memory: products have many names."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.memory = weight.untyped_storage().data_ptr()

    def is_the_weight(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == self.memory

    def changed(self, function, args, kwargs):
        found = function(*args, **(kwargs or {}))
        computed = isinstance(found, torch.Tensor) and not self.is_the_weight(found)
        return -found if computed and any(map(self.is_the_weight, args)) else found


class NegatedHead(Negated, TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        return self.changed(function, args, kwargs)


class NegatedProducts(Negated, TorchDispatchMode):
    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        return self.changed(function, args, kwargs)


@pytest.mark.parametrize("mode", [NegatedHead, NegatedProducts])
def test_modes_of_torch_are_called(mode):
    model = llama()
    plain = model.generate(PROMPT, **SHORT)
    with mode(model.lm_head.weight):
        same(model)
        assert not torch.equal(model.generate(PROMPT, **SHORT), plain)
        assert f"torch is in a {mode.__name__}" in str(fastdecode.explain(model, PROMPT, **SHORT))
    with torch.device("cpu"):
        assert "own forward" not in fastdecode.explain(model, PROMPT, **SHORT).decoder


@pytest.mark.parametrize(
    ("where", "name", "function"),
    [
        (modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest, **more: (q, k)),
        (modeling_llama, "rotate_half", lambda x: x),
        (functional, "linear", lambda x, w, b=None: LINEAR(x, -w, b)),
    ],
)
def test_functions_of_the_forward_that_were_replaced_are_called(where, name, function, monkeypatch):
    model = llama()
    plain = model.generate(PROMPT, **SHORT)
    monkeypatch.setattr(where, name, function)
    same(model)
    assert not torch.equal(model.generate(PROMPT, **SHORT), plain)
    assert f"{name} was replaced" in str(fastdecode.explain(model, PROMPT, **SHORT))


def test_the_order_of_norms_is_that_of_the_layers_not_of_the_config():
    for swin in (False, True):
        model = tiny_model(0, swin_norm=swin)
        before = fastdecode.generate(model, PROMPT, **SHORT)
        model.config.swin_norm = not swin
        same(model)
        assert torch.equal(fastdecode.generate(model, PROMPT, **SHORT), before)


def test_layers_of_two_classes():
    model = tiny_model(0)
    model.model.layers[1] = copy.deepcopy(tiny_model(1, swin_norm=True).model.layers[1])
    assert isinstance(model.model.layers[1], modeling_chameleon.ChameleonSwinDecoderLayer)
    same(model)


def test_attention_that_sees_later_tokens_is_handed_over():
    model = llama()
    model.model.layers[1].self_attn.is_causal = False
    with pytest.raises(ValueError, match=r"layers.1.self_attn.is_causal is False; .*set it to True, or use"):
        fastdecode.generate(model, PROMPT, **SHORT, fallback="error")
    same(model)


def test_a_layer_that_is_used_twice():
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(RuntimeError, match=r"stored once only: give every layer a module and a layer_idx of its own"):
        fastdecode.generate(model, PROMPT, **SHORT)


def test_modules_whose_sizes_cannot_be_read():
    model = llama()
    model.model.embed_tokens = nn.Sequential(model.model.embed_tokens, nn.Tanh())
    with pytest.raises(ValueError, match=r"embed_tokens is a Sequential, which has no weight; use transformers'"):
        fastdecode.generate(model, PROMPT, **SHORT, fallback="error")
    same(model)
    model = llama()
    model.model.layers[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"layers.0 is a Identity, which has no self_attn"):
        fastdecode.generate(model, PROMPT, **SHORT, fallback="error")


@pytest.mark.parametrize("model", [None, "blocks", 3, PROCESSOR, MODEL.model])
def test_what_is_no_model(model):
    for call in (fastdecode.generate, fastdecode.explain):
        with pytest.raises(TypeError, match=f"got {type(model).__name__}"):
            call(model, PROMPT)
    if not isinstance(model, nn.Module):
        with pytest.raises(TypeError, match=f"model is an? {type(model).__name__}: give the model that was enabled"):
            fastdecode.disable(model)


def test_a_model_without_a_generation_config():
    model = llama()
    model.generation_config = None
    with pytest.raises(TypeError, match=r"generation_config is a NoneType: give the model a transformers.Generation"):
        fastdecode.generate(model, PROMPT, **SHORT)


# --- options --------------------------------------------------------------------------------------------------------


def test_a_processor_may_return_float64():
    same(llama(), logits_processor=[lambda tokens, scores: scores.double() * 0.5])
    same(llama(), logits_processor=[lambda tokens, scores: -scores])


@pytest.mark.parametrize("option", ["logits_processor", "stopping_criteria"])
def test_tokens_are_not_for_writing(option):
    prompt = PROMPT.clone()

    def writes(tokens, scores, **more):
        tokens.fill_(3)
        return scores if option == "logits_processor" else False

    with pytest.raises(ValueError, match="writes wrote into the tokens that it was given"):
        generate(input_ids=prompt, **{option: [writes]})
    assert torch.equal(prompt, PROMPT)


@pytest.mark.parametrize("said", [None, [], "33", [99], [-5], [5.5], [True], {5: 6}, 5])
def test_what_prefix_allowed_tokens_fn_returns(said):
    with pytest.raises(ValueError, match=r"prefix_allowed_tokens_fn returned .* for prompt 0: give a list of at least"):
        generate(prefix_allowed_tokens_fn=lambda number, tokens: said)


@pytest.mark.parametrize("kind", [list, set, torch.tensor, np.array])
def test_kinds_that_prefix_allowed_tokens_fn_may_return(kind):
    found = generate(prefix_allowed_tokens_fn=lambda number, tokens: kind([40, 41]))
    assert set(found[0, 6:].tolist()) <= {40, 41}


def test_stop_strings_that_a_tokenizer_cannot_spell():
    with pytest.raises(ValueError, match=r"stop_strings=.*transformers cannot tell how this .* spells its tokens"):
        generate(stop_strings=["w3"], tokenizer=PROCESSOR.tokenizer)


@pytest.mark.parametrize("fallback", [0, False, ""])
def test_a_fallback_that_is_false(fallback):
    with pytest.raises(ValueError, match=r"fallback=.*: give 'transformers'"):
        generate(fallback=fallback)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (torch.tensor([[3]]), r"seed has the shape \(1, 1\)"),
        (np.array([[3]]), r"seed has the shape \(1, 1\)"),
        (torch.tensor(3, device="meta"), "seed=.*it must be an integer"),
        (10**400, "seed of 1329 bits of prompt 0 does not fit 64 bits: give one from"),
    ],
)
def test_seeds(seed, message):
    with pytest.raises(ValueError, match=message):
        generate(seed=seed, do_sample=True)


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("way", [generate, lambda **options: fastdecode.Engine(MODEL).submit([3, 4], **options)])
def test_names_that_options_have_elsewhere(way, name: str):
    with pytest.raises(ValueError, match=f"{name} is not an option of generate: do you mean {OTHER_NAMES[name][:10]}"):
        way(**{name: "image-only"})


def test_a_seed_in_a_tensor():
    assert torch.equal(generate(seed=torch.tensor(3), do_sample=True), generate(seed=3, do_sample=True))


@pytest.mark.parametrize("scale", [1e39, -1e300])
def test_guidance_beyond_float32(scale):
    with pytest.raises(ValueError, match=r"guidance is .*, which is not a finite number"):
        draw(guidance=scale)
    with pytest.raises(ValueError, match=r"weights\[1\] of Guidance is .*, which is not a finite number"):
        Guidance((Stream("full"), Stream("unconditional")), (1.0, scale))


@pytest.mark.parametrize(
    ("kind", "options"), [("full", {"bos": False}), ("images", {"history": False}), ("images", {"bos": False})]
)
def test_options_of_a_stream_of_another_kind(kind, options):
    with pytest.raises(ValueError, match=f"=False belongs to a stream of kind .*; this one is '{kind}'"):
        Stream(kind, **options)


@pytest.mark.parametrize("temperature", [1e-45, 1e-31])
def test_temperatures_that_overflow(temperature):
    with pytest.raises(ValueError, match=r"image.temperature=.* is out of range: it must be 0 .*, or at least 1e-30"):
        draw(image={"temperature": temperature})


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(1, 4, 8, 8),
        torch.zeros(1, 3, 8, 8).long(),
        torch.zeros(1, 3, 8, 8, dtype=torch.complex64),
        torch.zeros(1, 3, 8, 8).to_sparse(),
        picture(0),
    ],
    ids=["channels", "integers", "complex", "sparse", "PIL"],
)
def test_pixels_that_transformers_cannot_read_either(values):
    with pytest.raises(ValueError, match=r"pixel_values is .*; this checkpoint takes "):
        generate(input_ids=BLOCK, pixel_values=values)


def test_a_minimum_length_beyond_the_picture():
    with pytest.raises(ValueError, match=r"min_new_tokens=7: .*ends after a picture of 6 tokens"):
        draw(min_new_tokens=7)
    assert torch.equal(draw(min_new_tokens=6), draw())


def test_pixels_of_none():
    assert torch.equal(generate(pixel_values=None), generate())
    handle = fastdecode.Engine(MODEL).submit({"input_ids": PROMPT, "pixel_values": None}, **SHORT)
    assert torch.equal(handle.result(), generate())
    assert fastdecode.generate(MODEL, BLOCK, pixel_values=pixels(0, 1), **SHORT).shape[1] > BLOCK.shape[1]


# --- the engine -----------------------------------------------------------------------------------------------------


def test_an_engine_aborts_its_own_handles_only():
    engine, other = fastdecode.Engine(MODEL), fastdecode.Engine(MODEL)
    handle, foreign = engine.submit(PROMPT, **SHORT), other.submit(PROMPT, **SHORT)
    with pytest.raises(TypeError, match="handle is an int: give what submit returned"):
        engine.abort(3)
    with pytest.raises(ValueError, match="request 0 is of another engine"):
        engine.abort(foreign)
    assert torch.equal(handle.result(), generate())
    assert torch.equal(foreign.result(), generate())


def test_a_prompt_that_is_given_twice():
    engine = fastdecode.Engine(MODEL)
    for prompt in ([5], PROMPT, {"input_ids": PROMPT}):
        with pytest.raises(ValueError, match="input_ids was given twice"):
            engine.submit(prompt, input_ids=PROMPT, **SHORT)
    assert engine.statistics().submitted == 0


@pytest.mark.parametrize("timeout", [math.inf, 1e30, 10**30])
def test_timeouts_without_end(timeout):
    with fastdecode.Engine(MODEL) as engine:
        assert torch.equal(engine.submit(PROMPT, **SHORT).result(timeout), generate())
    assert torch.equal(fastdecode.Engine(MODEL).submit(PROMPT, **SHORT).result(timeout), generate())


def test_what_cannot_be_copied_says_so():
    engine, pool = fastdecode.Engine(MODEL), fastdecode.new_pool(MODEL)
    for thing in (engine, engine.submit(PROMPT, **SHORT), pool, fastdecode.PagedCache(pool)):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=f"{type(thing).__name__} cannot be copied or pickled"):
                copied(thing)


# --- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["x", 1.5, True, None, (1,)])
def test_numbers_of_pages(wrong):
    pool = fastdecode.new_pool(MODEL)
    pool.take(2)
    calls = [pool.take, pool.expect, pool.reserve, pool.owners, pool.is_shared, lambda page: pool.copy(page, 0)]
    for call in [*calls, lambda page: pool.release([page]), lambda page: pool.share([page])]:
        with pytest.raises(TypeError, match=r"pages? is .*give a whole number|count is .*give a whole number"):
            call(wrong)
    for call in (pool.expect, pool.reserve):
        with pytest.raises(ValueError, match="pages is -1: give a whole number of at least 0"):
            call(-1)
    for call in (pool.release, pool.share):
        with pytest.raises(TypeError, match=r"pages is .*: give a list of pages"):
            call(3)
    assert pool.used == 2


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        ("float32", "cpu", "dtype is 'float32'; a pool of pages needs a floating dtype"),
        (torch.int64, "cpu", "dtype is torch.int64"),
        (torch.float32, "gpu", "device is 'gpu', which torch cannot use here"),
        (torch.float32, "meta", "device is meta, where tensors have no values"),
    ],
)
def test_pools_of_another_dtype_or_device(dtype, device, message):
    with pytest.raises(ValueError, match=message):
        fastdecode.PagePool(1, 1, 8, dtype, device)


@pytest.mark.parametrize("pool", [None, MODEL, 3])
def test_a_cache_of_no_pool(pool):
    with pytest.raises(TypeError, match=f"pool is an? {type(pool).__name__}: give what fastdecode.new_pool"):
        fastdecode.PagedCache(pool)


def test_calls_of_a_cache():
    cache = fastdecode.PagedCache(fastdecode.new_pool(MODEL))
    MODEL(PROMPT, past_key_values=cache)
    keys = torch.zeros(1, 4, 1, 8)
    with pytest.raises(IndexError, match="there is no layer 9: the pool has 2, counted from 0"):
        cache.update(keys, keys, 9)
    with pytest.raises(TypeError, match=r"crop\('x'\): give a negative whole number"):
        cache.crop("x")
    with pytest.raises(ValueError, match=r"batch_repeat_interleave\(0\): give a whole number of at least 1"):
        cache.batch_repeat_interleave(0)
    with pytest.raises(ValueError, match=r"the rows to choose are tensor\(\[0.\]\): give a tensor of row numbers"):
        cache.reorder_cache(torch.tensor([0.0]))
    assert cache.get_seq_length() == PROMPT.shape[1]


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "not an empty name"),
        ("blocks", {"trust_remote_code": "yes"}, "trust_remote_code='yes': give True or False"),
        ("blocks", {"local_files_only": "no"}, "local_files_only='no': give True or False"),
        ("blocks", {"output_loading_info": True}, r"output_loading_info: load returns \(model, processor\)"),
    ],
)
def test_options_of_load(name, options, message):
    with pytest.raises(ValueError, match=message):
        fastdecode.load(name, **options)


def test_an_unused_attribute_of_a_config_changes_nothing():
    assert torch.equal(generate(generation_config=GenerationConfig(colour="red", max_new_tokens=8)), generate())
