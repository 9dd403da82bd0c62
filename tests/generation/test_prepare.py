"""Every wrong call raises, before any decoding, one sentence with the option, its value and a right value."""

import math

import pytest
import torch
from models_for_tests import (
    BOS,
    EOS,
    padded,
    pixels,
    placeholder_block,
    text_ids,
    tiny_model,
    tiny_tokenizer,
    vocabulary_map,
)
from PIL import Image
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MambaConfig,
    MambaForCausalLM,
    StoppingCriteriaList,
)

import fastdecode
from fastdecode import Guidance, Stream
from fastdecode.decoder import Decoder
from fastdecode.generation.prepare import _derived, _seeds
from fastdecode.models.families import vocabulary_of

INTERLEAVED = "interleaved-text-image"
CONTEXT = 160
MODEL = tiny_model(0)
V = vocabulary_of(MODEL)
DRAWS = {"multimodal_generation_mode": "image-only"}
PROMPT = torch.tensor([[BOS, *text_ids(MODEL, 0, 3)]])


REFUSE = {"fallback": "error"}


def generate(model, **options):
    return fastdecode.generate(model, **REFUSE | options)


def plug(model, **options):
    return model.generate(custom_generate=fastdecode.custom_generate, **options)


def enabled(model, **options):
    fastdecode.enable(model)
    try:
        return model.generate(**REFUSE | options)
    finally:
        fastdecode.disable(model)


def explain(model, **options):
    return fastdecode.explain(model, **REFUSE | options)


@pytest.fixture(params=[generate, plug, enabled, explain], ids=lambda way: way.__name__)
def way(request):
    return request.param


@pytest.fixture(autouse=True)
def no_decoding(monkeypatch, request):
    if "works" not in request.node.name:

        def never(self, *args):
            raise AssertionError("decoding began")

        monkeypatch.setattr(Decoder, "step", never)
        monkeypatch.setattr(Decoder, "prefill", never)


def with_pictures(count: int, placeholders: int) -> dict:
    ids = [BOS, *placeholder_block(V) * placeholders]
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels(0, count) if count else None}


UNSUPPORTED = {
    "num_beams": (2, "num_beams=2 asks for beam search"),
    "assistant_model": (MODEL, "assistant_model='ChameleonForConditionalGeneration' asks for assisted decoding"),
    "prompt_lookup_num_tokens": (3, "prompt_lookup_num_tokens=3 asks for prompt lookup decoding"),
    "penalty_alpha": (0.6, "penalty_alpha=0.6 asks for contrastive search"),
    "dola_layers": ("low", "dola_layers='low' asks for DoLa decoding"),
    "cache_implementation": ("static", "cache_implementation='static' asks for a choice of cache"),
    "output_attentions": (
        True,
        "output_attentions=True asks for returning attentions",
    ),
    "output_hidden_states": (True, "output_hidden_states=True asks for returning hidden states"),
    "synced_gpus": (True, "synced_gpus=True asks for synchronised decoding"),
    "inputs_embeds": (torch.zeros(1, 4, 32), "inputs_embeds='Tensor' asks for prompts given as embeddings"),
}

