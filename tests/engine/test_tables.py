"""Grammars of several sequences in one set of tables: each advances as in its own tables."""

import random

import pytest
import torch
from models_for_tests import drawing_model

from fastdecode.engine import tables as module
from fastdecode.engine.tables import SharedTables, joined
from fastdecode.grammar import MODES, Grammar, compile_grammar
from fastdecode.models.families import vocabulary_of
from fastdecode.token_rules import Phase

V = vocabulary_of(drawing_model(1))
GRAMMARS = [
    compile_grammar("text-only", V, [2]),
    compile_grammar("interleaved-text-image", V, [2, 40]),
    compile_grammar("unrestricted", V, []),
    compile_grammar("image-only", V, [2], Phase(frozenset({V.code_ids[0]}))),
    compile_grammar("interleaved-text-image", V, [41], Phase(frozenset({41, 50}))),
]


def test_every_part_goes_on_as_by_itself():
    tables = joined(tuple(g.tables for g in GRAMMARS))
    assert tables.modes == sum(g.tables.modes for g in GRAMMARS)
    first_mode = first_set = 0
    tokens = {0, 2, 39, 40, 41, 42, V.begin_image, V.end_image, V.code_ids[0], V.code_ids[-1], V.size - 1}
    for grammar in GRAMMARS:
        own = grammar.tables
        for state in range(own.modes):
            for token in tokens:
                assert tables.follow(first_mode + state, token) == first_mode + own.follow(state, token)
            for room in (0, 1, V.image_length + 1, V.image_length + 2, 99):
                number = own.set_index(state, room)
                assert tables.set_index(first_mode + state, room) == (-1 if number < 0 else first_set + number)
            assert tables.host.forced[first_mode + state] == own.host.forced[state]
        for number, ranges in enumerate(own.sets):
            assert tables.sets[first_set + number] == ranges
        first_mode += own.modes
        first_set += len(own.sets)


def test_random_walks_are_those_of_each_grammar():
    shared, generator = SharedTables(torch.device("cpu")), random.Random(3)
    shared.include(GRAMMARS)
    for grammar in GRAMMARS:
        first, state = shared.first_mode[id(grammar)], 0
        for _ in range(200):
            token = generator.randrange(V.size)
            state = grammar.advance(state, token)
            assert shared.tables.follow(first, token) >= first
            assert shared.tables.host.following[first + state] is not None


def test_places_stay_until_too_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_GRAMMARS", 3)
    shared = SharedTables(torch.device("cpu"))
    one = shared.include(GRAMMARS[:1])
    assert one is GRAMMARS[0].tables  # a single grammar needs nothing new
    two = shared.include(GRAMMARS[:2])
    assert shared.include(GRAMMARS[1:2]) is two
    assert shared.include(GRAMMARS[:1]) is two
    three = shared.include(GRAMMARS[1:3])
    assert shared.grammars == [GRAMMARS[0], *GRAMMARS[1:3]]
    assert three.modes == sum(g.tables.modes for g in GRAMMARS[:3])
    shared.include(GRAMMARS[2:4])
    assert shared.grammars == GRAMMARS[2:4]
    assert shared.include(GRAMMARS[4:]) is GRAMMARS[4].tables  # one alone needs nothing joined
    assert shared.grammars == GRAMMARS[4:]


@pytest.mark.parametrize("mode", MODES)
def test_the_same_grammar_twice_is_one(mode: str):
    grammar: Grammar = compile_grammar(mode, V, [2])
    shared = SharedTables(torch.device("cpu"))
    assert shared.include([grammar, compile_grammar(mode, V, [2])]) is grammar.tables
