"""Models whose layers fastdecode does not know: their own forward gives the tokens of transformers.

The expected tokens are those of transformers' own generate, of the same model.
"""

import random

import pytest
import torch
import transformers
from family_models import TEXT
from other_models import OTHERS, SIZES, other_model
from transformers import LlamaConfig, LlamaForCausalLM, Phi3ForCausalLM

import fastdecode
from fastdecode.decoder import decoder_for
from fastdecode.decoder.aligned import AlignedDecoder
from fastdecode.decoder.others import traits_of
from fastdecode.models.families import family_of, vocabulary_of

LONG = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
ALIKE = ("starcoder2", "granite", "cohere", "smollm3", "glm4", "stablelm", "falcon", "gpt_oss")
SOME = [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in OTHERS]


def batch(seed: int, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left."""
    rng, width = random.Random(seed), max(lengths)
    ids = torch.tensor([[0] * (width - n) + [rng.randrange(3, SIZES["vocab_size"]) for _ in range(n)] for n in lengths])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_tokens_of_a_batch(name: str):
    model = other_model(name)
    inputs = batch(1, [30, 3, 12])
    found = fastdecode.generate(model, **inputs, **LONG, fallback="error")
    assert torch.equal(found, model.generate(**inputs, **LONG))
    assert found[:, 30:].unique().numel() > 3
    explained = str(fastdecode.explain(model, **inputs, **LONG))
    reason = f"a call of the model's own forward, because fastdecode does not know the layers of {OTHERS[name][1]}"
    assert reason in explained


@pytest.mark.parametrize("name", SOME)
def test_guidance(name: str):
    """transformers' own guidance does not mask padding in the unconditional prompt: prompts of one length."""
    model = other_model(name)
    options = {**batch(2, [9, 9]), **LONG, "guidance_scale": 2.0}
    found = fastdecode.generate(model, **options, fallback="error")
    assert torch.equal(found, model.generate(**options))
    assert not torch.equal(found, model.generate(**(options | {"guidance_scale": 1.0})))


@pytest.mark.parametrize("name", SOME)
def test_a_draw_is_the_same_alone_and_in_a_batch(name: str):
    model = other_model(name)
    inputs, options = batch(3, [20, 3, 12]), {"max_new_tokens": 25, "min_new_tokens": 25, "do_sample": True}
    together = fastdecode.generate(model, **inputs, seed=[1, 2, 3], guidance=1.5, **options)
    for i, (ids, mask) in enumerate(zip(*inputs.values(), strict=True)):
        alone = fastdecode.generate(model, ids[mask != 0][None], seed=i + 1, guidance=1.5, **options)
        assert torch.equal(alone[0, int(mask.sum()) :], together[i, 20:])


@pytest.mark.parametrize("name", ["gemma2", "deepseek_v3", "bloom", "opt"])
def test_an_engine_whose_requests_come_and_go(name: str):
    """Prompts that begin alike share pages, in one prefill and later."""
    model = other_model(name)
    rng = random.Random(4)
    start = [rng.randrange(3, 101) for _ in range(70)]
    prompts = [[*start, 5, 6], [*start, 7], start[:40], [9, 8], start]
    engine = fastdecode.Engine(model, max_rows=3)
    handles = [engine.submit(p, max_new_tokens=10 + i, do_sample=False) for i, p in enumerate(prompts)]
    for i, (handle, prompt) in enumerate(zip(handles, prompts, strict=True)):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=10 + i, do_sample=False)
        assert torch.equal(handle.result(), expected)


def test_prompts_that_share_pages_in_one_prefill():
    model = other_model("olmo2")
    one = batch(5, [80])["input_ids"]
    ids = torch.cat((one, one, one))
    ids[1, 70:] = 7
    ids[2, 33:] = 9
    assert torch.equal(fastdecode.generate(model, ids, **LONG), model.generate(ids, **LONG))


def test_prompts_in_parts(monkeypatch):
    monkeypatch.setattr("fastdecode.decoder.aligned.PREFILL_IDS", 16)
    for name in ("gemma3", "gpt2"):
        model, inputs = other_model(name), batch(6, [50, 3, 21])
        assert torch.equal(fastdecode.generate(model, **inputs, **LONG), model.generate(**inputs, **LONG))


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_functions(kind: str):
    model, inputs = other_model("gemma3"), batch(7, [19, 4])
    model.set_attn_implementation(kind)
    assert torch.equal(fastdecode.generate(model, **inputs, **LONG), model.generate(**inputs, **LONG))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype):
    model, inputs = other_model("phi3").to(dtype), batch(8, [19])
    assert torch.equal(fastdecode.generate(model, **inputs, **LONG), model.generate(**inputs, **LONG))
    assert fastdecode.new_pool(model).keys[0].dtype == dtype


def test_sizes_of_layers_are_found():
    traits = traits_of(other_model("deepseek_v3"))
    assert [tuple(sizes) for sizes in traits.layers.values()] == 2 * [(1, 16, 4)]  # latent
    decoder = decoder_for(other_model("falcon"))
    assert isinstance(decoder, AlignedDecoder)
    assert (decoder.layer_count, decoder.kv_heads, decoder.head_dim) == (2, 1, 8)


def test_the_cache_that_is_returned():
    for name in ("bloom", "gpt_neox"):
        model, inputs = other_model(name), batch(9, [12, 5])
        options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
        ours, theirs = fastdecode.generate(model, **inputs, **options), model.generate(**inputs, **options)
        assert torch.equal(ours.sequences, theirs.sequences)
        [found, wanted] = [getattr(out, "cache", None) or out.past_key_values for out in (ours, theirs)]
        assert found.get_seq_length() == wanted.get_seq_length() == 17


