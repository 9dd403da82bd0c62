"""Calls that fastdecode does not decode itself: who decodes them, and what is said about it."""

import json

import numpy as np
import pytest
import torch
from heard import Heard
from models_for_tests import (
    BOS,
    padded,
    pixels,
    placeholder_block,
    text_ids,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    ChameleonForConditionalGeneration,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    WatermarkingConfig,
)
from transformers.utils.logging import get_logger

import fastdecode
from fastdecode.generation import api, unsupported
from fastdecode.generation.returned_cache import FIELD
from fastdecode.models.families import vocabulary_of

MODEL = tiny_model(0)
V = vocabulary_of(MODEL)
WORDS = [BOS, *text_ids(MODEL, 0, 3)]
PROMPT = torch.tensor([WORDS])
GREEDY = {"max_new_tokens": 6, "do_sample": False}
NAMES = MODEL.config.vocabulary_map
TOKENIZER = tiny_tokenizer(NAMES | {"abcdef": len(NAMES)})
STOP = "w2"  # the model's third new word


@pytest.fixture
def handed(monkeypatch) -> list[str]:
    """The reasons of the calls that were handed over; decoding them ourselves is an error."""
    reasons: list[str] = []
    monkeypatch.setattr(api, "say_once", reasons.append)
    return reasons


@pytest.fixture
def never(monkeypatch) -> None:
    def fail(*args):
        raise AssertionError("fastdecode decoded this call")

    monkeypatch.setattr(api, "decode_call", fail)


def embedded(model):
    return model.get_input_embeddings()(PROMPT)


def right_padded() -> dict:
    ids = torch.tensor([WORDS, [*WORDS[:-1], 1]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]])}


HANDED = {
    "beams": ({"num_beams": 3}, "num_beams=3 asks for beam search"),
    "assistant": ({"assistant_model": tiny_model(0)}, "asks for assisted decoding"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "asks for prompt lookup decoding"),
    "static cache": ({"cache_implementation": "static"}, "asks for a choice of cache"),
    "watermark": ({"watermarking_config": WatermarkingConfig(bias=2.0)}, "asks for watermarking"),
    "chunks": ({"prefill_chunk_size": 2}, "asks for chunked prefill"),
    "attentions": ({"output_attentions": True}, "asks for returning attentions"),
    "right padding": (right_padded(), "attention_mask pads prompt 1 on the right"),
    "placeholder": ({"input_ids": torch.tensor([[*WORDS, V.placeholder, *WORDS]])}, "1 <image> placeholder tokens"),
    "positions": ({"position_ids": torch.tensor([[5, 6, 7, 8]])}, "position_ids other than 0, 1, 2"),
    "pixels of another size": (
        {
            "input_ids": torch.tensor([[BOS, *[V.placeholder] * 16, *WORDS]]),
            "pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16),
        },
        r"pixel_values is \(1, 3, 16, 16\)",
    ),
    "negative prompt without guidance": ({"negative_prompt_ids": PROMPT}, "negative_prompt_ids was given with"),
}


@pytest.mark.parametrize("name", HANDED)
@pytest.mark.parametrize("door", ["generate", "enabled"])
def test_transformers_decodes_what_fastdecode_does_not(name: str, door: str, handed, never):
    more, reason = HANDED[name]
    options = GREEDY | {"input_ids": PROMPT} | more
    expected = MODEL.generate(**options)
    model = tiny_model(0)
    found = (
        fastdecode.generate(model, **options) if door == "generate" else fastdecode.enable(model).generate(**options)
    )
    assert torch.equal(found, expected)
    assert len(handed) == 1
    with pytest.raises(AssertionError, match=reason):  # as pytest.raises matches
        raise AssertionError(handed[0])
    explained = fastdecode.explain(model, **options)
    assert explained.decoded_by == "transformers"
    assert explained.reason == handed[0]
    assert str(explained).endswith(f"decoder           transformers' own loop, because {handed[0]}")
    assert json.loads(explained.to_json()) == explained.to_dict()
    with pytest.raises(ValueError, match=reason):
        fastdecode.generate(model, **options, fallback="error")
    if name not in ("right padding", "pixels of another size"):
        with pytest.raises(ValueError, match=reason):
            fastdecode.generate(model, **options, multimodal_generation_mode="interleaved-text-image")
    with pytest.raises(ValueError, match=f"{reason}.*; or leave out seed: then transformers' own loop decodes"):
        fastdecode.generate(model, **options, seed=0)
    with pytest.raises(ValueError, match=reason):
        fastdecode.Engine(model).submit(**{"inputs": options.pop("input_ids"), **options})


