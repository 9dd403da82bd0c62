"""`ForwardDecoder`: the model's own forward over ragged rows, and every alteration of a model that leads to it.

The expected tokens are those of transformers' own generate, of the same model.
"""

import inspect
import random
import re

import pytest
import torch
from altered import ALTERATIONS, global_hook
from models_for_tests import padded, pixels, placeholder_block, text_ids, tiny_model
from test_classes import FAMILIES, VARIANTS, batch, text_model
from transformers import GenerationMixin
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel

import fastdecode
from fastdecode.decoder import Decoder, ForwardDecoder, decoder_for
from fastdecode.decoder.alterations import needs_forward
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import decode_pictures

MODELS = {
    "chameleon": lambda: tiny_model(0, layers=3),
    "swin": lambda: tiny_model(1, layers=3, swin_norm=True, kv_heads=2, bias=True),
    **{name: (lambda name=name: text_model(name, num_hidden_layers=3)) for name in ("llama", "qwen3")},
}
MORE_MODELS = {name: (lambda name=name: text_model(name, num_hidden_layers=3)) for name in ("mistral", "qwen2")}
CACHE_NAMES = [n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaModel.forward).parameters]
OPTIONS = {"max_new_tokens": 25, "do_sample": False}
SAMPLED = OPTIONS | {"do_sample": True}
LONG = [pytest.param(name, marks=pytest.mark.long) for name in MORE_MODELS]


def made(name: str):
    return (MODELS | MORE_MODELS)[name]()


def inputs_of(model, alone: bool = False) -> dict[str, torch.Tensor]:
    if hasattr(model.config, "vocabulary_map"):
        return padded([text_ids(model, i, n) for i, n in enumerate((9, 4)[: 1 if alone else 2])])
    return batch(3, [9] if alone else [9, 4])


def theirs(model, **more) -> torch.Tensor:
    return GenerationMixin.generate(model, **inputs_of(model), **OPTIONS, **more)


def ours(model, **more) -> torch.Tensor:
    return fastdecode.generate(model, **inputs_of(model), **OPTIONS, **more)


def decoder_line(model) -> str:
    lines = str(fastdecode.explain(model, **inputs_of(model), **OPTIONS)).splitlines()
    return next(line for line in lines if line.startswith("decoder"))


# --- alterations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *LONG])
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_model_writes_what_transformers_writes(alteration: str, name: str):
    model = made(name)
    before = ours(model)
    assert torch.equal(before, theirs(model))
    model = ALTERATIONS[alteration](model)
    expected = theirs(model)
    assert before.shape != expected.shape or not torch.equal(before, expected)
    assert torch.equal(ours(model), expected)
    assert isinstance(decoder_for(model), ForwardDecoder)
    assert "each step a call of the model's own forward, because " in decoder_line(model)


