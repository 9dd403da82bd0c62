"""The grammar against an independent parser, for every sequence that its sets allow."""

import random
import re

import pytest

from fastdecode.grammar import BLOCK, DONE, EVERYTHING_SET, MODES, OPEN, TEXT, compile_grammar
from fastdecode.layout import Layout, SizeTokens
from fastdecode.ops import TokenSets
from fastdecode.token_rules import Phase
from fastdecode.vocabulary import Vocabulary

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
    if offset == 5:  # more image tokens than a block has
        assert state == outside
        return
    assert state == BLOCK + offset
    assert grammar.remaining(state) == 4 - offset + 1
    assert grammar.image_start(len(prompt), state) == 2
    assert grammar.start([*prompt, WORD]) == outside
    if mode != "unrestricted":
        for new, _ in walks(grammar, prompt, len(prompt) + 4 - offset + 1):
            assert spelled(new) == "i" * (4 - offset) + "e"


def test_pictures_of_the_prompt_are_no_state():
    grammar = compile_grammar("interleaved-text-image", tiny(2), [EOS])
    whole = [BEGIN, *IMAGE, END]
    assert grammar.start([BOS, *whole]) == grammar.start([BOS, *whole, WORD]) == TEXT
    assert grammar.start([BOS, *whole, BEGIN]) == BLOCK
    assert grammar.start([IMAGE[0], IMAGE[1]]) == TEXT  # image tokens that no begin opened
    assert compile_grammar("text-only", tiny(2), [EOS]).start([BOS, BEGIN]) == TEXT
    assert grammar.image_start(7, TEXT) == -1


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
    assert {grammar.set_of[s] for s in (BLOCK, BLOCK + 1, grammar.close)} == {EVERYTHING_SET}
    assert choices(grammar, TEXT, 1, 99) == choices(grammar, TEXT, 1, 2) == list(range(10))
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


# --- phases -------------------------------------------------------------------------------------------------------


def phased(mode: str, banned=(), forced=None, length: int = 2, eos=(EOS,)):
    phase = Phase(frozenset(banned), None if forced is None else frozenset(forced))
    return compile_grammar(mode, tiny(length), eos, phase)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", MODES)
def test_banned_tokens_leave_every_set_and_nothing_else_changes(mode: str, seed: int):
    plain = compile_grammar(mode, tiny(2), [EOS])
    banned = set(random.Random(seed).sample([BOS, PAD, EOS, PLACEHOLDER, WORD, IMAGE[0]], 3))
    found = phased(mode, banned)
    assert found.set_of == plain.set_of
    for state, forced in enumerate(plain.forced):
        assert found.forced[state] == forced
        for token in range(10):
            assert found.advance(state, token) == plain.advance(state, token)
        if state == DONE:
            continue
        for limit in (2, 99):
            expected = choices(plain, state, 1, limit)
            if forced < 0:
                expected = [i for i in expected if i not in banned]
            assert choices(found, state, 1, limit) == expected


@pytest.mark.parametrize("mode", ["text-only", "interleaved-text-image", "unrestricted"])
def test_forced_tokens_take_the_place_of_text_and_disturb_no_picture(mode: str):
    plain = compile_grammar(mode, tiny(2), [EOS])
    found = phased(mode, banned=[EOS, IMAGE[0]], forced=[EOS, WORD])
    for limit in (2, 99):
        assert choices(found, TEXT, 1, limit) == [EOS, WORD]  # banned or not
    for state in (BLOCK, BLOCK + 1):
        assert choices(found, state, 1, 99) == [i for i in choices(plain, state, 1, 99) if i not in (EOS, IMAGE[0])]
    assert found.forced == plain.forced
    assert found.set_of == plain.set_of


def test_forced_tokens_do_not_reach_what_the_mode_writes_by_itself():
    found = phased("image-only", forced=[WORD])
    state, new = found.start([BOS]), []
    while state != DONE:
        token = choices(found, state, 1 + len(new), 99)[0]
        new.append(token)
        state = found.advance(state, token)
    assert spelled(new) == "biie"


def test_a_forced_picture():
    found = phased("interleaved-text-image", forced=[BEGIN])
    assert choices(found, TEXT, 1, 99) == [BEGIN]
    assert found.set_index(TEXT, 1, 2) >= 0
    assert found.sets[found.set_index(TEXT, 1, 2)] == ()  # it does not fit, and nothing else may come


def test_end_of_image_closes_a_picture_though_it_may_not_end_the_sequence_yet():
    found = phased("interleaved-text-image", banned=[END], eos=(EOS, END))
    assert choices(found, found.close, 4, 99) == [END]


def test_begin_of_image_opens_a_picture_though_it_may_not_end_the_sequence_yet():
    found = phased("image-only", banned=[BEGIN], eos=(EOS, BEGIN))
    assert choices(found, found.start([BOS]), 1, 99) == [BEGIN]


