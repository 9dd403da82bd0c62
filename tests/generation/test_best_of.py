"""Best of n: the sequences of `generate`, scored by the caller."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from models_for_tests import BOS, drawing_model, padded, text_ids, tiny_processor
from PIL import Image
from transformers import GenerationConfig, TextStreamer

import fastdecode
from fastdecode import Best, Guidance, best_of
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of

MODEL = drawing_model(5, resolution=16)
V = vocabulary_of(MODEL)
PROCESSOR = tiny_processor(16)
PROMPTS = [[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((9, 30, 3))]
DRAW = {"multimodal_generation_mode": "image-only", "guidance": 2.0}


def brightness(document: list) -> float:
    """Of the first picture."""
    [picture] = [part for part in document if isinstance(part, Image.Image)]
    return float(np.asarray(picture, np.float64).mean())


def brightest(documents: list) -> list[float]:
    return [brightness(document) for document in documents]


def test_the_best_of_each_prompt():
    seen = []

    def rerank(documents):
        seen.append(documents)
        return brightest(documents)

    options = {**padded(PROMPTS), **DRAW, "seed": [1, 2, 3], "deterministic": True}
    found = best_of(MODEL, PROCESSOR, 4, rerank, **options)
    plain = fastdecode.generate(MODEL, **options, do_sample=True, num_return_sequences=4)
    documents = fastdecode.to_documents(MODEL, PROCESSOR, plain, start=31)
    assert len(found) == 3
    for i, best in enumerate(found):
        assert isinstance(best, Best)
        assert torch.equal(best.sequences, plain[4 * i : 4 * i + 4])
        expected = [brightness(document) for document in documents[4 * i : 4 * i + 4]]
        assert len(set(expected)) > 1
        assert list(best.scores) == expected == brightest(seen[i])
        place = max(range(4), key=expected.__getitem__)
        assert best.score == expected[place] == brightness(best.document)
        assert torch.equal(best.tokens, plain[4 * i + place])
        assert best.document is best.documents[place]
    again = best_of(MODEL, PROCESSOR, 4, brightest, **options)
    assert [b.scores for b in again] == [b.scores for b in found]
    alone = best_of(MODEL, PROCESSOR, 4, brightest, **{**options, **padded(PROMPTS[1:2]), "seed": 2})
    assert alone[0].scores == found[1].scores
    other = best_of(MODEL, PROCESSOR, 4, brightest, **{**options, "seed": [4, 5, 6]})
    assert [b.scores for b in other] != [b.scores for b in found]


def test_a_function_for_each_prompt():
    options = {**padded(PROMPTS), **DRAW, "seed": 1}
    functions = [lambda documents, k=k: [float(i == k) for i in range(3)] for k in range(3)]
    found = best_of(MODEL, PROCESSOR, 3, functions, **options)
    for place, best in enumerate(found):
        assert best.document is best.documents[place]
        assert torch.equal(best.tokens, best.sequences[place])


@pytest.mark.parametrize(
    "scores",
    [
        [1, 3, 3, 2],
        (1.0, 3.0, 3.0, 2.0),
        np.array([1, 3, 3, 2]),
        torch.tensor([1.0, 3, 3, 2]),
        [False, True, True, False],
    ],
    ids=lambda scores: type(scores).__name__,
)
def test_scores_of_any_kind_and_ties(scores):
    """Of equal ones the first is taken."""
    [best] = best_of(MODEL, PROCESSOR, 4, lambda documents: scores, **padded(PROMPTS[:1]), **DRAW)
    assert best.document is best.documents[1]
    assert best.scores == tuple(float(score) for score in scores)
    assert all(type(score) is float for score in best.scores)


def test_a_caller_who_changes_the_list_changes_no_document():
    def rerank(documents):
        scores = [float(len(documents)) for _ in documents]
        for document in documents:
            document.clear()
        return scores

    [best] = best_of(MODEL, PROCESSOR, 2, rerank, **padded(PROMPTS[:1]), **DRAW)
    assert [len(document) for document in best.documents] == [1, 1]


@pytest.mark.parametrize("config", [False, True])
def test_text_is_sampled_without_being_asked(config: bool):
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    own = {"generation_config": GenerationConfig(**options)} if config else options
    [best] = best_of(MODEL, PROCESSOR, 5, lambda d: [float(len(words)) for words in d], **padded(PROMPTS[:1]), **own)
    assert len({tuple(row) for row in best.sequences.tolist()}) > 1
    assert all(isinstance(part, str) for document in best.documents for part in document)


def test_one_modality_may_be_greedy():
    options = {"multimodal_generation_mode": "interleaved-text-image", "max_new_tokens": 40}
    found = best_of(MODEL, PROCESSOR, 2, lambda d: [0, 1], **padded(PROMPTS[:1]), **options, text={"do_sample": False})
    assert found[0].score == 1


def test_the_best_of_one_may_be_greedy():
    [best] = best_of(MODEL, PROCESSOR, 1, lambda d: [2], **padded(PROMPTS[:1]), **DRAW, do_sample=False)
    plain = fastdecode.generate(MODEL, **padded(PROMPTS[:1]), **DRAW)
    assert torch.equal(best.tokens, plain[0])


@pytest.mark.parametrize("n", [2, 6])
def test_the_pages_of_a_prompt_are_shared(n: int):
    """Whole pages of the prompt are in the pool once, whatever ``n``; each sequence has its own pages behind them."""
    prompt = [BOS, *text_ids(MODEL, 5, 63)]
    pool = fastdecode.new_pool(MODEL, page_slots=8)
    options = {"multimodal_generation_mode": "image-only", "kv_pool": pool}
    best_of(MODEL, PROCESSOR, n, lambda d: [0.0] * n, **padded([prompt]), **options)
    stored = len(prompt) + V.image_length  # the last image token and the end need no slot, the begin does
    shared = len(prompt) // 8  # read once; the begin of the picture is read in the first step of each
    own = -(-stored // 8) - shared
    assert pool.statistics().peak == shared + n * own
    assert pool.statistics().used == 0


GREEDY = (
    "n=3 documents of a prompt would all be equal, since the likeliest token is always taken: leave do_sample=False"
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": False}, GREEDY),
        ({"generation_config": GenerationConfig(do_sample=False, max_new_tokens=18)}, GREEDY),
        ({"image": {"temperature": 0.0}}, GREEDY),
        ({"n": 0}, "n=0: give a whole number of at least 1"),
        ({"n": None}, "n=None: give a whole number of at least 1"),
        ({"n": 2.5}, "n=2.5: give a whole number of at least 1"),
        ({"n": True}, "n=True: give a whole number of at least 1"),
        ({"rerank": 3}, "rerank is 3: give a function of a list of documents that returns scores"),
        ({"rerank": [len, "x"]}, "rerank[1] is 'x': give a function of a list of documents that returns scores"),
        ({"rerank": [len, len]}, "rerank has 2 functions for 1 prompts: give one function for all, or one for each"),
        ({"num_return_sequences": 2}, "num_return_sequences is not an option of best_of: n is their number"),
        (
            {"streamer": TextStreamer(PROCESSOR.tokenizer)},
            "streamer is not an option of best_of: best_of returns whole",
        ),
        ({"num_beams": 3}, "num_beams=3 asks for beam search, which fastdecode does not support"),
        ({"seed": "x"}, "seed="),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "-".join(value),
)
def test_what_is_refused_before_anything_is_decoded(given: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    def never(*args):
        raise AssertionError("a step was run")

    monkeypatch.setattr(Decoder, "step", never)
    call = {"n": 3, "rerank": brightest, **padded(PROMPTS[:1]), **DRAW, **given}
    with pytest.raises(ValueError, match=re.escape(message)):
        best_of(MODEL, PROCESSOR, call.pop("n"), call.pop("rerank"), **call)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 documents: it must return 3 finite numbers, one for each document"),
        (1.0, "returned 1.0, a float: it must return 3 finite numbers"),
        (None, "returned None, a NoneType: it must return 3 finite numbers"),
        ("123", "returned '123', a str: it must return 3 finite numbers"),
        ([1.0, float("nan"), 2.0], "returned nan as score 1: it must return 3 finite numbers"),
        ([1.0, 2.0, float("inf")], "returned inf as score 2: it must return 3 finite numbers"),
        ([1.0, "2", 3.0], "returned '2' as score 1: it must return 3 finite numbers"),
        (np.ones((3, 1)), "returned [1.0] as score 0: it must return 3 finite numbers"),
    ],
)
def test_wrong_scores(returned, message: str):
    def judge(documents):
        return returned

    with pytest.raises(ValueError, match=re.escape(f"the rerank function judge {message}")):
        best_of(MODEL, PROCESSOR, 3, judge, **padded(PROMPTS[:1]), **DRAW)


def test_what_the_function_raises_is_raised_and_no_page_is_left():
    def failing(documents):
        raise KeyError("my own")

    pool = fastdecode.new_pool(MODEL)
    with pytest.raises(KeyError, match="my own"):
        best_of(MODEL, PROCESSOR, 2, failing, **padded(PROMPTS[:1]), **DRAW, kv_pool=pool)
    assert pool.used == 0


# --- documents of several kinds ---------------------------------------------------------------------------------

KINDS = [
    {"guidance": 2.5, "image": {"top_p": 0.9}},
    {"guidance": Guidance.contrastive(0.05, 4)},
    {"guidance": Guidance.instruct(), "image": {"temperature": 0.7, "top_k": 9}},
]


@pytest.mark.parametrize("n", [3, 5, 8])
def test_each_document_is_what_generate_makes_of_its_kind(n: int):
    options = {**padded(PROMPTS), "multimodal_generation_mode": "image-only", "seed": [1, 2, 3], "deterministic": True}
    more = {"do_sample": True, "num_return_sequences": n}
    plain = [fastdecode.generate(MODEL, **options, **kind, **more) for kind in KINDS]
    found = best_of(MODEL, PROCESSOR, n, brightest, kinds=KINDS, **options)
    for i, best in enumerate(found):
        assert best.kinds == tuple(j % 3 for j in range(n))
        assert torch.equal(best.sequences, torch.stack([plain[j % 3][n * i + j] for j in range(n)]))
        place = best.scores.index(best.score)
        assert best.kind == best.kinds[place]
        assert torch.equal(best.tokens, best.sequences[place])


def test_kinds_go_before_the_options_of_the_call_and_run_in_one_batch(monkeypatch: pytest.MonkeyPatch):
    rows, right = [], Decoder.step

    def step(self, cache, *args):
        rows.append(cache.rows)
        return right(self, cache, *args)

    monkeypatch.setattr(Decoder, "step", step)
    options = {**padded(PROMPTS[:1]), **DRAW, "seed": 4, "deterministic": True}
    [best] = best_of(MODEL, PROCESSOR, 4, lambda d: [0, 1, 2, 3], kinds=[{}, {"guidance": None}], **options)
    assert best.kind == 1
    assert max(rows) == 2 + 2 + 1 + 1  # two documents with guidance of two streams, two without
    plain = fastdecode.generate(MODEL, **options, do_sample=True, num_return_sequences=4)
    assert torch.equal(best.sequences[[0, 2]], plain[[0, 2]])
    assert not torch.equal(best.sequences[[1, 3]], plain[[1, 3]])
    [alike] = best_of(MODEL, PROCESSOR, 4, lambda d: [0, 1, 2, 3], **options)
    assert (alike.kind, alike.kinds) == (0, (0,) * 4)
    assert torch.equal(alike.sequences, plain)


def test_one_document_of_a_kind_may_be_greedy_and_penalised(caplog):
    kinds = [{"image": {"do_sample": False, "repetition_penalty": 1.3}}, {}, {}]
    [best] = best_of(MODEL, PROCESSOR, 3, lambda d: [0, 1, 2], kinds=kinds, **padded(PROMPTS[:1]), **DRAW, seed=91)
    plain = fastdecode.generate(MODEL, **padded(PROMPTS[:1]), **DRAW, **kinds[0])
    assert torch.equal(best.sequences[0], plain[0])
    assert "seed has no effect" not in caplog.text


@pytest.mark.parametrize(
    ("n", "kinds", "error", "message"),
    [
        (2, 3, ValueError, "kinds=3: give a list of dicts, such as [dict(guidance=3.0)"),
        (2, [2.0, 3.0], ValueError, "kinds=[2.0, 3.0]: give a list of dicts"),
        (2, [], ValueError, "kinds has 0 kinds for n=2 documents: give at least one, and at most n"),
        (2, KINDS, ValueError, "kinds has 3 kinds for n=2 documents"),
        (
            2,
            [{}, {"seed": 3}],
            ValueError,
            "kinds[1] has 'seed': documents of one prompt can differ in guidance, image,",
        ),
        (2, [{}, {"guidance": "x"}], TypeError, "with kinds[1]: guidance='x': give a number for two-way guidance"),
        (2, [{"image": {"top_p": 2}}], ValueError, "with kinds[0]: image.top_p=2 is out of range"),
        (3, [{}, {"image": {"temperature": 0}}], None, ""),
        (
            4,
            [{}, {"image": {"temperature": 0}}],
            ValueError,
            "the documents of kinds[1] would all be equal, since the likeliest token is always taken: leave its",
        ),
    ],
    ids=str,
)
def test_wrong_kinds_are_refused(n: int, kinds, error, message: str):
    def call():
        return best_of(MODEL, PROCESSOR, n, lambda d: [0.0] * n, kinds=kinds, **padded(PROMPTS[:1]), **DRAW)

    if error is None:
        assert call()[0].kind == 0
        return
    with pytest.raises(error, match=re.escape(message)):
        call()
