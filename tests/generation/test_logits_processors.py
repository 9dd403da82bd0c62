"""Sorted logits processors against a call of transformers' own, on random scores at every length."""

import math
import random

import numpy as np
import pytest
import torch
from models_for_tests import tiny_model
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fastdecode.engine.parameters import Sampling
from fastdecode.engine.processed import warp
from fastdecode.generation.logits_processors import split_processors
from fastdecode.grammar import TEXT, compile_grammar
from fastdecode.token_rules import TokenRules
from fastdecode.vocabulary import Vocabulary

SIZE = 40
EOS = [2, 7]
PADDING = (0, 3, 1)
PROMPT = 5  # tokens of the padded prompts
LONGEST = 12
VOCABULARY = Vocabulary(
    size=SIZE, code_ids=(), begin_image=-1, end_image=-1, placeholder=-1, image_length=0, context=99, bos=0
)


def split(processors, do_sample: bool = True, padding=PADDING, **more):
    options = {"vocab_size": SIZE} | more
    return split_processors(LogitsProcessorList(processors), do_sample, torch.tensor(padding), **options)


def check(processors, seed: int = 0, prompt: int = PROMPT, padding=PADDING) -> None:
    """The same tokens survive with the same scores, for every sequence at every length."""
    found = split(processors, padding=padding)
    assert found.unfused == []
    assert found.rules
    generator = torch.Generator().manual_seed(seed)
    seen_phases = set()
    for length in range(prompt, LONGEST):
        ids = torch.randint(0, SIZE, (len(padding), length), generator=generator)
        scores = torch.randn((len(padding), SIZE), generator=generator) * 3
        expected = LogitsProcessorList(processors)(ids, scores.clone())
        for row, pad in enumerate(padding):
            rules = found.rules.shifted(pad)
            phase = rules.phase(length - pad)
            seen_phases.add(phase)
            grammar = compile_grammar("text-only", VOCABULARY, EOS, phase)
            z = scores[row].clone()
            for token, bias in rules.bias:
                z[token] += torch.tensor(bias, dtype=torch.float32)
            z.masked_fill_(~grammar.sets.mask(SIZE)[grammar.set_of[TEXT]], -math.inf)
            got = warp(z[None], ids[row, pad:].tolist(), found.sampling)[0]
            survives = got > -math.inf
            assert survives.any()
            assert torch.equal(survives, expected[row] > -math.inf)
            if phase.forced is None:
                assert torch.equal(got, expected[row])
            else:  # transformers writes 0; one token is left either way
                assert survives.nonzero().flatten().tolist() == sorted(phase.forced)
    times_out = found.rules.banned_while or found.rules.forced_at
    assert len(seen_phases) > 1 or not times_out


def penalty(padding=PADDING):
    """As transformers makes it for padded prompts, since it leaves padding out."""
    return RepetitionPenaltyLogitsProcessor(1.3, torch.tensor(padding))


try:
    penalty()
except ValueError:
    pytest.skip("this version of transformers penalises padding; its processors are called", allow_module_level=True)


WARPERS = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(9), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)]

ABSORBED = {
    "min_length": lambda: MinLengthLogitsProcessor(8, EOS),
    "min_length of one end": lambda: MinLengthLogitsProcessor(8, 2),
    "min_new_tokens": lambda: MinNewTokensLengthLogitsProcessor(PROMPT, 3, torch.tensor(EOS)),
    "suppress_tokens": lambda: SuppressTokensLogitsProcessor([4, 9, 9, -1, 70]),
    "begin_suppress_tokens": lambda: SuppressTokensAtBeginLogitsProcessor([5, 6], PROMPT),
    "begin_suppress_tokens later": lambda: SuppressTokensAtBeginLogitsProcessor([5, 6], PROMPT + 2),
    "forced_eos": lambda: ForcedEOSTokenLogitsProcessor(LONGEST, 2),
    "forced_eos in a tensor": lambda: ForcedEOSTokenLogitsProcessor(9, torch.tensor([3])),
    "bad_words_ids": lambda: NoBadWordsLogitsProcessor([[3], [11], [2]], torch.tensor(EOS)),
    "bad_words_ids with the end": lambda: NoBadWordsLogitsProcessor([[3], [2]]),
    "sequence_bias": lambda: SequenceBiasLogitsProcessor([[[12], 1.7], [[13], -2.3], [[14], 0.1]]),
    "sequence_bias of -inf": lambda: SequenceBiasLogitsProcessor({(np.int64(12),): -math.inf, (13,): 0.3}),
    "sequence_bias that rounds to -inf": lambda: SequenceBiasLogitsProcessor({(15,): -1e39}),
}


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("name", ABSORBED)
def test_alone(name: str, warped: bool):
    check([ABSORBED[name](), *(WARPERS if warped else [])])