BAD = {
    "unknown mode": (
        {"multimodal_generation_mode": "pictures"},
        "multimodal_generation_mode='pictures' is unknown; choose one of text-only, image-only",
    ),
    "picture without a placeholder": (
        {"pixel_values": pixels(0, 1)},
        "the prompt has 0 <image> placeholder tokens .* but pixel_values holds 1 pictures",
    ),
    "placeholder without a picture": (with_pictures(0, 1), "the prompt has 4 <image> placeholder tokens"),
    "two pictures, one placeholder": (with_pictures(2, 1), r"room for 1 pictures of 4\), but pixel_values holds 2"),
    "no room for a picture": (
        {"multimodal_generation_mode": INTERLEAVED, "max_new_tokens": 5},
        "no room for one picture: the prompt has 4 tokens and may grow to 9, but the picture takes 6 more; set "
        "max_new_tokens to at least 6",
    ),
    "no room in the context": (
        {
            "input_ids": torch.full((1, CONTEXT - 5), 40),
            "multimodal_generation_mode": "image-only",
            "max_new_tokens": 50,
        },
        f"no room for one picture: the prompt has {CONTEXT - 5} tokens and may grow to {CONTEXT}",
    ),
    "prompt as long as the context": (
        {"input_ids": torch.full((1, CONTEXT), 40), "max_new_tokens": 1},
        f"the prompt is {CONTEXT} tokens long, and the context of this checkpoint is {CONTEXT}",
    ),
    "id beyond the vocabulary": ({"input_ids": torch.tensor([[0, 999]])}, r"input_ids\[0, 1\] = 999 is not a token"),
    "negative id": ({"input_ids": torch.tensor([[-3, 5]])}, r"input_ids\[0, 0\] = -3 is not a token"),
    "mask of nothing": (
        {"input_ids": torch.tensor([[0, 5], [0, 6]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
        "attention_mask leaves nothing of prompt 1; every prompt needs a token",
    ),
    "positions": (
        {"position_ids": torch.tensor([[5, 6, 7, 8]])},
        r"position_ids other than 0, 1, 2, … of each prompt's tokens are not supported by fastdecode; leave them out",
    ),
    "negative prompt without guidance": (
        {"negative_prompt_ids": torch.tensor([[5]])},
        "negative_prompt_ids was given with guidance_scale=None: .* such as guidance_scale=3.0",
    ),
    "negative prompt with scale 1": (
        {"negative_prompt_ids": torch.tensor([[5]]), "guidance_scale": 1.0},
        "negative_prompt_ids was given with guidance_scale=1.0",
    ),
    "negative prompts of another batch": (
        {"negative_prompt_ids": torch.full((3, 2), 5), "guidance_scale": 3.0},
        r"negative_prompt_ids is \(3, 2\); it must be \(1, length\) or \(1, length\)",
    ),
    "negative prompt beyond the vocabulary": (
        {"negative_prompt_ids": torch.tensor([[777]]), "guidance_scale": 3.0},
        r"\(or negative_prompt_ids\) has token 777, which is not a token of this checkpoint",
    ),
    "stream beyond the vocabulary": (
        {
            "guidance": Guidance((Stream("full"), Stream("prompt", (888,))), (2.0, -1.0)),
            "multimodal_generation_mode": "image-only",
            "max_new_tokens": 6,
        },
        "a stream of kind 'prompt' .* has token 888",
    ),
    "two guidances": (
        {"guidance": 2.0, "guidance_scale": 3.0},
        r"both guidance=2.0 and guidance_scale=3.0 were given: give one of them",
    ),
    "guidance that never acts": (
        {"guidance": Guidance.two_way(3.0)},
        "this Guidance acts inside pictures, and multimodal_generation_mode='text-only' draws none",
    ),
    "wrong modality parameter": (
        {"text": {"topp": 0.9}},
        r"text\['topp'\] is not a sampling parameter; known are do_sample",
    ),
    "temperature": (
        {**DRAWS, "image": {"temperature": -1.0}},
        r"image.temperature=-1.0 is out of range: it must be at least 0",
    ),
    "temperature nan": ({"text": {"temperature": math.nan}}, "text.temperature=nan is out of range"),
    "top_p": ({"text": {"top_p": 1.5}}, "text.top_p=1.5 is out of range: it must be between 0 and 1"),
    "top_k": (
        {**DRAWS, "image": {"top_k": -2}},
        "image.top_k=-2 is out of range: it must be 0",
    ),
    "top_k in parts": (
        {**DRAWS, "image": {"top_k": 2.5}},
        "image.top_k=2.5 is out of range: it must be 0",
    ),
    "min_p": (
        {**DRAWS, "image": {"min_p": "0.1"}},
        "image.min_p='0.1' is out of range",
    ),
    "penalty": (
        {"text": {"repetition_penalty": 0.0}},
        "text.repetition_penalty=0.0 is out of range: it must be more than 0",
    ),
    "seeds": (
        {"seed": [1, 2]},
        "seed has 2 values for 1 prompt: .*; repeat the prompt 2 times to give each its seed",
    ),
    "seed of 65 bits": ({"seed": 2**63}, f"seed {2**63} of prompt 0 does not fit 64 bits"),
    "penalty twice": (
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "text": {"repetition_penalty": 1.3}},
        r"text\['repetition_penalty'\]=1.3 would act on top of the call's own repetition_penalty",
    ),
    "default top_k in front of others": (
        {"multimodal_generation_mode": "image-only", "max_new_tokens": 6, "do_sample": True, "typical_p": 0.9},
        r"transformers' default top_k=50 would cut pictures .*TypicalLogitsWarper\): give top_k yourself",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(way, name: str):
    options, message = BAD[name]
    options = {"max_new_tokens": 3, "input_ids": PROMPT} | options
    options = {key: value for key, value in options.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        way(MODEL, **options)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_options(way, name: str):
    value, message = UNSUPPORTED[name]
    with pytest.raises(ValueError, match=f"{message}, which fastdecode does not support; leave it out"):
        way(MODEL, input_ids=PROMPT, max_new_tokens=3, **{name: value})


@pytest.mark.parametrize("name", ["num_beams", "penalty_alpha", "output_attentions"])
@pytest.mark.parametrize("where", ["generation_config", "model"])
def test_unsupported_options_in_configs(way, name: str, where: str):
    value, message = UNSUPPORTED[name]
    model = tiny_model(0)
    config = GenerationConfig(max_new_tokens=3, **{name: value})
    options = {"max_new_tokens": 3}
    if where == "model":
        setattr(model.generation_config, name, value)
    else:
        options["generation_config"] = config
    with pytest.raises(ValueError, match=message):
        way(model, input_ids=PROMPT, **options)


@pytest.mark.parametrize("name", ["watermarking_config", "constraints", "token_healing", "past_key_values"])
def test_other_options_are_refused_in_some_words(name: str):
    cache = DynamicCache()
    cache.update(torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 8), 0)
    value = {"watermarking_config": {"bias": 2.0}, "past_key_values": cache}.get(name, True)
    for call in (generate, enabled):
        with pytest.raises(ValueError, match=f"{name}=.*which fastdecode does not support"):
            call(MODEL, input_ids=PROMPT, **{name: value})


def test_a_scale_without_any_unconditional_prompt(way):
    names = vocabulary_map()
    model = tiny_model(0)
    model.config.vocabulary_map = {"<none>" if name == "<s>" else name: i for name, i in names.items()}
    options = {"multimodal_generation_mode": INTERLEAVED, "max_new_tokens": 20, "input_ids": PROMPT}
    for more in ({"guidance_scale": 3.0}, {"guidance": 3.0}, {"guidance": Guidance.instruct()}):
        with pytest.raises(
            ValueError, match=r"no '<s>'. Give negative_prompt_ids, or Stream\('unconditional', bos=False\)"
        ):
            way(model, **options, **more)


def test_another_model():
    other = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    message = "MambaForCausalLM keeps a state of the sequence besides keys and values, and fastdecode has memory for"
    for call in (generate, plug, enabled, explain):
        with pytest.raises(TypeError, match=message):
            call(other, input_ids=torch.tensor([[1, 2]]), max_new_tokens=2)
    with pytest.raises(TypeError, match=message):
        fastdecode.to_documents(other, tiny_tokenizer(), [[1]])


@pytest.mark.parametrize("value", [[0.5], "hot", 3])
def test_modalities_are_dicts(way, value):
    with pytest.raises(TypeError, match="give a dict of sampling parameters, such as text=dict"):
        way(MODEL, input_ids=PROMPT, max_new_tokens=2, text=value)


@pytest.mark.parametrize("value", ["strong", [2.0], True])
def test_guidance_of_another_type(way, value):
    with pytest.raises(TypeError, match=r"two-way guidance, a fastdecode\.Schedule, or a fastdecode\.Guidance$"):
        way(MODEL, input_ids=PROMPT, max_new_tokens=2, guidance=value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.tensor([0, 5]), r"input_ids is \(2,\) torch.int64; it must be \(batch, length\) integers"),
        (torch.zeros(1, 3), r"input_ids is \(1, 3\) torch.float32"),
        (torch.zeros((1, 0), dtype=torch.long), r"input_ids is \(1, 0\)"),
        (torch.zeros((0, 3), dtype=torch.long), r"input_ids is \(0, 3\)"),
    ],
)
@pytest.mark.parametrize("call", [generate, enabled, explain])
def test_prompts_that_are_none(call, prompt, message: str):
    with pytest.raises(ValueError, match=message):
        call(MODEL, input_ids=prompt, max_new_tokens=2)


@pytest.mark.parametrize("call", [generate, enabled, explain])
def test_masks_and_pixels_of_another_shape(call):
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 3\); it must be \(1, 4\), as input_ids"):
        call(MODEL, input_ids=PROMPT, attention_mask=torch.ones(1, 3), max_new_tokens=2)
    options = with_pictures(1, 1) | {"pixel_values": torch.zeros(1, 3, 16, 16)}
    with pytest.raises(
        ValueError, match=r"pixel_values is \(1, 3, 16, 16\); this checkpoint takes \(pictures, 3, 8, 8\)"
    ):
        call(MODEL, **options, max_new_tokens=2)


@pytest.mark.parametrize("call", [generate, enabled, explain])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: x.fill_(float("nan")), "pixel_values of picture 0 are not all finite"),
        (lambda x: x.index_fill_(3, torch.tensor([7]), float("inf")), "pixel_values of picture 0 are not all finite"),
        (lambda x: x.long(), r"pixel_values is \(1, 3, 8, 8\) int64; this checkpoint takes .* float"),
        (lambda x: x.bool(), r"pixel_values is \(1, 3, 8, 8\) bool"),
        (lambda x: x.tolist(), "pixel_values is a list; this checkpoint takes"),
        (
            lambda x: [Image.new("RGB", (8, 8))],
            "a list; .*as its processor makes them from PIL pictures",
        ),
        (
            lambda x: Image.new("RGB", (8, 8)),
            "an Image; .*as its processor makes them from PIL pictures",
        ),
        (lambda x: x.to("meta"), "pixel_values is on the meta device"),
        (lambda x: x.to_sparse(), "pixel_values is sparse"),
        (lambda x: x.numpy().astype(object), "pixel_values is a ndarray"),
        (lambda x: 7, "pixel_values is an int"),
    ],
)
def test_pixels_that_cannot_be_read(call, changed, message):
    options = with_pictures(1, 1)
    options["pixel_values"] = changed(options["pixel_values"])
    with pytest.raises(ValueError, match=message):
        call(MODEL, **options, max_new_tokens=2)