def test_tokens_beyond_the_vocabulary_change_nothing():
    found = phased("interleaved-text-image", banned=[10, 70000, WORD])
    assert choices(found, TEXT, 1, 99) == [EOS, BEGIN, 8]


@pytest.mark.parametrize(
    ("mode", "fields", "message"),
    [
        ("text-only", {"banned": set(range(10)) - set(IMAGE)}, "suppress_tokens, .* nothing to sample in text"),
        ("unrestricted", {"banned": range(10)}, "suppress_tokens, .*bad_words_ids.* nothing to sample in text"),
        (
            "interleaved-text-image",
            {"banned": [EOS, BEGIN, WORD, 8]},
            "a minimum length leave nothing to sample in text",
        ),
        (
            "interleaved-text-image",
            {"banned": [EOS, WORD, 8]},
            "leave only token 3, begin of image, .* no picture fits",
        ),
        ("interleaved-text-image", {"banned": IMAGE}, "leave nothing to sample in a picture"),
        ("image-only", {"banned": IMAGE}, "leave nothing to sample in a picture"),
        ("image-only", {"banned": [BEGIN]}, "ban token 3, begin of image, which .*'image-only' must write"),
        ("image-only", {"banned": [END]}, "ban token 4, end of image, which .*'image-only' must write"),
        ("interleaved-text-image", {"banned": [END]}, "ban token 4, end of image, .* after every picture"),
        ("text-only", {"forced": IMAGE}, r"forced_bos_token_id or forced_eos_token_id forces \[7, 9\], which"),
        ("interleaved-text-image", {"forced": [END]}, r"forces \[4\], which .* does not allow in text"),
        ("text-only", {"forced": [99]}, r"forces \[99\], which"),
    ],
)
def test_phases_that_leave_nothing(mode: str, fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        phased(mode, **fields)


@pytest.mark.parametrize(
    ("mode", "banned"),
    [
        ("text-only", [*IMAGE, BEGIN, END]),
        ("image-only", [EOS, WORD, 8, BOS]),  # no text comes
        ("interleaved-text-image", [BEGIN]),
        ("interleaved-text-image", [BEGIN, END]),
        ("interleaved-text-image", [EOS, WORD]),
        ("unrestricted", [BEGIN, END, *IMAGE]),
    ],
)
def test_phases_that_leave_enough(mode: str, banned):
    assert phased(mode, banned).mode == mode


def test_models_of_text_have_phases_too():
    text = Vocabulary(
        size=10, code_ids=(), begin_image=-1, end_image=-1, placeholder=-1, image_length=0, context=9, bos=0
    )
    found = compile_grammar("text-only", text, [EOS], Phase(frozenset({EOS, 5})))
    assert choices(found, TEXT, 1, 99) == [0, 1, 3, 4, 6, 7, 8, 9]


def test_grammars_are_compiled_once():
    vocabulary = tiny(2)
    plain = compile_grammar("interleaved-text-image", vocabulary, [EOS])
    assert compile_grammar("interleaved-text-image", tiny(2), (EOS, EOS), Phase()) is plain
    one = phased("interleaved-text-image", [WORD, EOS])
    assert phased("interleaved-text-image", [EOS, WORD]) is one
    assert one is not plain
    assert phased("interleaved-text-image", [EOS]) is not one
    assert one.tables.following is plain.tables.following  # large, and the same
    assert choices(plain, TEXT, 1, 99) == [EOS, BEGIN, WORD, 8]  # as before


def test_other_sets_for_the_same_modes():
    tables = compile_grammar("interleaved-text-image", tiny(2), [EOS]).tables
    with pytest.raises(ValueError, match=r"len\(sets\) = 1: must be 4, as many as there are"):
        tables.with_sets(TokenSets([[(0, 1)]]))
    with pytest.raises(ValueError, match=r"allowed\[3\]\[0\] = \(0, 11\): leaves the vocabulary of 10 tokens"):
        tables.with_sets(TokenSets([[], [], [], [(0, 11)]]))
    with pytest.raises(ValueError, match="sets: must be on cpu, got meta"):
        tables.with_sets(TokenSets([[], [], [], []], device="meta"))


# --- pictures with rows, sizes and ends -------------------------------------------------------------------------

ROW_END, SIZE, FRAME_END = 8, 20, 30


def laid_out(rows: int, columns: int, **more) -> Vocabulary:
    """Words, and pictures of two image tokens: two size tokens, rows with their ends, the end of the frame."""
    sizes = SizeTokens(SIZE, 1, 8)
    layout = Layout(rows, columns, ROW_END, sizes.of(rows, columns), (FRAME_END,))
    ids = {"bos": BOS, "pad": PAD, "begin_image": BEGIN, "end_image": END, "placeholder": PLACEHOLDER}
    every = frozenset((r, c) for r in range(1, 8) for c in range(1, 8))
    return Vocabulary(
        size=32,
        code_ids=IMAGE,
        image_length=len(layout),
        context=200,
        layout=layout,
        size_tokens=sizes,
        sizes=every,
        **(ids | more),
    )


def described(rows: int, columns: int) -> str:
    """A picture as a regular expression over tokens, each followed by a comma; written from the description."""
    image = f"({'|'.join(map(str, IMAGE))}),"
    row = f"({image}){{{columns}}}{ROW_END},"
    return f"{BEGIN},{SIZE + rows},{SIZE + columns},({row}){{{rows}}}{FRAME_END},{END},"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["image-only", "interleaved-text-image"])