def test_vocabulary_and_recipes():
    model = other_model("gpt2")
    vocabulary = vocabulary_of(model)
    assert (vocabulary.size, vocabulary.context, vocabulary.has_pictures) == (101, 160, False)
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=8, n_head=2, n_layer=1, vocab_size=9))
    assert vocabulary_of(bloom.eval()).context > 10**6
    assert family_of(model).name == "text"
    assert fastdecode.recipe(model, "chat").family == "GPT2LMHeadModel"
    with pytest.raises(ValueError, match="'image-only': this model writes text only"):
        fastdecode.generate(model, torch.tensor([[4, 5]]), multimodal_generation_mode="image-only")


def test_the_context_ends_where_phi3_turns_by_other_angles():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}
    model = other_model("phi3", rope_parameters=rope, original_max_position_embeddings=48)
    assert vocabulary_of(model).context == 48
    inputs = batch(10, [20])
    found = fastdecode.generate(model, **inputs, **LONG)
    assert found.shape == (1, 48)
    assert torch.equal(found, model.generate(**inputs, **LONG)[:, :48])
    with pytest.raises(ValueError, match="the prompt is 60 tokens long, and the context of this checkpoint is 48"):
        fastdecode.generate(model, **batch(11, [60]), **LONG, fallback="error")
    inputs = batch(11, [60])
    assert torch.equal(fastdecode.generate(model, **inputs, **LONG), model.generate(**inputs, **LONG))


# --- changed models -------------------------------------------------------------------------------------------------


def test_hooks_take_part():
    model, inputs = other_model("stablelm"), batch(12, [12, 5])
    before = fastdecode.generate(model, **inputs, **LONG)
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 0.5)
    expected = model.generate(**inputs, **LONG)
    assert not torch.equal(before, expected)
    assert torch.equal(fastdecode.generate(model, **inputs, **LONG), expected)


def test_an_engine_notices_a_change():
    model = other_model("granite")
    engine = fastdecode.Engine(model)
    engine.submit([5, 6, 7], max_new_tokens=4).result()
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 0.5)
    with pytest.raises(RuntimeError, match=r"^the model was changed after this engine was made"):
        engine.submit([5, 6, 7], max_new_tokens=4)


class LowerPhi(Phi3ForCausalLM):
    """A subclass of a model that fastdecode does not know."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = -out.logits
        return out


class LowerLlama(LlamaForCausalLM):
    """A subclass of a model that it knows."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = -out.logits
        return out


def test_subclasses_with_a_forward_of_their_own():
    phi = other_model("phi3")
    lower = LowerPhi(phi.config).eval()
    lower.load_state_dict(phi.state_dict())
    llama = LowerLlama(LlamaConfig(**TEXT)).eval()
    inputs = batch(13, [12, 5])
    for model in (lower, llama):
        expected = model.generate(**inputs, **LONG)
        assert torch.equal(fastdecode.generate(model, **inputs, **LONG), expected)
        assert "own forward, because " in str(fastdecode.explain(model, **inputs, **LONG))
    assert not torch.equal(lower.generate(**inputs, **LONG), phi.generate(**inputs, **LONG))


def test_gradient_checkpointing():
    model = other_model("olmo2")
    model.gradient_checkpointing_enable()
    inputs = batch(14, [5])
    assert torch.equal(fastdecode.generate(model, **inputs, **LONG), model.generate(**inputs, **LONG))
    with pytest.raises(ValueError, match=r"^the model is in training mode with gradient checkpointing"):
        fastdecode.generate(model.train(), **inputs, **LONG, fallback="error")


def test_sequences_that_take_turns():
    for name in ("olmo2", "deepseek_v3"):
        model, inputs = other_model(name), batch(15, [20, 20, 20])
        pool = fastdecode.new_pool(model, pages=4, page_slots=16)
        assert torch.equal(fastdecode.generate(model, **inputs, **LONG, kv_pool=pool), model.generate(**inputs, **LONG))


def test_adapters_and_offloaded_weights():
    peft, accelerate = pytest.importorskip("peft"), pytest.importorskip("accelerate")
    model, inputs = other_model("phi3"), batch(16, [9, 4])
    before = model.generate(**inputs, **LONG)
    config = peft.LoraConfig(target_modules=["qkv_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    expected = adapted.generate(**inputs, **LONG)
    assert not torch.equal(expected, before)
    assert torch.equal(fastdecode.generate(adapted, **inputs, **LONG), expected)
    moved = other_model("phi3")
    accelerate.cpu_offload(moved, execution_device="cpu")
    assert torch.equal(fastdecode.generate(moved, **inputs, **LONG), before)


def test_a_head_of_more_tokens_than_the_config_says():
    model = other_model("olmo2")
    model.lm_head = torch.nn.Linear(32, 110, bias=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.15)
    ids = torch.tensor([[5, 9, 30, 8]])
    options = {"max_new_tokens": 1, "do_sample": False, "suppress_tokens": list(range(101))}
    found = fastdecode.generate(
        model, ids, **options, fallback="error", return_dict_in_generate=True, output_scores=True
    )
    assert found.scores[0].shape == (1, 110)
    assert int(found.sequences[0, 4]) >= 101
    wanted = model(ids).logits[0, -1]
    wanted[:101] = -torch.inf
    assert int(found.sequences[0, 4]) == int(wanted.argmax())
    assert vocabulary_of(model).size == 110


def test_the_call_that_tries_a_forward_draws_no_numbers():
    model = other_model("phi3", resid_pdrop=0.3).train()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fastdecode.recipe(model, "chat")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_without_values():
    with torch.device("meta"):
        model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SIZES))
    with pytest.raises(TypeError, match="the weights of this Olmo2ForCausalLM are on the meta device, without values"):
        fastdecode.generate(model, torch.tensor([[5, 9]]), max_new_tokens=2)