@pytest.mark.parametrize("name", MODELS)
def test_global_hooks(name: str):
    model = made(name)
    before = ours(model)
    with global_hook():
        expected = theirs(model)
        assert not torch.equal(before, expected)
        assert torch.equal(ours(model), expected)
        assert decoder_line(model).endswith("own forward, because torch has global forward hooks")
    assert torch.equal(ours(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_every_door(name: str):
    model = ALTERATIONS["layer_hook"](made(name))
    alone = inputs_of(model, alone=True)
    expected = GenerationMixin.generate(model, **alone, **OPTIONS)
    for found in (
        fastdecode.generate(model, **alone, **OPTIONS),
        model.generate(**alone, **OPTIONS, custom_generate=fastdecode.custom_generate),
        fastdecode.enable(model).generate(**alone, **OPTIONS),
        fastdecode.Engine(model).submit(alone, **OPTIONS).result(),
    ):
        assert torch.equal(found, expected)
    events = fastdecode.stream(model, None, alone, **OPTIONS)
    tokens = [token for event in events if isinstance(event, fastdecode.Tokens) for token in event.tokens]
    assert tokens == expected[0, alone["input_ids"].shape[1] :].tolist()


def test_a_forward_replaced_on_the_class(monkeypatch: pytest.MonkeyPatch):
    model = text_model("llama")
    before, own = ours(model), LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: -own(self, x))
    assert needs_forward(model) == "LlamaMLP.forward was replaced"
    expected = theirs(model)
    assert not torch.equal(before, expected)
    assert torch.equal(ours(model), expected)


def test_an_attention_function_of_ones_own():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def sharper(module, query, *args, **kwargs):
        return sdpa_attention_forward(module, query * 4, *args, **kwargs)

    AttentionInterface.register("sharper", sharper)
    model = text_model("llama")
    before = ours(model)
    model.set_attn_implementation("sharper")
    with pytest.raises(ValueError, match=r"attn_implementation='sharper' cannot be used; call .*'sdpa'"):
        ours(model, fallback="error")
    AttentionMaskInterface.register("sharper", sdpa_mask)
    expected = theirs(model)
    assert not torch.equal(before, expected)
    assert torch.equal(ours(model), expected)
    assert needs_forward(model) == "attn_implementation='sharper' is not one of transformers' own"


def test_layers_that_the_config_leaves_out():
    model = text_model("llama", num_hidden_layers=3)
    before = ours(model)
    model.config.num_hidden_layers = 2
    expected = theirs(model)
    assert not torch.equal(before, expected)
    assert torch.equal(ours(model), expected)


def test_training_mode_with_dropout():
    model = text_model("llama", attention_dropout=0.5).train()
    assert needs_forward(model) == "it is in training mode, with dropout"
    assert needs_forward(model.eval()) is None
    model.gradient_checkpointing_enable()
    assert torch.equal(ours(model), theirs(model))
    with pytest.raises(ValueError, match=r"^the model is in training mode with gradient checkpointing"):
        ours(model.train(), fallback="error")


def test_eager_attention():
    model = ALTERATIONS["layer_hook"](text_model("qwen3", num_hidden_layers=3))
    model.set_attn_implementation("eager")
    assert torch.equal(ours(model), theirs(model))


def test_hooks_may_keep_what_they_see_and_change_it_in_place():
    model = text_model("llama")
    kept = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: kept.append(output.mul_(-1)))
    assert torch.equal(ours(model), theirs(model))
    assert not any(tensor.is_inference() for tensor in kept)


def test_a_model_that_was_not_altered_takes_the_fast_decoder():
    for name in (*MODELS, *MORE_MODELS):
        model = made(name)
        assert needs_forward(model) is None
        model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)
        assert isinstance(decoder_for(model), Decoder)  # which calls it
        assert torch.equal(ours(model), theirs(model))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "qwen3" else pytest.mark.long) for name in FAMILIES]
)
def test_text_is_that_of_the_fast_decoder(family: str, variant: str, monkeypatch: pytest.MonkeyPatch):
    model = text_model(family, len(variant), **VARIANTS[variant])
    options = batch(len(variant), [40, 1, 9, 9]) | {"max_new_tokens": 30, "seed": 2}  # no draw is a tie
    for more in ({"do_sample": False}, {"do_sample": True, "top_p": 0.9, "guidance_scale": 1.5}):
        with monkeypatch.context() as patch:
            fast = fastdecode.generate(model, **options, **more)
            patch.setattr("fastdecode.decoder.choice.needs_forward", lambda model: "a test asked for it")
            assert torch.equal(fastdecode.generate(model, **options, **more), fast)


# --- dtypes, devices, wrappers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *LONG])
def test_float64(name: str):
    model = made(name).double()
    assert torch.equal(ours(model), theirs(model))
    assert decoder_line(model).endswith("own forward, because its weights are float64")
    assert fastdecode.new_pool(model).keys[0].dtype == torch.float64


