"""Text-only decoding returns the tokens of transformers."""

import copy
import random

import pytest
import torch
from heard import Heard
from models_for_tests import (
    BOS,
    PAD,
    WORDS,
    padded,
    pixels,
    placeholder_block,
    text_ids,
    tiny_model,
    tiny_tokenizer,
)
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, RepetitionPenaltyLogitsProcessor

import fastdecode
from fastdecode.models.families import vocabulary_of
from fastdecode.ops.backends import last_backend

NEW = 12


class Call:
    """A random model, random prompts (some with pictures) and the tokens that a plain call gives."""

    def __init__(self, seed: int, batch: int | None = None, pictures: bool = True) -> None:
        rng = self.rng = random.Random(seed)
        self.model = tiny_model(
            seed,
            swin_norm=seed % 2 == 0,
            kv_heads=rng.choice([1, 2, 4]),
            bias=rng.random() < 0.5,
            scattered=rng.random() < 0.5,
            tie_word_embeddings=rng.random() < 0.3,
        )
        vocabulary = vocabulary_of(self.model)
        prompts, count = [], 0
        for row in range(batch or rng.randint(1, 4)):
            prompts.append([BOS, *text_ids(self.model, seed * 9 + row, rng.randint(1, 8))])
            if pictures and rng.random() < 0.5:
                prompts[-1] += placeholder_block(vocabulary) + text_ids(self.model, seed * 7 + row, rng.randint(0, 3))
                count += 1
        self.inputs = padded(prompts)
        if count:
            self.inputs["pixel_values"] = pixels(seed, count)
        self.width = self.inputs["input_ids"].shape[1]
        plain = self.model.generate(**self.inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        self.tokens = plain[:, self.width :].flatten().tolist()

    def token(self) -> int:
        """One of those that the plain call gives."""
        return self.rng.choice(self.tokens)

    def check(self, **options) -> torch.Tensor:
        """All ways of calling give what transformers gives; returns it."""
        options = {"do_sample": False, "max_new_tokens": NEW} | options
        expected = self.model.generate(**self.inputs, **options)
        assert torch.equal(fastdecode.generate(self.model, **self.inputs, **options), expected)
        plugged = self.model.generate(**self.inputs, custom_generate=fastdecode.custom_generate, **options)
        assert torch.equal(plugged, expected)
        return expected


@pytest.mark.parametrize("seed", range(24))
def test_greedy(seed: int):
    call = Call(seed)
    call.check()
    found = call.check(eos_token_id=[call.token(), call.token()])
    assert (found[:, call.width :] == PAD).any() or found.shape[1] < call.width + NEW or len(found) == 1


def test_some_rows_stop_long_before_others():
    call = Call(3, batch=4)
    rows = torch.tensor(call.tokens).view(4, NEW)
    found = call.check(eos_token_id=[int(rows[0, 0]), int(rows[2, 5])])
    lengths = (found[:, call.width :] != PAD).sum(1)
    assert lengths.min() == 1
    assert lengths.max() > 5


class Prefixes:
    """A ``prefix_allowed_tokens_fn``: three words that depend on the row and the length."""

    def __init__(self, model) -> None:
        self.words = [model.config.vocabulary_map[w] for w in WORDS]

    def __call__(self, row: int, ids: torch.Tensor) -> list[int]:
        return [self.words[(len(ids) * k + row) % len(self.words)] for k in (1, 2, 3)]


PROCESSED = {
    "repetition_penalty": lambda call: {"repetition_penalty": call.rng.choice([0.6, 1.3, 1.8])},
    "min_new_tokens": lambda call: {"min_new_tokens": 6, "eos_token_id": call.token()},
    "min_length": lambda call: {"min_length": call.width + 6, "eos_token_id": [call.token(), call.token()]},
    "bad_words_ids": lambda call: {"bad_words_ids": [[call.token()], [call.token(), call.token()]]},
    "suppress_tokens": lambda call: {"suppress_tokens": [call.token()], "begin_suppress_tokens": [call.tokens[0]]},
    "sequence_bias": lambda call: {"sequence_bias": {(call.token(),): -4.0, (call.token(), call.token()): 6.0}},
    "no_repeat_ngram_size": lambda call: {"no_repeat_ngram_size": 2},
    "forced_eos": lambda call: {"forced_eos_token_id": call.token()},
    "penalty before others": lambda call: {
        "repetition_penalty": 1.4,
        "min_new_tokens": 4,
        "eos_token_id": call.token(),
    },
    "encoder_repetition_penalty": lambda call: {"encoder_repetition_penalty": 1.5},
    "remove_invalid_values": lambda call: {"remove_invalid_values": True},
    "exponential_decay": lambda call: {
        "exponential_decay_length_penalty": (3, 1.3),
        "eos_token_id": call.token(),
    },
    "max_length": lambda call: {"max_new_tokens": None, "max_length": call.width + 5},
    "max_time": lambda call: {"max_time": 0.0},
    "two ends": lambda call: {"eos_token_id": [call.token(), call.token()], "pad_token_id": 3},
    "use_cache": lambda call: {"use_cache": False},
    "prefix": lambda call: {"prefix_allowed_tokens_fn": Prefixes(call.model)},
    "guidance": lambda call: {"guidance_scale": call.rng.choice([0.0, 1.5, 3.0]), "eos_token_id": call.token()},
    "guidance, then a penalty": lambda call: {"guidance_scale": 2.0, "repetition_penalty": 1.5},
    "guidance, then others": lambda call: {"guidance_scale": 2.0, "repetition_penalty": 1.3, "min_new_tokens": 3},
}


@pytest.mark.parametrize("seed", range(30, 33))
@pytest.mark.parametrize("name", PROCESSED)
def test_options(name: str, seed: int):
    call = Call(seed)
    call.check(**PROCESSED[name](call))


@pytest.mark.parametrize("seed", range(40, 44))
@pytest.mark.parametrize("penalty", [None, 1.5])
def test_negative_prompts(seed: int, penalty: float | None):
    call = Call(seed)
    negative = padded(
        [text_ids(call.model, row, call.rng.randint(1, 5)) for row in range(len(call.inputs["input_ids"]))]
    )
    call.check(
        guidance_scale=2.5,
        repetition_penalty=penalty,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_attention_mask=negative["attention_mask"],
    )


class Favour(LogitsProcessor):
    """Lifts one id in every other step, and looks at the scores as a user's processor may."""

    def __init__(self, token: int) -> None:
        self.token, self.shapes = token, []

    def __call__(self, input_ids, scores):
        assert scores.dtype == torch.float32
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape)))
        scores = scores.clone()
        if input_ids.shape[1] % 2:
            scores[:, self.token] += 5.0
        return scores