def test_numpy_works_for_pixels():
    options = with_pictures(1, 1)
    expected = fastdecode.generate(MODEL, **options, max_new_tokens=2)
    pixels = options["pixel_values"].numpy()
    pixels.flags.writeable = False
    assert torch.equal(fastdecode.generate(MODEL, **options | {"pixel_values": pixels}, max_new_tokens=2), expected)


def test_misspelt_options_are_refused(way):
    with pytest.raises(ValueError, match="max_new_token"):
        way(MODEL, input_ids=PROMPT, max_new_token=5)


# --- what works -------------------------------------------------------------------------------------------------


def test_a_picture_that_just_fits_works():
    for mode in ("image-only", INTERLEAVED):
        found = generate(MODEL, input_ids=PROMPT, multimodal_generation_mode=mode, max_new_tokens=6)
        assert found.shape[1] <= 10
    prompt = torch.full((1, CONTEXT - 6), 40)
    found = generate(MODEL, input_ids=prompt, multimodal_generation_mode="image-only")
    assert found.shape == (1, CONTEXT)
    assert generate(MODEL, input_ids=torch.full((1, CONTEXT - 1), 40), max_new_tokens=1).shape == (1, CONTEXT)


def test_the_context_ends_every_sequence_and_works_with_padding():
    prompts = [[40] * (CONTEXT - 4), [41] * 3]
    found = generate(MODEL, **padded(prompts), max_new_tokens=9, eos_token_id=None, pad_token_id=1)
    assert found.shape == (2, CONTEXT + 5)
    assert (found[0, -5:] == 1).all()
    alone = generate(MODEL, input_ids=torch.tensor([prompts[1]]), max_new_tokens=9, eos_token_id=None)
    assert torch.equal(found[1, -9:], alone[0, -9:])


