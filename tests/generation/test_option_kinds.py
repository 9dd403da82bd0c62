"""Options of a wrong kind or value are refused by name, before anything changes; what transformers honours is not."""

import math
import warnings

import numpy as np
import pytest
import torch
from models_for_tests import BOS, pixels, placeholder_block, text_ids, tiny_model, tiny_processor, tiny_tokenizer
from transformers import GenerationConfig, TextStreamer

import fastdecode
from fastdecode import Guidance, Stream
from fastdecode.models.families import vocabulary_of
from fastdecode.ops import backends

MODEL = tiny_model(0)
V = vocabulary_of(MODEL)
PROMPT = torch.tensor([[BOS, *text_ids(MODEL, 0, 3)]])
WORD = int(PROMPT[0, 1])
NAN, INF, HUGE = math.nan, math.inf, 10**400
ENGINE = fastdecode.Engine(MODEL, tiny_processor())


def generate(**options):
    return fastdecode.generate(MODEL, **{"input_ids": PROMPT, "max_new_tokens": 3} | options)


def plug(**options):
    return MODEL.generate(
        **{"input_ids": PROMPT, "max_new_tokens": 3} | options, custom_generate=fastdecode.custom_generate
    )


def explain(**options):
    return fastdecode.explain(MODEL, **{"input_ids": PROMPT, "max_new_tokens": 3} | options)


def submit(**options):
    return ENGINE.submit(**{"input_ids": PROMPT, "max_new_tokens": 3} | options)


def stream(**options):
    return fastdecode.stream(MODEL, tiny_processor(), **{"input_ids": PROMPT, "max_new_tokens": 3} | options)


DRAWS = {"multimodal_generation_mode": "image-only", "max_new_tokens": None}
NOT_A_TOKEN = r"is not a token of this checkpoint \(0 to 51\)"

OWN = [
    ({"text": {"do_sample": "no"}}, r"text\['do_sample'\]='no': give True or False"),
    ({"text": {"do_sample": False, "temperature": NAN}}, "text.temperature=nan is out of range"),
    ({"text": {"do_sample": False, "top_p": NAN}}, "text.top_p=nan is out of range"),
    ({"text": {"temperature": HUGE}}, "text.temperature=an integer of 1329 bits is out of range"),
    ({"text": {"temperature": 1e39}}, r"text.temperature=1e\+39 is out of range"),
    ({"text": {"repetition_penalty": INF}}, "text.repetition_penalty=inf is out of range"),
    ({"text": []}, r"text=\[\]: give a dict of sampling parameters"),
    ({"image": [], **DRAWS}, r"image=\[\]: give a dict"),
    ({"image": {"top_p": 0.9}}, "'text-only' draws none"),
    ({"multimodal_generation_mode": ""}, "multimodal_generation_mode='' is unknown; choose one of text-only"),
    ({"multimodal_generation_mode": ["text-only"]}, "is unknown; choose one of"),
    ({"seed": True}, "seed=True: it must be an integer"),
    ({"seed": [True]}, r"seed=\[True\]: it must be an integer"),
    ({"seed": {7}}, r"seed=\{7\}: it must be an integer"),
    ({"seed": torch.tensor([True])}, "seed=tensor.*: it must be an integer"),
    ({"deterministic": 1}, "deterministic=1: give True or False"),
    ({"deterministic": "no"}, "deterministic='no': give True or False"),
    ({"guidance": NAN}, "guidance is nan, which is not a finite number"),
    ({"guidance": HUGE}, "guidance is an integer of 1329 bits, which is not a finite number"),
]