class StopAt(StoppingCriteria):
    """Stops row i after i + 2 new ids."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids, scores, **kwargs):
        new = input_ids.shape[1] - self.width
        return torch.tensor([new >= row + 2 for row in range(len(input_ids))])


def test_processors_and_criteria_of_the_caller():
    call = Call(50, batch=3)
    ours, theirs = Favour(call.token()), Favour(call.token())
    theirs.token = ours.token
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": call.token()}
    expected = call.model.generate(**call.inputs, **options, logits_processor=LogitsProcessorList([theirs]))
    got = fastdecode.generate(call.model, **call.inputs, **options, logits_processor=LogitsProcessorList([ours]))
    assert torch.equal(got, expected)
    assert ours.shapes == theirs.shapes
    unused = next(i for i in range(call.model.config.vocab_size) if i not in call.tokens)
    stop = StoppingCriteriaList([StopAt(call.width)])
    found = call.check(stopping_criteria=stop, eos_token_id=unused, pad_token_id=unused)
    assert (found[:, call.width :] != unused).sum(1).tolist() == [2, 3, 4]


def test_a_criterion_of_the_caller_replaces_the_ends_of_the_call():
    call = Call(51, batch=2)
    call.check(
        eos_token_id=call.tokens[1],
        stopping_criteria=StoppingCriteriaList([EosTokenCriteria(call.tokens[4])]),
    )


@pytest.mark.parametrize("ignored", [None, 0, 3, "width", "tensor"])
def test_a_penalty_of_the_caller(ignored):
    call = Call(52, batch=3, pictures=False)
    if ignored == "width":
        ignored = call.width
    if ignored == "tensor":
        ignored = torch.tensor([1, 2, 3])
    call.check(logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7, ignored)]))


@pytest.mark.parametrize("where", ["call", "generation_config", "model"])
def test_stop_strings(where: str):
    call = Call(53, batch=3, pictures=False)
    names = call.model.config.vocabulary_map
    tokenizer = tiny_tokenizer(names | {"abcdef": len(names)})  # what transformers spells tokens with
    word = next(name for name in WORDS if names[name] in call.tokens)
    options = {"max_new_tokens": NEW, "do_sample": False, "tokenizer": tokenizer}
    if where == "call":
        options["stop_strings"] = word
    elif where == "generation_config":
        options["generation_config"] = GenerationConfig(stop_strings=[word])
    else:
        call.model.generation_config.stop_strings = [word]
    expected = call.model.generate(**call.inputs, **options)
    assert torch.equal(fastdecode.generate(call.model, **call.inputs, **options), expected)
    assert expected.shape[1] < call.width + NEW or (expected == PAD)[:, call.width :].any()
    options.pop("tokenizer")
    with pytest.raises(ValueError, match="stop_strings needs tokenizer="):
        fastdecode.generate(call.model, **call.inputs, **options)


def test_generation_config_objects():
    call = Call(54, batch=2)
    config = GenerationConfig(max_new_tokens=7, do_sample=False, eos_token_id=[call.token(), 2], repetition_penalty=1.2)
    expected = call.model.generate(**call.inputs, generation_config=config)
    ids = call.inputs.pop("input_ids")
    assert torch.equal(fastdecode.generate(call.model, ids, config, **call.inputs), expected)
    fastdecode.enable(call.model)
    assert torch.equal(call.model.generate(ids, config, **call.inputs), expected)
    assert torch.equal(call.model.generate(ids, generation_config=config, **call.inputs), expected)


def test_ends_of_the_models_generation_config():
    call = Call(55, batch=3)
    call.model.generation_config.eos_token_id = [call.token(), call.token()]
    call.model.generation_config.pad_token_id = 3
    call.check()


def test_padding_without_a_mask_is_told_from_the_pad_id():
    call = Call(56, batch=3, pictures=False)
    del call.inputs["attention_mask"]
    call.check(repetition_penalty=1.3)


def test_a_mask_with_holes():
    call = Call(57, batch=2, pictures=False)
    call.inputs["attention_mask"][0, -3] = 0
    call.check(repetition_penalty=1.5)


@pytest.mark.parametrize("seed", range(60, 64))
def test_returned_dictionary(seed: int):
    call = Call(seed)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": call.token(), "repetition_penalty": 1.2}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = call.model.generate(**call.inputs, **options)
    got = fastdecode.generate(call.model, **call.inputs, **options)
    assert type(got) is type(expected)
    assert torch.equal(got.sequences, expected.sequences)
    assert len(got.scores) == len(expected.scores)
    vocabulary = vocabulary_of(call.model)
    text = [i for i in range(vocabulary.size) if i not in vocabulary.image_ids]
    live = torch.ones(len(got.sequences), dtype=torch.bool)
    for step, (ours, theirs) in enumerate(zip(got.scores, expected.scores, strict=True)):
        torch.testing.assert_close(ours[live][:, text], theirs[live][:, text], rtol=1e-4, atol=1e-3)
        assert (ours[live][:, list(vocabulary.image_ids)] == -torch.inf).all()
        raw = got.logits[step][live], expected.logits[step][live]
        torch.testing.assert_close(raw[0][:, text], raw[1][:, text], rtol=1e-4, atol=1e-3)
        live &= got.sequences[:, call.width + step] != options["eos_token_id"]
    assert fastdecode.generate(call.model, **call.inputs, max_new_tokens=2, return_dict_in_generate=True).scores is None


def test_scores_are_what_is_sampled_from():
    """Temperature, top-k, top-p and min-p leave the same ids as transformers' processors do."""
    call = Call(65, batch=2, pictures=False)
    options = {"max_new_tokens": 1, "do_sample": True, "temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01}
    options |= {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.4}
    expected = call.model.generate(**call.inputs, **options).scores[0]
    got = fastdecode.generate(call.model, **call.inputs, **options).scores[0]
    assert torch.equal(got > -torch.inf, expected.softmax(-1) > 0)
    torch.testing.assert_close(got.softmax(-1), expected.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_streamers(batch: int):
    call = Call(70, batch=batch)
    eos, heard = call.token(), []
    ways = (
        call.model.generate,
        lambda **options: fastdecode.generate(call.model, **options),
        lambda **options: call.model.generate(custom_generate=fastdecode.custom_generate, **options),
        lambda **options: call.model.generate(
            custom_generate=lambda *a, **k: fastdecode.custom_generate(*a, **k), **options
        ),
        fastdecode.enable(tiny_model(0)).generate.__func__.__get__(call.model),
    )
    for generate in ways:
        heard.append(Heard())
        generate(**call.inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=eos, streamer=heard[-1])
    assert heard[0].puts[-1] is None
    for other in heard[1:]:
        assert other.puts == heard[0].puts


def test_progress_shows_a_bar(capsys):
    call = Call(71, batch=1)
    fastdecode.generate(call.model, **call.inputs, max_new_tokens=4, eos_token_id=None, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_enable_and_disable():
    call = Call(72)
    expected = call.model.generate(**call.inputs, max_new_tokens=5, do_sample=False)
    assert fastdecode.enable(call.model) is call.model
    assert torch.equal(call.model.generate(**call.inputs, max_new_tokens=5, do_sample=False), expected)
    same = call.model.generate(
        **call.inputs, max_new_tokens=5, do_sample=False, custom_generate=fastdecode.custom_generate
    )
    assert torch.equal(same, expected)
    assert call.model.generate(**call.inputs, custom_generate=lambda model, input_ids, **k: "another") == "another"
    twin = copy.deepcopy(call.model)
    assert twin.generate.__self__ is twin
    assert fastdecode.disable(call.model) is call.model
    assert "generate" not in vars(call.model)
    fastdecode.disable(call.model)
    assert torch.equal(call.model.generate(**call.inputs, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    call = Call(73, batch=2)
    call.model.to(dtype)
    found = fastdecode.generate(call.model, **call.inputs, max_new_tokens=NEW, do_sample=False)  # pixels in float32
    assert found.shape[1] > call.width
    assert not set(found[:, call.width :].flatten().tolist()) & vocabulary_of(call.model).image_ids


@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_not_numbers_are_an_error(do_sample: bool):
    call = Call(74, batch=2)
    with torch.no_grad():
        call.model.lm_head.weight[call.model.config.vocabulary_map["w3"]] = torch.nan
    with pytest.raises(RuntimeError, match="sequence 0 has NaN"):
        fastdecode.generate(call.model, **call.inputs, max_new_tokens=2, do_sample=do_sample)


def test_a_processor_that_bans_everything_is_an_error():
    call = Call(75, batch=1)
    ban = LogitsProcessorList([lambda ids, scores: torch.full_like(scores, -torch.inf)])
    with pytest.raises(RuntimeError, match="produced no distribution to sample from"):
        fastdecode.generate(call.model, **call.inputs, max_new_tokens=2, logits_processor=ban)


def test_the_results_are_ordinary_tensors_and_the_kernel_ran():
    call = Call(76, batch=1, pictures=False)
    found = fastdecode.generate(call.model, **call.inputs, max_new_tokens=2, do_sample=False)
    assert not found.is_inference()
    found += 1
    assert last_backend() == "cpu"