def test_neutral_values_of_unsupported_options_works():
    neutral = {"num_beams": 1, "output_attentions": False, "synced_gpus": False, "cache_implementation": "dynamic"}
    config = GenerationConfig(num_beams=1, token_healing=False, max_new_tokens=2)
    assert generate(MODEL, input_ids=PROMPT, generation_config=config, **neutral).shape[1] <= 6


def test_a_model_without_bos_works_without_an_unconditional_stream():
    model = tiny_model(0)
    model.config.vocabulary_map = {"<none>" if n == "<s>" else n: i for n, i in model.config.vocabulary_map.items()}
    options = {"multimodal_generation_mode": "image-only", "input_ids": PROMPT}
    streams = (Stream("full"), Stream("unconditional", bos=False))
    for more in (
        {"guidance_scale": 3.0, "negative_prompt_ids": torch.tensor([[5]])},
        {"guidance": Guidance(streams, (3.0, -2.0))},
        {"guidance": Guidance((Stream("full"), Stream("unconditional")), (1.0, 0.0))},
        {},
    ):
        assert generate(model, **options, **more).shape == (1, 10)


def test_the_plug_works_without_transformers_around_it():
    config = GenerationConfig(max_length=7, do_sample=False)
    MODEL._prepare_special_tokens(config)
    found = fastdecode.custom_generate(
        MODEL, PROMPT, LogitsProcessorList(), MODEL._get_stopping_criteria(config, StoppingCriteriaList()), config
    )
    assert torch.equal(found, generate(MODEL, input_ids=PROMPT, max_length=7, eos_token_id=None))