@pytest.mark.parametrize("name", sorted(ABSORBED.keys() - {"sequence_bias", "sequence_bias of -inf"}))
def test_after_the_penalty(name: str):
    check([penalty(), ABSORBED[name](), *WARPERS])


@pytest.mark.parametrize("name", ABSORBED)
def test_before_the_penalty(name: str):
    check([ABSORBED[name](), penalty(), *WARPERS])


@pytest.mark.parametrize("name", sorted(ABSORBED.keys() - {"sequence_bias", "sequence_bias of -inf"}))
def test_after_the_temperature(name: str):
    check([penalty(), WARPERS[0], ABSORBED[name](), *WARPERS[1:]])


def test_a_forced_first_token():
    forced = ForcedBOSTokenLogitsProcessor(6)
    assert split([forced], padding=[0]).rules == TokenRules(forced_at=((1, frozenset({6})),))
    check([penalty([0]), forced, *WARPERS], prompt=1, padding=(0,))
    assert not split([forced]).rules.shifted(2)  # a padded prompt is longer than one token for transformers


@pytest.mark.parametrize("seed", range(40))
def test_combined(seed: int):
    """Any of them, in transformers' order: the bias, the penalty, all others, the warpers."""
    rng = random.Random(seed)
    first = [ABSORBED[rng.choice(["sequence_bias", "sequence_bias of -inf"])]()] * rng.randint(0, 1)
    names = rng.sample(sorted(n for n in ABSORBED if not n.startswith(("forced", "sequence"))), rng.randint(1, 5))
    middle = [ABSORBED[name]() for name in names]
    end = [ForcedEOSTokenLogitsProcessor(LONGEST, 2)] * rng.randint(0, 1)
    after = [SuppressTokensLogitsProcessor([20, 21])]
    warpers = [w for w in WARPERS if rng.random() < 0.6]
    check([*first, *[penalty()] * rng.randint(0, 1), *middle, *end, *after, *warpers], seed)


def test_what_transformers_makes_of_a_call():
    """All options at once, by transformers' own `_get_logits_processor`: its order is absorbed whole."""
    model = tiny_model(0)
    config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_k=10,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        sequence_bias=[[[12], 1.5]],
        bad_words_ids=[[3], [11]],
        min_length=8,
        min_new_tokens=2,
        forced_eos_token_id=2,
        suppress_tokens=[4],
        begin_suppress_tokens=[5],
        max_length=LONGEST,
    )
    config._eos_token_tensor = torch.tensor(EOS)
    mask = torch.ones((len(PADDING), PROMPT), dtype=torch.long)
    for row, pad in enumerate(PADDING):
        mask[row, :pad] = 0
    processors = model._get_logits_processor(
        config, input_ids_seq_length=PROMPT, device="cpu", model_kwargs={"attention_mask": mask}
    )
    assert len(processors) == 12
    check(processors)
    found = split(processors)
    assert found.sampling == Sampling(0.8, 10, 0.9, 0.02, 1.2)
    assert found.rules == TokenRules(
        banned=frozenset({3, 11, 4}),
        banned_while=((0, 8, frozenset(EOS)), (0, PROMPT + 2, frozenset(EOS)), (PROMPT, PROMPT + 1, frozenset({5}))),
        forced_at=((LONGEST - 1, frozenset({2})),),
        bias=((12, 1.5),),
    )


