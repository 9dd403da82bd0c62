"""Rules that depend on the length, against a list of the banned and forced tokens at every length."""

import dataclasses
import math
import pickle
import random

import pytest

from fastdecode.token_rules import Phase, TokenRules

LENGTHS = range(30)


def random_rules(rng: random.Random) -> TokenRules:
    def some() -> frozenset[int]:
        return frozenset(rng.sample(range(9), rng.randint(1, 3)))

    spans = []
    for _ in range(rng.randint(0, 3)):
        start = rng.randint(0, 15)
        spans.append((start, start + rng.randint(1, 8), some()))
    return TokenRules(
        banned=some() if rng.random() < 0.5 else frozenset(),
        banned_while=tuple(spans),
        forced_at=tuple((length, some()) for length in rng.sample(range(20), rng.randint(0, 2))),
        bias=tuple((token, rng.uniform(-2, 2)) for token in rng.sample(range(9), rng.randint(0, 2))),
    )


def plainly(rules: TokenRules, length: int) -> Phase:
    banned = set(rules.banned)
    for start, stop, tokens in rules.banned_while:
        if length in range(start, stop):
            banned |= tokens
    forced = [tokens for at, tokens in rules.forced_at if at == length]
    return Phase(frozenset(banned), forced[0] if forced else None)


@pytest.mark.parametrize("seed", range(50))
def test_phases_and_their_changes(seed: int):
    rules = random_rules(random.Random(seed))
    phases = [plainly(rules, length) for length in LENGTHS]
    assert [rules.phase(length) for length in LENGTHS] == phases
    for length in LENGTHS:
        later = [other for other in LENGTHS if other > length and phases[other] != phases[length]]
        assert rules.next_change(length) == (later[0] if later else None)


@pytest.mark.parametrize("seed", range(50))
def test_shifted_rules_hold_behind_padding(seed: int):
    rng = random.Random(seed)
    rules, padding = random_rules(rng), rng.randint(0, 25)
    shifted = rules.shifted(padding)
    assert [shifted.phase(length) for length in LENGTHS] == [plainly(rules, length + padding) for length in LENGTHS]
    assert shifted.bias == rules.bias
    assert all(start >= 0 for start, _, _ in shifted.banned_while)
    assert all(length >= 0 for length, _ in shifted.forced_at)


def test_rules_that_end_in_the_padding_are_dropped():
    rules = TokenRules(banned_while=((0, 4, frozenset({1})),), forced_at=((1, frozenset({2})),))
    assert rules.shifted(3) == TokenRules(banned_while=((0, 1, frozenset({1})),))
    assert not rules.shifted(4)


def test_a_change_to_the_same_phase_is_none():
    both = ((0, 5, frozenset({1})), (5, 9, frozenset({1})))
    rules = TokenRules(banned_while=both, forced_at=((20, frozenset({4})),))
    assert rules.next_change(0) == 9
    assert rules.next_change(9) == 20
    assert rules.next_change(20) == 21
    assert rules.next_change(21) is None
    assert TokenRules(banned=frozenset({1}), bias=((2, 1.0),)).next_change(0) is None


def test_equal_rules_are_one_key():
    one = TokenRules(
        banned_while=((3, 5, frozenset({1, 2})), (0, 4, frozenset({7}))),
        forced_at=((9, frozenset({1})), (2, frozenset({3}))),
        bias=((5, 1), (2, -0.5)),
    )
    other = TokenRules(
        banned_while=((0, 4, frozenset({7})), (3, 5, frozenset({2, 1})), (0, 4, frozenset({7}))),
        forced_at=((2, frozenset({3})), (9, frozenset({1}))),
        bias=((2, -0.5), (5, 1.0)),
    )
    assert one == other
    assert len({one, other, pickle.loads(pickle.dumps(one))}) == 1
    assert one.phase(3) == Phase(frozenset({1, 2, 7}))
    assert hash(one.phase(3)) == hash(Phase(frozenset({7, 2, 1})))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.banned = frozenset()


def test_empty_rules_are_falsy():
    assert not TokenRules()
    assert not Phase()
    assert not TokenRules().phase(3)
    assert TokenRules(banned=frozenset({0}))
    assert TokenRules(banned_while=((0, 1, frozenset({0})),))
    assert TokenRules(forced_at=((3, frozenset({0})),))
    assert TokenRules(bias=((0, 1.0),))
    assert Phase(banned=frozenset({0}))
    assert Phase(forced=frozenset({0}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"banned": frozenset({-1})}, "banned has token -1: a token is an integer of at least 0"),
        ({"banned": frozenset({1.0})}, r"banned has token 1\.0: a token is an integer"),
        ({"banned": frozenset({True})}, "banned has token True"),
        ({"banned_while": ((3, 3, frozenset({1})),)}, r"banned_while has \(3, 3, \{1\}\): .* start < stop"),
        ({"banned_while": ((0, 3, frozenset()),)}, "banned_while has .* at least one token"),
        ({"banned_while": ((0, 3, frozenset({-2})),)}, "banned_while has token -2"),
        ({"forced_at": ((3, frozenset()),)}, r"forced_at has \(3, no tokens\): give at least one token"),
        ({"forced_at": ((3, frozenset({1})), (3, frozenset({2})))}, "forced_at has two entries for 3: give one"),
        ({"forced_at": ((3, frozenset({-1})),)}, "forced_at has token -1"),
        ({"bias": ((3, 1.0), (3, 2.0))}, "bias has two entries for 3: give one"),
        ({"bias": ((-3, 1.0),)}, "bias has token -3"),
        ({"bias": ((3, -math.inf),)}, "bias of token 3 is -inf: it must be finite"),
        ({"bias": ((3, math.nan),)}, "bias of token 3 is nan"),
    ],
)
def test_bad_rules(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TokenRules(**fields)


def test_negative_padding():
    with pytest.raises(ValueError, match="padding=-1: a number of padding tokens is at least 0"):
        TokenRules().shifted(-1)
