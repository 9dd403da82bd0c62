"""The grammar against an independent parser: every sequence that its sets let out."""

import random
import re

import pytest

from fastdecode.grammar import BLOCK, DONE, EVERYTHING_SET, MODES, OPEN, TEXT, compile_grammar
from fastdecode.models.chameleon import Vocabulary

BOS, PAD, EOS, BEGIN, END, PLACEHOLDER, WORD = 0, 1, 2, 3, 4, 5, 6
IMAGE = (9, 7)  # neither monotone nor contiguous: 8 is a word


def tiny(length: int, **more) -> Vocabulary:
    ids = {"bos": BOS, "pad": PAD, "begin_image": BEGIN, "end_image": END, "placeholder": PLACEHOLDER}
    return Vocabulary(size=10, code_ids=IMAGE, image_length=length, context=100, **(ids | more))


def spelled(ids) -> str:
    """One letter per id: t text, b begin, i image id, e end, x end of sequence, ! what must never come."""
    letters = {
        BEGIN: "b",
        END: "e",
        EOS: "x",
        **dict.fromkeys(IMAGE, "i"),
        **dict.fromkeys((BOS, PAD, PLACEHOLDER), "!"),
    }
    return "".join(letters.get(i, "t") for i in ids)


def choices(grammar, state: int, length: int, limit: int) -> list[int]:
    """Ids that may come next."""
    if grammar.forced[state] >= 0:
        assert grammar.set_of[state] == -1
        return [grammar.forced[state]]
    ranges = grammar.sets[grammar.set_index(state, length, limit)]
    return [i for low, high in ranges for i in range(low, high)]


def walks(grammar, prompt, limit: int):
    """Every sequence of new ids that the grammar lets out up to ``limit``; one word and one image id stand for all."""
    stack = [((), grammar.start(prompt))]
    while stack:
        new, state = stack.pop()
        length = len(prompt) + len(new)
        if state == DONE or length == limit:
            yield new, state
            continue
        allowed = choices(grammar, state, length, limit)
        assert allowed
        for token in allowed:
            if token not in (8, IMAGE[1]):
                stack.append(((*new, token), grammar.advance(state, token)))