SHARED = [
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5: give a whole number of at least 1"),
    ({"max_new_tokens": NAN}, "max_new_tokens=nan: give a whole number"),
    ({"max_new_tokens": True}, "max_new_tokens=True: give a whole number"),
    ({"max_new_tokens": "3"}, "max_new_tokens='3': give a whole number"),
    ({"max_new_tokens": None, "max_length": "9"}, "max_length='9': give a whole number"),
    ({"min_new_tokens": NAN}, "min_new_tokens=nan: give a whole number of at least 0"),
    ({"min_new_tokens": True}, "min_new_tokens=True"),
    ({"min_new_tokens": -3}, "min_new_tokens=-3: give a whole number of at least 0"),
    ({"min_new_tokens": 10**30}, "min_new_tokens=1000"),
    ({"min_new_tokens": "3"}, "min_new_tokens='3'"),
    ({"min_new_tokens": {}}, "min_new_tokens={}"),
    ({"min_new_tokens": 1.5}, "min_new_tokens=1.5"),
    ({"min_length": NAN}, "min_length=nan"),
    ({"num_return_sequences": True}, "num_return_sequences=True: give a whole number of at least 1"),
    ({"num_return_sequences": -1}, "num_return_sequences=-1: give a whole number of at least 1"),
    ({"num_return_sequences": 0}, "num_return_sequences=0: give a whole number of at least 1"),
    ({"no_repeat_ngram_size": "2"}, "no_repeat_ngram_size='2': give a whole number"),
    ({"suppress_tokens": [-1]}, f"suppress_tokens has -1, which {NOT_A_TOKEN}"),
    ({"suppress_tokens": [5.5]}, f"suppress_tokens has 5.5, which {NOT_A_TOKEN}"),
    ({"suppress_tokens": [NAN]}, f"suppress_tokens has nan, which {NOT_A_TOKEN}"),
    ({"suppress_tokens": [52]}, f"suppress_tokens has 52, which {NOT_A_TOKEN}"),
    ({"suppress_tokens": [True]}, f"suppress_tokens has True, which {NOT_A_TOKEN}"),
    ({"suppress_tokens": [[1, 2]]}, r"suppress_tokens has \[1, 2\], which"),
    ({"suppress_tokens": [10**30]}, "suppress_tokens has 1000"),
    ({"suppress_tokens": 5}, "suppress_tokens=5: give a list of tokens"),
    ({"suppress_tokens": "3"}, "suppress_tokens='3': give a list of tokens"),
    ({"begin_suppress_tokens": [-1]}, f"begin_suppress_tokens has -1, which {NOT_A_TOKEN}"),
    ({"begin_suppress_tokens": 5}, "begin_suppress_tokens=5: give a list of tokens"),
    ({"forced_eos_token_id": 52}, f"forced_eos_token_id has 52, which {NOT_A_TOKEN}"),
    ({"forced_eos_token_id": "3"}, "forced_eos_token_id has '3'"),
    ({"forced_eos_token_id": {}}, "forced_eos_token_id has {}"),
    ({"forced_bos_token_id": 52}, f"forced_bos_token_id has 52, which {NOT_A_TOKEN}"),
    ({"forced_bos_token_id": True}, "forced_bos_token_id has True"),
    ({"bad_words_ids": [[52]]}, rf"bad_words_ids\[0\] has 52, which {NOT_A_TOKEN}"),
    ({"bad_words_ids": [[]]}, r"bad_words_ids\[0\] is \[\]: give a list of at least one token"),
    ({"bad_words_ids": [[5, 52]]}, r"bad_words_ids\[0\] has 52"),
    ({"sequence_bias": {(5,): NAN}}, r"sequence_bias of \(5,\) is nan: give a finite float"),
    ({"sequence_bias": {(5,): INF}}, r"sequence_bias of \(5,\) is inf: give a finite float"),
    ({"sequence_bias": {(5, 6): NAN}}, r"sequence_bias of \(5, 6\) is nan"),
    ({"sequence_bias": {(52,): 1.0}}, f"sequence_bias has 52, which {NOT_A_TOKEN}"),
    ({"sequence_bias": [[[5]]]}, r"sequence_bias has \[\[5\]\]: give a dict such as"),
    ({"eos_token_id": "2"}, "eos_token_id has '2'"),
    ({"eos_token_id": 5.5}, "eos_token_id has 5.5"),
    ({"eos_token_id": 52}, f"eos_token_id has 52, which {NOT_A_TOKEN}"),
    ({"pad_token_id": [1]}, r"pad_token_id=\[1\]: give one token"),
    ({"do_sample": "no"}, "do_sample='no': give True or False"),
    ({"do_sample": NAN}, "do_sample=nan: give True or False"),
    ({"return_dict_in_generate": "no"}, "return_dict_in_generate='no': give True or False"),
    ({"renormalize_logits": 1}, "renormalize_logits=1: give True or False"),
    (
        {"temperature": NAN},
        "temperature=nan: give a finite number above 0; for the likeliest token leave do_sample out",
    ),
    ({"temperature": -1.0, "do_sample": True}, "temperature=-1.0: give a finite number above 0; for the likeliest"),
    ({"temperature": 0.0, "do_sample": True}, "temperature=0.0: give a finite number above 0; for the likeliest"),
    ({"temperature": HUGE, "do_sample": True}, "temperature=an integer of 1329 bits: give a finite number"),
    ({"top_p": "5"}, "top_p='5': give a number between 0 and 1"),
    ({"typical_p": NAN}, "typical_p=nan: give a number between 0 and 1"),
    ({"epsilon_cutoff": 1.5}, "epsilon_cutoff=1.5: give a number between 0 and 1"),
    ({"repetition_penalty": True}, "repetition_penalty=True: give a finite number above 0"),
    ({"guidance_scale": "5"}, "guidance_scale='5': give a finite number"),
    ({"guidance_scale": True}, "guidance_scale=True: give a finite number"),
    ({"max_time": NAN}, "max_time=nan: give a finite number"),
    ({"exponential_decay_length_penalty": (1,)}, "give .first, factor."),
    ({"exponential_decay_length_penalty": (1, NAN)}, "give .first, factor."),
    ({"logits_processor": 3}, "logits_processor is an int: give a list of logits processors"),
    ({"logits_processor": {}}, "logits_processor is a dict: give a list"),
    ({"logits_processor": [3]}, r"logits_processor\[0\] is 3, which cannot be called"),
    ({"stopping_criteria": lambda i, s: True}, "stopping_criteria is a function: give a list"),
    ({"stopping_criteria": ["x"]}, r"stopping_criteria\[0\] is 'x', which cannot be called"),
    ({"prefix_allowed_tokens_fn": 3}, "prefix_allowed_tokens_fn=3 cannot be called"),
    ({"stop_strings": 3, "tokenizer": tiny_tokenizer()}, "stop_strings=3: give a string"),
    ({"stop_strings": ["a"], "tokenizer": 3}, "tokenizer is an int: give the model's tokenizer"),
    ({"generation_config": 3}, "generation_config is an int: give a transformers.GenerationConfig"),
    ({"negative_prompt_ids": [[3]], "guidance_scale": 2.0}, "negative_prompt_ids is a list: give a tensor"),
    ({"negative_prompt_ids": torch.tensor([[3.5]]), "guidance_scale": 2.0}, "negative_prompt_ids are floats"),
    ({"input_ids": PROMPT.to("meta")}, "input_ids is on the meta device, where tensors have no values"),
    ({"input_ids": PROMPT.to_sparse()}, "input_ids has the layout sparse_coo: give a dense tensor"),
    ({"input_ids": PROMPT.bool()}, "input_ids is bool: give tokens"),
    ({"attention_mask": torch.ones_like(PROMPT).to("meta")}, "attention_mask is on the meta device"),
    ({"attention_mask": torch.ones_like(PROMPT).to_sparse()}, "attention_mask has the layout sparse_coo"),
    ({"attention_mask": torch.tensor([[1, 1, 2, 1]])}, r"attention_mask\[0, 2\] = 2; it must be 1"),
    ({"attention_mask": torch.full((1, 4), NAN)}, r"attention_mask\[0, 0\] = nan"),
    ({"position_ids": "x"}, "position_ids is a str: give a tensor"),
    ({"negative_prompt_attention_mask": PROMPT}, "was given without negative_prompt_ids"),
    ({"pixel_values": torch.zeros(0, 3, 8, 8)}, "pixel_values holds no picture: leave it out"),
    ({"pixel_values": [1.0]}, "pixel_values is a list; this checkpoint takes"),
    ({"pixel_values": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, r"pixel_values is \(1, 3, 8, 8\) uint8"),
    ({"pixel_values": torch.zeros(1, 3, 8, 8, device="meta")}, "pixel_values is on the meta device"),
    ({"pixel_values": torch.full((1, 3, 8, 8), NAN)}, "pixel_values of picture 0 are not all finite"),
]


def named(case) -> str:
    return " ".join(f"{name}={value!r}"[:40] for name, value in case[0].items())


@pytest.mark.parametrize("way", [generate, explain, submit, stream], ids=lambda way: way.__name__)
@pytest.mark.parametrize(("options", "message"), [*OWN, *SHARED], ids=map(named, [*OWN, *SHARED]))
def test_wrong_kinds_and_values_are_refused_by_name(way, options, message):
    before = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=message):
        way(**options)
    assert torch.equal(torch.get_rng_state(), before)
    assert ENGINE.statistics().submitted == 0