def test_a_value_of_each_modality_works():
    options = {"multimodal_generation_mode": "image-only", "input_ids": PROMPT, "seed": 3}
    greedy = generate(MODEL, **options)
    assert torch.equal(generate(MODEL, **options, do_sample=True, image={"do_sample": False}), greedy)
    assert torch.equal(generate(MODEL, **options, do_sample=True, image={"temperature": 0}), greedy)
    assert torch.equal(generate(MODEL, **options, do_sample=True, image={"top_k": 1}), greedy)
    sampled = generate(MODEL, **options, do_sample=True, image={"temperature": 4.0})
    assert not torch.equal(sampled, greedy)
    assert torch.equal(generate(MODEL, **options, image={"temperature": 4.0}), sampled)  # asked for by its values
    assert torch.equal(generate(MODEL, **options, image={"temperature": 4.0, "do_sample": False}), greedy)
    assert torch.equal(generate(MODEL, **options, image={"top_p": None}), greedy)


def test_derived_seeds_work():
    assert _derived(5, 0) == 5
    many = {_derived(seed, j) for seed in range(-50, 50) for j in range(50)}
    assert len(many) == 5000
    assert all(-(2**63) <= s < 2**63 for s in many)
    assert _seeds([3, 4], 6, 3) == [_derived(s, j) for s in (3, 4) for j in range(3)]
    assert EOS == 2


@pytest.mark.parametrize("prompt", ["Draw", [[0, 5]], {"input_ids": [[0]]}])
def test_a_prompt_that_is_no_tensor(prompt):
    with pytest.raises(ValueError, match="it must be input_ids"):
        fastdecode.generate(tiny_model(0), prompt, max_new_tokens=2)


@pytest.mark.parametrize("seed", [1.5, "a", [1.5]])
def test_a_seed_that_is_no_integer(seed):
    with pytest.raises(ValueError, match="it must be an integer, or one integer per prompt"):
        fastdecode.generate(tiny_model(0), torch.tensor([[5, 6]]), max_new_tokens=2, seed=seed)