@pytest.mark.parametrize("name", [*MODELS, *LONG])
def test_autocast(name: str):
    """Prompts alone: transformers' padding changes its own tokens in bfloat16."""
    model = made(name)
    for seed in range(3):
        one = {"input_ids": torch.tensor([random.Random(seed).choices(range(8, 30), k=11)])}
        with torch.autocast("cpu", torch.bfloat16):
            expected = GenerationMixin.generate(model, **one, **OPTIONS)
            assert torch.equal(fastdecode.generate(model, **one, **OPTIONS), expected)
            assert decoder_line(model).endswith("because torch.autocast to bfloat16 is on")


def test_autocast_of_an_engine():
    model = made("qwen3")
    one = inputs_of(model, alone=True)
    with torch.autocast("cpu", torch.bfloat16):
        made_inside = fastdecode.Engine(model)
        expected = GenerationMixin.generate(model, **one, **OPTIONS)
    made_outside = fastdecode.Engine(model)
    with made_inside:  # its thread knows nothing of the caller's autocast
        assert torch.equal(made_inside.submit(one, **OPTIONS).result(), expected)
    handle = made_outside.submit(one, **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        handle.result()
        with pytest.raises(RuntimeError, match=r"^torch.autocast to bfloat16 is on, and this engine was made with no"):
            made_outside.submit(one, **OPTIONS)
    assert torch.equal(handle.result(), GenerationMixin.generate(model, **one, **OPTIONS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str, dtype: torch.dtype):
    model = ALTERATIONS["layer_hook"](made(name).to(dtype))
    one = inputs_of(model, alone=True)
    expected = GenerationMixin.generate(model, **one, **OPTIONS)
    assert torch.equal(fastdecode.generate(model, **one, **OPTIONS), expected)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_are_the_function_they_were_made_of(name: str):
    model = made(name)
    expected = theirs(model)
    compiled = torch.compile(model)
    assert torch.equal(ours(compiled), expected)
    assert decoder_line(compiled).endswith("(torch.compile has no part in it)")
    assert torch.equal(
        fastdecode.Engine(compiled).submit(inputs_of(model, alone=True), **OPTIONS).result()[0, 9:],
        (GenerationMixin.generate(model, **inputs_of(model, alone=True), **OPTIONS)[0, 9:]),
    )
    assert torch.equal(fastdecode.enable(compiled).generate(**inputs_of(model), **OPTIONS), expected)
    compiled.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match=r"^the OptimizedModule around the model has hooks"):
        ours(compiled)
    model.compile()
    assert torch.equal(ours(model), expected)
    assert decoder_line(model).endswith("(torch.compile has no part in it)")
    model.model.layers[1].register_forward_hook(lambda module, args, output: None)
    assert "own forward, because model.layers.1 has a forward hook" in decoder_line(model)


def test_a_compiled_forward_is_called():
    model = text_model("llama")
    expected = theirs(model)
    model.forward = torch.compile(model.forward, backend="eager")
    assert torch.equal(ours(model), expected)
    assert decoder_line(model).endswith("because the model has a forward of its own")


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    for name in MODELS:
        model = made(name)
        before = theirs(model)
        config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, config).eval()
        expected = adapted.generate(**inputs_of(model), **OPTIONS)
        assert not torch.equal(before, expected)
        assert torch.equal(ours(adapted), expected)
        with adapted.disable_adapter():
            assert torch.equal(ours(adapted), before)
        made_with = fastdecode.Engine(adapted)
        adapted.base_model.disable_adapter_layers()
        with pytest.raises(RuntimeError, match="the model was changed after this engine was made"):
            made_with.submit(inputs_of(model, alone=True), **OPTIONS)
    tuned = peft.get_peft_model(made("chameleon"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    prompt = {"input_ids": torch.tensor([[8, 9]])}
    reason = "adapter 'default' is of kind PROMPT_TUNING, which changes more than"
    with pytest.raises(ValueError, match=reason):
        fastdecode.generate(tuned, **prompt, **OPTIONS, fallback="error")
    assert reason in fastdecode.explain(tuned, **prompt, **OPTIONS).reason
    assert torch.equal(fastdecode.generate(tuned, **prompt, **OPTIONS), tuned.generate(**prompt, **OPTIONS))


def test_weights_that_accelerate_moves():
    accelerate = pytest.importorskip("accelerate")
    for name in MODELS:
        model = made(name)
        expected = theirs(model)
        accelerate.cpu_offload(model, execution_device="cpu")
        assert {p.device.type for p in model.model.layers.parameters()} == {"meta"}
        assert torch.equal(ours(model), expected)
        assert decoder_line(model).endswith("because the model has a hook of accelerate")
        assert torch.equal(theirs(model), expected)
    offloaded = tiny_model(0)
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    vocabulary = vocabulary_of(offloaded)
    with pytest.raises(ValueError, match=r"^the weights of model\.model\.vqmodel are offloaded"):
        fastdecode.generate(
            offloaded, torch.tensor([placeholder_block(vocabulary)]), pixel_values=pixels(0, 1), **OPTIONS
        )
    with pytest.raises(ValueError, match=r"^the weights of model\.model\.vqmodel are offloaded"):
        decode_pictures(offloaded, [vocabulary.code_ids[: vocabulary.image_length]], vocabulary)


# --- refusals and engines -------------------------------------------------------------------------------------------


def test_an_engine_whose_model_is_altered_later_says_so():
    model = made("llama")
    engine = fastdecode.Engine(model)
    one = inputs_of(model, alone=True)
    engine.submit(one, **OPTIONS).result()
    for module in (model, model.model.layers[1], model.model.layers[0].self_attn.q_proj, model.lm_head):
        handle = module.register_forward_hook(lambda module, args, output: None)
        with pytest.raises(RuntimeError, match=r"^the model was changed after this engine was made \(.*: make another"):
            engine.submit(one, **OPTIONS)
        handle.remove()
    assert len(engine.submit(one, **OPTIONS).result()) == 1
    handle = model.model.layers[1].register_forward_hook(lambda module, args, output: None)
    altered = fastdecode.Engine(model)
    altered.submit(one, **OPTIONS).result()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"no longer: model\.layers\.1 has a forward hook"):
        altered.submit(one, **OPTIONS)
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 88))
    with pytest.raises(RuntimeError, match="its modules, their hooks, adapters or weights are others"):
        engine.submit(one, **OPTIONS)