def test_embeddings_are_handed_over(handed, never):
    embeds = embedded(MODEL)
    expected = MODEL.generate(inputs_embeds=embeds, **GREEDY)
    assert torch.equal(fastdecode.generate(MODEL, inputs_embeds=embeds, **GREEDY), expected)
    assert handed == ["inputs_embeds='Tensor' asks for prompts given as embeddings, which fastdecode does not support"]


@pytest.mark.parametrize("name", ["past_key_values", FIELD])
def test_a_cache_is_filled(name: str, handed, never):
    ours, theirs = DynamicCache(), DynamicCache()
    expected = MODEL.generate(PROMPT, **GREEDY, **{name: theirs})
    assert torch.equal(fastdecode.generate(MODEL, PROMPT, **GREEDY, **{name: ours}), expected)
    assert ours.get_seq_length() == theirs.get_seq_length() == expected.shape[1] - 1
    longer = torch.cat([expected, torch.tensor([text_ids(MODEL, 5, 3)])], 1)
    expected = MODEL.generate(longer, **GREEDY, **{name: theirs})
    assert torch.equal(fastdecode.generate(MODEL, longer, **GREEDY, **{name: ours}), expected)


def test_the_plug_refuses_with_a_hint():
    hint = "fastdecode.generate hands such a call of text to transformers"
    for options in ({"output_attentions": True}, {"past_key_values": DynamicCache()}, right_padded()):
        options = {"input_ids": PROMPT} | GREEDY | options
        with pytest.raises(ValueError, match="fastdecode") as refused:
            MODEL.generate(custom_generate=fastdecode.custom_generate, **options)
        assert refused.value.__notes__ == [hint]
    draws = {"multimodal_generation_mode": "image-only"}
    for options, notes in (({}, [hint]), (draws, [])):  # in modes that draw nobody decodes it
        with pytest.raises(ValueError, match="num_beams=2") as refused:
            fastdecode.Engine(MODEL).submit(PROMPT, num_beams=2, **options)
        assert getattr(refused.value, "__notes__", []) == notes
        assert hint not in str(refused.value)
    with pytest.raises(ValueError, match="fallback='transformers': an engine decodes every request itself"):
        fastdecode.Engine(MODEL).submit(PROMPT, fallback="transformers")


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"multimodal_generation_mode": "image-only"}, {}),
        ({"max_new_tokens": 8}, {"stop_strings": STOP, "tokenizer": TOKENIZER}),
        ({"max_new_tokens": 8, "stop_strings": STOP}, {"tokenizer": TOKENIZER}),
    ],
    ids=["the length of a picture", "stop_strings", "stop_strings of the config"],
)
def test_what_is_set_beside_a_config_is_set_in_a_copy(config, options, monkeypatch):
    """transformers warns of options beside a generation_config, and these are set by fastdecode."""
    logger = get_logger("transformers.generation.utils")
    said: list[str] = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    given = GenerationConfig(**config)
    before = given.to_dict()
    found = fastdecode.generate(MODEL, PROMPT, generation_config=given, **options)
    assert torch.equal(found, fastdecode.generate(MODEL, PROMPT, **config, **options))
    assert given.to_dict() == before
    assert said == []
    if "tokenizer" in options:
        assert found.shape[1] == len(WORDS) + 3


def test_pictures_that_nobody_can_read_are_not_handed_over(handed):
    model = tiny_model(0)
    model.model.vqmodel.to("meta")  # as accelerate leaves it when it offloads weights
    with pytest.raises(ValueError, match=r"^the weights of model\.model\.vqmodel are offloaded"):
        fastdecode.generate(model, torch.tensor([placeholder_block(V)]), pixel_values=pixels(0, 1), **GREEDY)
    assert handed == []