@pytest.mark.parametrize(("options", "message"), OWN, ids=map(named, OWN))
def test_the_plug_refuses_them_too(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        plug(**options)


def test_entries_of_a_generation_config_are_checked_too():
    with pytest.raises(ValueError, match="suppress_tokens has -1"):
        generate(generation_config=GenerationConfig(suppress_tokens=[-1], max_new_tokens=2))


HONOURED = [
    {"max_new_tokens": np.int64(4)},
    {"max_new_tokens": torch.tensor(4)},
    {"suppress_tokens": [float(WORD)]},
    {"suppress_tokens": (WORD,)},
    {"suppress_tokens": {WORD}},
    {"suppress_tokens": torch.tensor([WORD])},
    {"suppress_tokens": np.array([WORD])},
    {"suppress_tokens": []},
    {"sequence_bias": {(WORD,): -INF}},
    {"sequence_bias": {(np.int64(WORD),): 9.0}},
    {"sequence_bias": [[[WORD], 9.0]]},
    {"forced_eos_token_id": [2, 3], "max_new_tokens": 3},
    {"bad_words_ids": [[WORD]]},
    {"eos_token_id": -1},
    {"pad_token_id": -1},
    {"do_sample": 0},
    {"temperature": 0.0},
    {"num_return_sequences": np.int64(1)},
    {"no_repeat_ngram_size": 10**18},
    {"guidance_scale": -1},
    {"max_time": 1e9},
]


@pytest.mark.parametrize("options", HONOURED, ids=repr)
def test_what_transformers_honours_stays_honoured(options):
    call = {"input_ids": PROMPT, "max_new_tokens": 4} | options
    assert torch.equal(fastdecode.generate(MODEL, **call), MODEL.generate(**call))


def test_a_top_k_beyond_the_vocabulary_is_off_as_in_transformers():
    call = {"do_sample": True, "seed": 3}
    assert torch.equal(generate(**call, top_k=10**18), generate(**call, top_k=0))


@pytest.mark.parametrize("streamer", [object(), 3, TextStreamer])
def test_a_streamer_without_methods(streamer):
    for way in (generate, explain):
        with pytest.raises(ValueError, match="not an object with the methods put and end"):
            way(streamer=streamer)


@pytest.mark.parametrize("prompt", [[True, False], {5, 6}])
def test_prompts_that_are_no_list_of_tokens(prompt):
    with pytest.raises(ValueError, match=f"the prompt is of type {type(prompt).__name__}: give text"):
        ENGINE.submit(prompt)


def test_a_processor_that_is_none():
    for make in (lambda: fastdecode.Engine(MODEL, 3), lambda: fastdecode.stream(MODEL, 3, [5])):
        with pytest.raises(TypeError, match="processor is an int; give the model's processor"):
            make()


@pytest.mark.parametrize("timeout", ["x", NAN, True])
def test_a_timeout_that_is_no_number(timeout):
    handle = fastdecode.Engine(MODEL).submit([5], max_new_tokens=2)
    with pytest.raises(ValueError, match=r"timeout=.*: give a number of seconds, or None"):
        handle.result(timeout=timeout)


@pytest.mark.parametrize("said", [None, "x", torch.tensor([True, False]), torch.tensor([1.0])])
def test_a_criterion_that_does_not_say_who_stops(said):
    def ponders(tokens, scores):
        return said

    with pytest.raises(ValueError, match=r"the stopping criterion ponders returned .*; it must return \(1,\) of bools"):
        generate(stopping_criteria=[ponders])
    assert generate(stopping_criteria=[lambda tokens, scores: True]).shape == (1, 5)
    assert generate(stopping_criteria=[lambda tokens, scores: torch.tensor([True])]).shape == (1, 5)


@pytest.mark.parametrize("returned", [lambda s: s[:, :5], lambda s: s > 0, lambda s: None, torch.Tensor.to_sparse])
def test_a_processor_that_returns_something_else_is_named(returned):
    def shortens(tokens, scores):
        return returned(scores)

    with pytest.raises(ValueError, match=r"the logits processor shortens returned .*; it must return scores \(1, 52\)"):
        generate(logits_processor=[shortens, lambda tokens, scores: scores + 1])


def test_pixels_of_infinity():
    ids = torch.tensor([[BOS, *placeholder_block(V)]])
    values = pixels(0, 1)
    generate(input_ids=ids, pixel_values=values)
    values[0, 2, 1, 3] = INF
    for way in (generate, plug):
        with pytest.raises(ValueError, match="pixel_values of picture 0 are not all finite"):
            way(input_ids=ids, pixel_values=values)


def test_a_model_on_meta():
    with torch.device("meta"):
        model = type(MODEL)(MODEL.config)
    with pytest.raises(ValueError, match="the model's weights are on the meta device"):
        fastdecode.generate(model, PROMPT, max_new_tokens=2)


def test_the_parts_of_what_can_never_fit():
    pool = fastdecode.new_pool(MODEL, pages=1, page_slots=4)
    message = r"its 8 tokens \(4 of the prompt and 4 of the picture that follows\) alone take 2 pages of 4, and"
    with pytest.raises(ValueError, match=message):
        generate(**DRAWS, kv_pool=pool)


@pytest.mark.parametrize("pages", [1.5, NAN, True, "3"])
def test_pools_of_no_whole_number_of_pages(pages):
    with pytest.raises(ValueError, match=r"^pages is .*; a pool of pages needs at least 1, a whole number"):
        fastdecode.new_pool(MODEL, pages=pages)
    with pytest.raises(ValueError, match=r"^page_slots is "):
        fastdecode.new_pool(MODEL, page_slots=pages)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance.two_way("x"), "scale of Guidance.two_way is 'x', which is not a finite number"),
        (lambda: Guidance.two_way(True), "scale of Guidance.two_way is True"),
        (lambda: Guidance.two_way(HUGE), "scale of Guidance.two_way is an integer of 1329 bits"),
        (lambda: Guidance.two_way(2.0, [1.5]), "negative_prompt_ids have 1.5: a token is an integer"),
        (lambda: Guidance.two_way(2.0, [True]), "negative_prompt_ids have True"),
        (lambda: Guidance.two_way(2.0, "ab"), "negative_prompt_ids: 'ab' are no tokens"),
        (lambda: Guidance.two_way(2.0, torch.tensor([[1]])), r"negative_prompt_ids have the shape \(1, 1\)"),
        (lambda: Guidance.two_way(2.0, everywhere=1), "everywhere of Guidance is 1: give True or False"),
        (lambda: Guidance.instruct("a"), "text of Guidance.instruct is 'a'"),
        (lambda: Guidance.five_way([1], [1.5]), "original of Guidance.five_way have 1.5"),
        (lambda: Guidance.five_way([1], [1], full="x"), "full of Guidance.five_way is 'x'"),
        (lambda: Guidance((Stream("full"), 3), (1.0, 1.0)), r"streams\[1\] of Guidance is an int"),
        (lambda: Guidance((Stream("full"),), ("x",)), r"weights\[0\] of Guidance is 'x'"),
        (lambda: Guidance(3, (1.0,)), "streams of Guidance is an int: give a tuple"),
        (lambda: Stream(3), "stream kind 3 is unknown"),
        (lambda: Stream("prompt", (1.5,)), "ids of a Stream have 1.5: a token is an integer"),
        (lambda: Stream("prompt", (-1,)), "ids of a Stream have -1: a token is an integer of at least 0"),
        (lambda: Stream("prompt", 5), "ids of a Stream: 5 are no tokens"),
        (lambda: Stream("unconditional", bos=1), "bos of a Stream is 1: give True or False"),
    ],
)
def test_guidance_of_wrong_kinds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lists_of_tokens_make_the_same_guidance():
    assert Guidance.two_way(2, torch.tensor([3, 4])) == Guidance.two_way(2.0, [3, 4])
    assert hash(Guidance([Stream("full")], [1])) == hash(Guidance())