@pytest.mark.parametrize("length", [2, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_every_sequence_parses(mode: str, length: int):
    grammar = compile_grammar(mode, tiny(length), [EOS])
    limit = 1 + length + 2 + 1 if mode in ("image-only", "interleaved-text-image") else 5
    block = "b" + "i" * length + "e"
    language = {
        "text-only": r"[tbe!]*x?",
        "image-only": block,
        "interleaved-text-image": f"(t|{block})*x?",
        "unrestricted": r"[tbei!]*x?",
    }[mode]
    seen = set()
    for new, state in walks(grammar, [BOS], limit):
        word = spelled(new)
        seen.add(word)
        assert re.fullmatch(language, word), word
        assert (state == DONE) == (word.endswith("x") or mode == "image-only")
        inside = mode != "text-only" and re.search(f"bi{{0,{length}}}$", word) is not None
        assert grammar.in_picture(state) == inside, word
    if mode in ("image-only", "interleaved-text-image"):
        assert any(block in word for word in seen)


def test_interleaved_lets_out_the_whole_language():
    grammar = compile_grammar("interleaved-text-image", tiny(2), [EOS])
    got = {spelled(new) for new, _ in walks(grammar, [BOS], 7)}
    wanted = {""}
    for _ in range(6):
        wanted |= {
            w + part for w in wanted for part in ("t", "x", "biie") if not w.endswith("x") and len(w + part) <= 6
        }
    assert got == {w for w in wanted if w.endswith("x") or len(w) == 6}


@pytest.mark.parametrize("spare", [-1, 0, 1])
@pytest.mark.parametrize("written", [1, 5])
def test_a_picture_begins_only_where_it_fits(spare: int, written: int):
    length = 4
    grammar = compile_grammar("interleaved-text-image", tiny(length), [EOS])
    limit = written + length + 2 + spare  # begin and end included
    assert (BEGIN in choices(grammar, TEXT, written, limit)) == (spare >= 0)
    assert EOS in choices(grammar, TEXT, written, limit)


@pytest.mark.parametrize("mode", ["image-only", "interleaved-text-image", "unrestricted"])
@pytest.mark.parametrize("offset", range(6))
def test_a_prompt_that_ends_inside_a_block_goes_on_there(mode: str, offset: int):
    grammar = compile_grammar(mode, tiny(4), [EOS])
    prompt = [BOS, WORD, BEGIN, *[IMAGE[0]] * offset]
    state = grammar.start(prompt)
    outside = OPEN if mode == "image-only" else TEXT
    if offset == 5:  # more image ids than a block has
        assert state == outside
        return
    assert state == BLOCK + offset
    assert grammar.remaining(state) == 4 - offset + 1
    assert grammar.tail(len(prompt), state) == 2
    assert grammar.start([*prompt, WORD]) == outside
    if mode != "unrestricted":
        for new, _ in walks(grammar, prompt, len(prompt) + 4 - offset + 1):
            assert spelled(new) == "i" * (4 - offset) + "e"


def test_pictures_of_the_prompt_are_no_state():
    grammar = compile_grammar("interleaved-text-image", tiny(2), [EOS])
    whole = [BEGIN, *IMAGE, END]
    assert grammar.start([BOS, *whole]) == grammar.start([BOS, *whole, WORD]) == TEXT
    assert grammar.start([BOS, *whole, BEGIN]) == BLOCK
    assert grammar.start([IMAGE[0], IMAGE[1]]) == TEXT  # image ids that no begin opened
    assert compile_grammar("text-only", tiny(2), [EOS]).start([BOS, BEGIN]) == TEXT
    assert grammar.tail(7, TEXT) == -1


def test_a_grammar_can_be_used_again():
    grammar = compile_grammar("interleaved-text-image", tiny(3), [EOS])
    rng = random.Random(0)

    def walk(seed: int) -> list[int]:
        rng.seed(seed)
        state, new = grammar.start([BOS]), []
        while state != DONE and len(new) < 30:
            new.append(rng.choice(choices(grammar, state, 1 + len(new), 31)))
            state = grammar.advance(state, new[-1])
        return new

    first = [walk(seed) for seed in range(50)]
    assert first == [walk(seed) for seed in range(50)]


@pytest.mark.parametrize("mode", MODES)
def test_done_stays_done(mode: str):
    grammar = compile_grammar(mode, tiny(2), [EOS])
    assert {grammar.advance(DONE, token) for token in range(10)} == {DONE}


@pytest.mark.parametrize(("token", "state"), [(END, DONE), (EOS, TEXT)])
def test_end_of_image_may_end_the_sequence(token: int, state: int):
    grammar = compile_grammar("interleaved-text-image", tiny(2), [token])
    assert grammar.advance(grammar.close, END) == state


def test_ends_come_in_text_only_and_may_be_special():
    grammar = compile_grammar("interleaved-text-image", tiny(2), [EOS, PAD, IMAGE[0]])
    text = choices(grammar, TEXT, 1, 99)
    assert EOS in text
    assert PAD in text  # banned, were it no end
    assert BOS not in text
    assert choices(grammar, BLOCK, 2, 99) == sorted(IMAGE)
    assert grammar.advance(BLOCK, IMAGE[0]) == BLOCK + 1  # an image id is no end inside a block
    assert grammar.advance(TEXT, PAD) == DONE


def test_text_only_bans_image_ids_and_nothing_else():
    grammar = compile_grammar("text-only", tiny(2), [EOS])
    for length in (1, 99):
        assert choices(grammar, TEXT, length, 100) == [i for i in range(10) if i not in IMAGE]
    assert grammar.advance(TEXT, BEGIN) == TEXT


def test_unrestricted_bans_nothing_and_keeps_track():
    grammar = compile_grammar("unrestricted", tiny(2), [EOS])
    assert {grammar.set_of[s] for s in (TEXT, BLOCK, BLOCK + 1, grammar.close)} == {EVERYTHING_SET}
    assert grammar.advance(TEXT, BEGIN) == BLOCK
    assert grammar.advance(BLOCK, IMAGE[0]) == BLOCK + 1
    assert grammar.advance(BLOCK + 1, BEGIN) == BLOCK  # begun again
    assert grammar.advance(BLOCK + 1, WORD) == TEXT
    assert grammar.advance(BLOCK + 1, EOS) == DONE
    assert grammar.advance(grammar.close, END) == TEXT


def test_unknown_mode_names_the_modes():
    with pytest.raises(ValueError, match=r"multimodal_generation_mode='pictures' is unknown; choose one of text-only"):
        compile_grammar("pictures", tiny(2), [EOS])


def test_without_bos_and_pad():
    grammar = compile_grammar("interleaved-text-image", tiny(2, bos=None, pad=None), [])
    assert choices(grammar, TEXT, 1, 99) == [BOS, PAD, EOS, BEGIN, WORD, 8]