def test_it_is_said_once(monkeypatch):
    said: list[str] = []
    unsupported.logger.warning_once.cache_clear()
    monkeypatch.setattr(unsupported.logger, "warning", lambda message, *args, **kwargs: said.append(message))
    for _ in range(3):
        fastdecode.generate(MODEL, PROMPT, num_beams=2, **GREEDY)
    assert said == [
        "transformers' own loop decodes this call, because num_beams=2 asks for beam search, which fastdecode does "
        "not support"
    ]


def test_a_fallback_is_one_of_two():
    with pytest.raises(ValueError, match=r"fallback='beams': give 'transformers', .*, or 'error'"):
        fastdecode.generate(MODEL, PROMPT, fallback="beams", **GREEDY)


@pytest.mark.parametrize("name", ["guidance", "text", "seed", "progress", "deterministic", "kv_pool"])
def test_options_of_ours_are_not_lost(name: str):
    value = {"guidance": 2.0, "text": {"top_p": 0.5}, "seed": 0, "kv_pool": fastdecode.new_pool(MODEL)}.get(name, True)
    with pytest.raises(ValueError, match=f"num_beams=2 asks .*; or leave out {name}: then"):
        fastdecode.generate(MODEL, PROMPT, num_beams=2, **GREEDY, **{name: value})


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 0]], "found"])
def test_a_streamer_hears_everything_once(mask, handed):
    model, prompt = tiny_model(0), PROMPT
    if mask == "found":  # transformers finds the padding when it prepares the call
        model.generation_config.pad_token_id = WORDS[-1]
    mask = torch.tensor(mask) if isinstance(mask, list) else None
    expected, found = Heard(), Heard()
    model.generate(prompt, attention_mask=mask, **GREEDY, streamer=expected)
    fastdecode.generate(model, prompt, attention_mask=mask, **GREEDY, streamer=found)
    assert found.puts == expected.puts
    assert len(handed) == int(mask is not None or model.generation_config.pad_token_id == WORDS[-1])


def test_right_padding_that_transformers_finds(handed, never):
    """Without a mask, transformers finds padding by its token when it prepares the call."""
    model = tiny_model(0)
    model.generation_config.pad_token_id = 1
    ids = right_padded()["input_ids"]
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(fastdecode.generate(model, ids, **GREEDY), expected)
    assert len(handed) == 1


def test_drawing_modes_remove_padding_wherever_it_is():
    options = {"multimodal_generation_mode": "image-only", "seed": 3}
    left = fastdecode.generate(MODEL, **padded([WORDS, WORDS[:-1]]), **options)
    right = fastdecode.generate(MODEL, **right_padded(), **options)
    assert torch.equal(left[:, 4:], right[:, 4:])


def test_no_prompt_begins_with_the_beginning_of_sequence(handed):
    model = tiny_model(0)
    model.generation_config.bos_token_id = BOS
    expected = model.generate(**GREEDY)
    assert expected[0, 0] == BOS
    assert expected.shape[1] > 1
    assert torch.equal(fastdecode.generate(model, **GREEDY), expected)
    assert fastdecode.explain(model, **GREEDY).decoded_by == "fastdecode"
    fastdecode.enable(model)
    assert torch.equal(model.generate(**GREEDY), expected)
    assert not handed
    with pytest.raises(ValueError, match="no prompt: give input_ids"):
        fastdecode.generate(model, multimodal_generation_mode="image-only")


def test_a_beginning_of_sequence_that_is_padding_is_handed_over(handed, never):
    """As in the configs of real checkpoints: transformers masks all of such a prompt."""
    assert MODEL.generation_config.bos_token_id == MODEL.generation_config.pad_token_id
    expected = MODEL.generate(**GREEDY)
    assert torch.equal(fastdecode.generate(MODEL, **GREEDY), expected)
    assert handed == ["attention_mask leaves nothing of prompt 0"]


def test_a_prompt_beyond_the_context_is_handed_over(handed, never):
    prompt = torch.full((1, V.context), 40)
    expected = MODEL.generate(prompt, max_new_tokens=2)
    assert torch.equal(fastdecode.generate(MODEL, prompt, max_new_tokens=2), expected)
    assert handed == [
        f"the prompt is {V.context} tokens long, and the context of this checkpoint is {V.context}: nothing can follow "
        "it"
    ]