def test_nothing_to_absorb():
    found = split([penalty(), *WARPERS])
    assert found.unfused == []
    assert not found.rules
    assert found.sampling == Sampling(0.7, 9, 0.9, 0.05, 1.3)
    assert split([]).sampling == Sampling()
    assert split([SuppressTokensLogitsProcessor([])]).rules == TokenRules()
    assert split([SequenceBiasLogitsProcessor([[[12], 0.0]])]).rules == TokenRules()


def test_guidance_stays_at_the_head():
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, None)
    found = split([guidance, SuppressTokensLogitsProcessor([4]), *WARPERS])
    assert found.guidance is guidance
    assert found.unfused == []
    assert found.rules == TokenRules(banned=frozenset({4}))
    late = split([SuppressTokensLogitsProcessor([4]), guidance])
    assert late.guidance is None
    assert len(late.unfused) == 2


def test_greedy_calls_absorb_too():
    found = split([penalty(), MinLengthLogitsProcessor(8, EOS)], do_sample=False)
    assert found.unfused == []
    assert found.sampling == Sampling(temperature=0.0, repetition_penalty=1.3)
    assert found.rules == TokenRules(banned_while=((0, 8, frozenset(EOS)),))


def test_a_later_forced_token_replaces_an_earlier_one():
    found = split([ForcedEOSTokenLogitsProcessor(9, 2), ForcedEOSTokenLogitsProcessor(9, 3)])
    assert found.rules.phase(8).forced == frozenset({3})
    check([ForcedEOSTokenLogitsProcessor(9, 2), ForcedEOSTokenLogitsProcessor(9, 3)])


def test_bans_before_a_forced_token_give_way_to_it():
    check([MinLengthLogitsProcessor(LONGEST, EOS), ForcedEOSTokenLogitsProcessor(LONGEST, 2)])
    check([ForcedEOSTokenLogitsProcessor(LONGEST, 2), MinLengthLogitsProcessor(8, EOS)])  # over by then


class Subclass(SuppressTokensLogitsProcessor):
    """Not exactly transformers' own."""


def foreign(ids, scores):
    return scores


BAN = SuppressTokensLogitsProcessor([4])
BIAS = SequenceBiasLogitsProcessor([[[12], 1.5]])