def test_deterministic_is_refused_with_the_reason():
    model = ALTERATIONS["attention_hook"](made("chameleon"))
    message = "this model has none: its own forward is called, because model.layers.1.self_attn has a forward hook"
    with pytest.raises(ValueError, match=re.escape(message)):
        ours(model, deterministic=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.Engine(model, deterministic=True)


def test_a_subclass_that_prepares_its_inputs_otherwise_is_handed_over():
    model = made("llama")

    class Other(type(model)):
        def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
            return super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)

    model.__class__ = Other
    message = r"^Other has a prepare_inputs_for_generation of its own, which fastdecode does not call"
    with pytest.raises(ValueError, match=message):
        ours(model, fallback="error")
    with pytest.raises(ValueError, match=message):
        fastdecode.Engine(model)
    state = torch.get_rng_state()
    expected = GenerationMixin.generate(model, **inputs_of(model), **SAMPLED)
    torch.set_rng_state(state)
    assert torch.equal(fastdecode.enable(model).generate(**inputs_of(model), **SAMPLED), expected)
    assert "because Other has a prepare_inputs_for_generation" in decoder_line(model)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda own: lambda x, **kwargs: own(x, **(kwargs | dict.fromkeys(CACHE_NAMES))),
            "puts no keys into the cache",
        ),
        (lambda own: lambda x, **kwargs: own(own(x, **kwargs), **kwargs), "gives its cache keys twice"),
    ],
    ids=["no cache", "twice"],
)
def test_a_forward_that_cannot_be_continued_fails(forward, message: str):
    model = text_model("llama", num_hidden_layers=1)
    layer = model.model.layers[0]
    layer.forward = forward(layer.forward)
    with pytest.raises(RuntimeError, match=message):
        ours(model)