def test_an_argument_of_forward_is_handed_over(handed, never):
    """logits_to_keep has no effect; output_router_logits or the like might have one."""
    with pytest.raises(ValueError, match="not used by the model"):
        fastdecode.generate(MODEL, PROMPT, **GREEDY, unknown=1)

    class Scaled(LlamaForCausalLM):
        def forward(self, input_ids=None, scale=1.0, **kwargs):
            found = super().forward(input_ids, **kwargs)
            found.logits = found.logits * scale
            return found

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = Scaled(LlamaConfig(vocab_size=50, max_position_embeddings=64, **sizes)).eval()
    expected = model.generate(PROMPT % 50, **GREEDY, scale=-1.0)
    assert torch.equal(fastdecode.generate(model, PROMPT % 50, **GREEDY, scale=-1.0), expected)
    assert handed == ["scale is an argument of the model's own forward, which fastdecode does not call"]


def test_layers_that_see_a_window_are_handed_over():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(vocab_size=50, max_position_embeddings=64, sliding_window=4, num_key_value_heads=2, **sizes)
    ).eval()
    prompt = torch.arange(10)[None] + 3
    expected = model.generate(prompt, **GREEDY)
    fastdecode.enable(model)
    assert torch.equal(model.generate(prompt, **GREEDY), expected)


def test_a_vocabulary_that_cannot_draw_writes_text(handed):
    """transformers' own tests have such configs: no markers, and image tokens that are no codes."""
    config = tiny_config()
    config.vocabulary_map = {
        f"IMGIMG{chr(65 + i)}BZ" if name.startswith("IMGIMG") else f"x{name}": i
        for i, name in ((i, name) for name, i in config.vocabulary_map.items())
        if not name.startswith("IMGIMG") or i < 20
    }
    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    expected = model.generate(PROMPT, max_new_tokens=30)
    fastdecode.enable(model)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=30), expected)
    assert not handed
    with pytest.raises(ValueError, match="vocabulary_map of this checkpoint has no"):
        model.generate(PROMPT, multimodal_generation_mode="image-only")


@pytest.mark.parametrize("batch", [1, 3])
def test_dict_outputs_have_the_cache(batch: int, handed):
    prompts = [[BOS, *placeholder_block(V), *text_ids(MODEL, n, n)] for n in range(2, 2 + batch)]
    inputs = padded(prompts)
    mask = inputs["attention_mask"]
    options = inputs | {"pixel_values": pixels(0, batch)} | GREEDY
    options |= {"return_dict_in_generate": True, "output_scores": True}
    expected, found = MODEL.generate(**options), fastdecode.generate(MODEL, **options)
    assert not handed
    assert torch.equal(found.sequences, expected.sequences)
    ours, theirs = found[FIELD], expected[FIELD]
    assert ours.get_seq_length() == theirs.get_seq_length() == found.sequences.shape[1] - 1
    there = torch.cat([mask, torch.ones(batch, GREEDY["max_new_tokens"] - 1)], 1)[:, : ours.get_seq_length()] != 0
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for mine, other_s in ((layer.keys, other.keys), (layer.values, other.values)):
            torch.testing.assert_close(
                mine.transpose(1, 2)[there], other_s.transpose(1, 2)[there], atol=1e-4, rtol=1e-4
            )
    without = fastdecode.generate(MODEL, **options, use_cache=False)
    assert without.get(FIELD) is None
    assert fastdecode.generate(MODEL, **options, kv_pool=fastdecode.new_pool(MODEL)).get(FIELD) is None


# --- options of ours in a GenerationConfig ---------------------------------------------------------------------------


def through_config(model, **ours):
    return fastdecode.generate(model, PROMPT, GenerationConfig(**ours, **SAMPLED))


def through_model(model, **ours):
    for name, value in ours.items():
        setattr(model.generation_config, name, value)
    return fastdecode.generate(model, PROMPT, **SAMPLED)