# processors, and how many of them stay unfused
UNFUSED = {
    "a foreign processor behind": ([BAN, foreign], 2),
    "a foreign processor in front": ([foreign, BAN, *WARPERS], 2),
    "a foreign processor between": ([penalty(), BAN, NoRepeatNGramLogitsProcessor(2), BIAS, *WARPERS], 4),
    "a filter that is not fused": ([BAN, *WARPERS, TypicalLogitsWarper(0.9)], 6),
    "normalisation at the end": ([BAN, *WARPERS, LogitNormalization()], 6),
    "removal of invalid values": ([BAN, InfNanRemoveLogitsProcessor(), *WARPERS], 2),
    "a subclass": ([Subclass([4]), *WARPERS], 1),
    "bias after the penalty": ([penalty(), BIAS, *WARPERS], 2),
    "bias after the temperature": ([WARPERS[0], BIAS, *WARPERS[1:]], 2),
    "bias after a filter": ([WARPERS[1], BIAS], 2),
    "two biases of one token": ([BIAS, SequenceBiasLogitsProcessor([[[12], 0.1], [[13], 0.1]]), *WARPERS], 2),
    "bias of two tokens": ([SequenceBiasLogitsProcessor([[[12], 1.5], [[12, 13], 1.5]]), *WARPERS], 1),
    "bias without an end": ([SequenceBiasLogitsProcessor([[[12], math.inf]]), *WARPERS], 1),
    "bias that rounds to no number": ([SequenceBiasLogitsProcessor([[[12], 1e39]]), *WARPERS], 1),
    "bias that is no number": ([SequenceBiasLogitsProcessor([[[12], math.nan]]), *WARPERS], 1),
    "bias beyond the vocabulary": ([SequenceBiasLogitsProcessor([[[SIZE], 1.5]]), *WARPERS], 1),
    "bad words of two tokens": ([NoBadWordsLogitsProcessor([[3], [4, 5]]), *WARPERS], 1),
    "bad words beyond the vocabulary": ([NoBadWordsLogitsProcessor([[SIZE]]), *WARPERS], 1),
    "a ban after top_k": ([WARPERS[1], BAN], 2),
    "a ban after top_p": ([WARPERS[2], BAN, WARPERS[3]], 2),
    "a ban after min_p": ([WARPERS[3], BAN], 2),
    "several forced ends": ([ForcedEOSTokenLogitsProcessor(9, EOS), *WARPERS], 1),
    "several forced begins": ([ForcedBOSTokenLogitsProcessor([4, 5]), *WARPERS], 1),
    "a forced token counted from behind": ([ForcedBOSTokenLogitsProcessor(-1), *WARPERS], 1),
    "a forced token beyond the vocabulary": ([ForcedBOSTokenLogitsProcessor(SIZE), *WARPERS], 1),
    "a forced token that is banned then": (
        [ForcedEOSTokenLogitsProcessor(9, 2), SuppressTokensLogitsProcessor([2]), *WARPERS],
        2,
    ),
    "a forced token that a length bans then": (
        [ForcedEOSTokenLogitsProcessor(9, 2), MinLengthLogitsProcessor(9, EOS), *WARPERS],
        2,
    ),
    "a forced end without a length": ([ForcedEOSTokenLogitsProcessor(None, 2), *WARPERS], 1),
    "a begin without a length": ([SuppressTokensAtBeginLogitsProcessor([4], None), *WARPERS], 1),
    "tokens that are no integers": ([SuppressTokensLogitsProcessor([4.0]), *WARPERS], 1),
    "a penalty without padding": ([RepetitionPenaltyLogitsProcessor(1.3), BAN, *WARPERS], 2),
    "two penalties": ([penalty(), BAN, penalty(), *WARPERS], 2),
    "a penalty after the temperature": ([WARPERS[0], BAN, penalty(), *WARPERS[1:]], 2),
    "a filter that keeps two": ([BAN, TopPLogitsWarper(0.9, min_tokens_to_keep=2)], 2),
    "another filter value": ([BAN, TopKLogitsWarper(5, filter_value=-1000.0)], 2),
    "filters in another order": ([BAN, WARPERS[2], WARPERS[1]], 2),
}


@pytest.mark.parametrize("name", UNFUSED)
def test_what_stays_unfused(name: str):
    """Nothing is absorbed where one processor cannot be: all stay, but for the end that the sampler applies."""
    processors, count = UNFUSED[name]
    found = split(processors)
    assert not found.rules
    assert list(found.unfused) == processors[:count]


@pytest.mark.parametrize(
    ("processors", "count"),
    [
        ([TopKLogitsWarper(5, filter_value=-1000.0)], 1),
        ([TopPLogitsWarper(0.9), TemperatureLogitsWarper(0.7)], 1),
        ([MinPLogitsWarper(0.1), TopPLogitsWarper(0.9)], 1),
        ([TopKLogitsWarper(5), TopKLogitsWarper(7)], 1),
    ],
)
def test_filters_that_are_not_the_samplers(processors, count: int):
    found = split(processors)
    assert list(found.unfused) == processors[:count]


def test_tokens_beyond_an_unknown_vocabulary():
    found = split([SequenceBiasLogitsProcessor([[[SIZE], 1.5]])], vocab_size=None)
    assert found.rules == TokenRules(bias=((SIZE, 1.5),))