@pytest.mark.parametrize("length", [V.context, V.context - 3])
def test_a_stream_that_leaves_no_room_in_the_context(length):
    guidance = Guidance((Stream("full"), Stream("prompt", (5,) * length)), (2.0, -1.0))
    with pytest.raises(ValueError, match=r"stream .* has \d+ tokens, and .* context of this checkpoint is 160"):
        generate(**DRAWS, guidance=guidance)


def test_the_reference_says_once_that_a_library_is_missing(monkeypatch):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "_C_ERROR", "libfastdecode.so: cannot open shared object file")
    monkeypatch.setattr(backends, "_default", None)
    backends._warn_of_the_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"backend cpu cannot run: .*libfastdecode.so: cannot open"):
        assert fastdecode.ops.sample(torch.zeros(1, 5)).token.shape == (1,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdecode.ops.sample(torch.zeros(1, 5))
        backends._warn_of_the_reference.cache_clear()
        fastdecode.ops.sample(torch.zeros(1, 5), backend="reference")


def test_explain_names_no_backend_that_this_version_does_not_have():
    found = explain(**DRAWS, guidance=Guidance.instruct(3.0, 1.2))
    assert "cuda" not in str(found)
    assert found.streams == [["+3 x full, 5 tokens", "-2 x images = unconditional, 2 tokens"]]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"max_new_tokens": 10**5000}, "max_new_tokens=an integer of 16610 bits: give"),
        ({"suppress_tokens": [10**5000]}, "suppress_tokens has an integer of 16610 bits"),
        ({"bad_words_ids": 10**5000}, "bad_words_ids=an integer of 16610 bits: give"),
        ({"sequence_bias": [[10**5000]]}, "sequence_bias has a list: give"),
        ({"do_sample": 10**5000}, "do_sample=an integer of 16610 bits: give"),
        ({"guidance": 10**5000}, "guidance is an integer of 16610 bits"),
        ({"text": 10**5000}, "text=an integer of 16610 bits: give"),
        ({"text": {"top_p": 10**5000}}, "text.top_p=an integer of 16610 bits is out of range"),
        ({"multimodal_generation_mode": 10**5000}, "multimodal_generation_mode=an integer of 16610 bits is unknown"),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_integers_that_python_does_not_print(options, where):
    with pytest.raises((ValueError, TypeError), match=f"^{where}"):
        generate(**options)