def through_plug(model, **ours):
    config = GenerationConfig(**ours, **SAMPLED)
    return model.generate(PROMPT, config, custom_generate=fastdecode.custom_generate)


def through_plug_and_model(model, **ours):
    for name, value in ours.items():
        setattr(model.generation_config, name, value)
    return model.generate(PROMPT, custom_generate=fastdecode.custom_generate, **SAMPLED)


def through_enabled(model, **ours):
    return fastdecode.enable(model).generate(PROMPT, generation_config=GenerationConfig(**ours, **SAMPLED))


def through_engine(model, **ours):
    handle = fastdecode.Engine(model).submit(PROMPT, generation_config=GenerationConfig(**ours, **SAMPLED))
    return handle.result()


SAMPLED = {"max_new_tokens": 20, "do_sample": True, "top_k": 0}
DOORS = [through_config, through_model, through_plug, through_plug_and_model, through_enabled, through_engine]


@pytest.mark.parametrize("door", DOORS)
def test_options_of_ours_in_a_config_are_honoured(door):
    ours = {
        "multimodal_generation_mode": "interleaved-text-image",
        "seed": 11,
        "guidance": 2.0,
        "text": {"temperature": 0.7},
        "image": {"top_p": 0.8},
    }
    expected = fastdecode.generate(tiny_model(0), PROMPT, **SAMPLED, **ours)
    for left_out in ("seed", "text"):  # so that the test can fail
        others = {name: value for name, value in ours.items() if name != left_out}
        assert not torch.equal(expected, fastdecode.generate(tiny_model(0), PROMPT, **SAMPLED, **{"seed": 1} | others))
    assert torch.equal(door(tiny_model(0), **ours), expected)


def test_the_call_goes_before_its_config_and_that_before_the_models():
    model = tiny_model(0)
    model.generation_config.seed = 1
    config = GenerationConfig(seed=2, **SAMPLED)
    by_seed = [fastdecode.generate(tiny_model(0), PROMPT, seed=seed, **SAMPLED) for seed in range(4)]
    assert len({tuple(row[0].tolist()) for row in by_seed}) == 4
    assert torch.equal(fastdecode.generate(model, PROMPT, **SAMPLED), by_seed[1])
    assert torch.equal(fastdecode.generate(model, PROMPT, config), by_seed[2])
    assert torch.equal(fastdecode.generate(model, PROMPT, config, seed=3), by_seed[3])
    plug = {"custom_generate": fastdecode.custom_generate}
    assert torch.equal(model.generate(PROMPT, config, **plug), by_seed[2])
    assert torch.equal(model.generate(PROMPT, config, seed=3, **plug), by_seed[3])


def test_a_pool_in_a_config_is_refused():
    config = GenerationConfig(max_new_tokens=2)
    config.kv_pool = fastdecode.new_pool(MODEL)
    with pytest.raises(ValueError, match="generation_config has a kv_pool, which cannot be copied as configs are"):
        fastdecode.generate(MODEL, PROMPT, config)


def test_fallback_in_a_config():
    with pytest.raises(ValueError, match="num_beams=2 asks for beam search"):
        fastdecode.generate(MODEL, PROMPT, GenerationConfig(num_beams=2, max_new_tokens=2, fallback="error"))


@pytest.mark.parametrize(
    "door", [fastdecode.generate, fastdecode.explain, lambda m, i, **o: fastdecode.Engine(m).submit(i, **o)]
)
def test_configs_and_masks_of_another_kind(door):
    with pytest.raises(ValueError, match=r"generation_config is a dict: give a transformers\.GenerationConfig, or its"):
        door(MODEL, PROMPT, generation_config={})
    for mask, kind in (([[1, 1, 1, 1]], "list"), (np.ones((1, 4)), "ndarray")):
        with pytest.raises(
            ValueError, match=rf"attention_mask is a {kind}; it must be a tensor \(1, 4\), as input_ids"
        ):
            door(MODEL, PROMPT, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"attention_mask\[0, 2\] = 3; it must be 1 for a token of the prompt and 0"):
        door(MODEL, PROMPT, attention_mask=torch.tensor([[0, 1, 3, 1]]), max_new_tokens=2)