def test_random_walks_through_pictures_of_random_sizes(mode: str, seed: int):
    rng = random.Random(seed)
    rows, columns = rng.randint(1, 6), rng.randint(1, 6)
    vocabulary = laid_out(rows, columns)
    grammar = compile_grammar(mode, vocabulary, [EOS])
    picture = described(rows, columns)
    never = {*IMAGE, BEGIN, END, PLACEHOLDER, BOS, PAD, EOS, ROW_END, FRAME_END, *range(SIZE, SIZE + 8)}
    word = f"({'|'.join(str(i) for i in range(32) if i not in never)}),"
    whole = f"{picture}" if mode == "image-only" else f"({word}|{picture})*({EOS},)?"
    prompt = [BOS, 6]
    limit = len(prompt) + rng.randint(grammar.block_length, 3 * grammar.block_length)
    state, new = grammar.start(prompt), []
    while state != DONE and len(prompt) + len(new) < limit:
        choice = choices(grammar, state, len(prompt) + len(new), limit)
        token = BEGIN if BEGIN in choice and rng.random() < 0.3 else rng.choice(choice)
        new.append(token)
        state = grammar.advance(state, token)
    spelt = "".join(f"{token}," for token in new)
    assert re.fullmatch(whole, spelt), (rows, columns, spelt)
    for found in re.finditer(picture, spelt):
        block = [int(i) for i in found[0].split(",")[1:-2]]
        grid = vocabulary.grid(block)
        assert grid is not None
        assert (grid.rows, grid.columns) == (rows, columns)
        assert [IMAGE[code] for code in grid.codes] == [i for i in block if i in IMAGE]


@pytest.mark.parametrize("seed", range(20))
def test_grids_of_broken_pictures(seed: int):
    """A token more, less or other anywhere makes no whole picture, unless it is another image token."""
    rng = random.Random(seed)
    rows, columns = rng.randint(1, 5), rng.randint(1, 5)
    vocabulary = laid_out(rows, columns)
    block = [rng.choice(IMAGE) if token < 0 else token for token in vocabulary.picture.forced]
    assert vocabulary.grid(block) is not None
    other = laid_out(6, 6).grid(block)  # the tokens tell the size
    assert other is not None
    assert (other.rows, other.columns) == (rows, columns)
    for place in range(len(block)):
        assert vocabulary.grid(block[:place] + block[place + 1 :]) is None
        assert vocabulary.grid([*block[:place], 6, *block[place + 1 :]]) is None
        assert vocabulary.grid([*block[:place], 6, *block[place:]]) is None
    assert vocabulary.grid([]) is None


def test_prompts_that_end_inside_pictures():
    vocabulary = laid_out(2, 3)
    grammar = compile_grammar("interleaved-text-image", vocabulary, [EOS])
    block = [IMAGE[0] if token < 0 else token for token in vocabulary.picture.forced]
    for kept in range(len(block) + 1):
        assert grammar.start([BOS, 6, BEGIN, *block[:kept]]) == BLOCK + kept
    assert grammar.start([BOS, 6, BEGIN, *block, END]) == TEXT
    assert grammar.start([BOS, 6, BEGIN, SIZE + 3]) == TEXT  # a picture of another size
    for state in range(BLOCK, grammar.close):
        assert (grammar.forced[state] >= 0) == (vocabulary.picture.forced[state - BLOCK] >= 0)
        assert grammar.in_block(state)
    assert not grammar.in_block(grammar.close)
    assert grammar.first_sampled == BLOCK + 2


def test_sizes_that_there_are_not():
    vocabulary = laid_out(2, 3)
    with pytest.raises(ValueError, match=r"no pictures of 144x16 pixels .*near to it are 112x16"):
        vocabulary.resized(1, 9)
    assert vocabulary.resized(2, 3) is vocabulary
    assert vocabulary.resized(4, 5).picture.before == (SIZE + 4, SIZE + 5)
    with pytest.raises(ValueError, match="9 rows: give a multiple of 1 from 1 to 7"):
        SizeTokens(SIZE, 1, 8).of(9, 1)
    with pytest.raises(ValueError, match="image_length=7, but the layout has 11 tokens"):
        Vocabulary(10, IMAGE, BEGIN, END, PLACEHOLDER, 7, 100, layout=Layout(2, 3, ROW_END, (SIZE, SIZE), (FRAME_END,)))
