"""Streams and weights against the published recipes of guidance."""

import math

import pytest
import torch
from models_for_tests import BOS, padded, text_ids, tiny_model, whole_logits

from fastdecode.guidance import FULL, IMAGES, UNCONDITIONAL, Guidance, Stream, guidance_from
from fastdecode.models.families import vocabulary_of
from fastdecode.vocabulary import Vocabulary

BEGIN, END, WORD, OTHER = 3, 4, 6, 5
VOCABULARY = Vocabulary(
    size=12, code_ids=(9, 7, 10), begin_image=BEGIN, end_image=END, placeholder=11, image_length=2, context=99, bos=BOS
)
WITHOUT_BOS = Vocabulary(
    size=12, code_ids=(9, 7, 10), begin_image=BEGIN, end_image=END, placeholder=11, image_length=2, context=99
)
PICTURE = (BEGIN, 9, 7, END)
PROMPT = (BOS, WORD, *PICTURE, OTHER)
GENERATED = (WORD, BEGIN, 10, 10, END, OTHER)
NOW = (*PROMPT, *GENERATED, BEGIN, 7)  # a picture is being drawn, its first id is out
TAIL = len(NOW) - 2


def at(stream: Stream, ids=NOW, tail=TAIL, prompt_length=7, vocabulary=VOCABULARY):
    return stream.rewrite(ids, prompt_length, tail, vocabulary)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (FULL, NOW),
        (IMAGES, (BOS, *PICTURE, BEGIN, 10, 10, END, BEGIN, 7)),
        (UNCONDITIONAL, (BOS, BEGIN, 7)),
        (Stream("unconditional", bos=False), (BEGIN, 7)),
        (Stream("prompt", (BOS, OTHER)), (BOS, OTHER, *GENERATED, BEGIN, 7)),
        (Stream("prompt", (BOS, OTHER), history=False), (BOS, OTHER, BEGIN, 7)),
    ],
)
def test_streams_inside_a_picture(stream: Stream, expected):
    assert at(stream) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (FULL, PROMPT),
        (IMAGES, (BOS, *PICTURE)),
        (UNCONDITIONAL, (OTHER,)),  # transformers' default: the prompt's last id
        (Stream("prompt", (BOS, WORD)), (BOS, WORD)),
        (Stream("prompt", (BOS, WORD), history=False), (BOS, WORD)),
    ],
)
def test_streams_in_text(stream: Stream, expected):
    assert at(stream, PROMPT, len(PROMPT)) == expected


def test_images_of_a_text_without_any_keep_its_last_id():
    assert at(IMAGES, (WORD, OTHER), 2, 2) == (OTHER,)


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("drawn", [(), (9,)])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_picture_that_the_prompt_began_is_begun_in_a_negative_prompt(history: bool, drawn, repeated: bool):
    prompt = (BOS, WORD, BEGIN, *drawn)
    negative = (BOS, OTHER, *((BEGIN, *drawn) if repeated else ()))
    stream = Stream("prompt", negative, history=history)
    assert at(stream, (*prompt, 7), 2, len(prompt)) == (BOS, OTHER, BEGIN, *drawn, 7)


def test_two_way_plan():
    others, weights = Guidance.two_way(3.0).plan(NOW, len(PROMPT), TAIL, VOCABULARY)
    assert others == [(BOS, BEGIN, 7)]
    assert weights == [3.0, -2.0]


def test_instruct_plan_has_three_streams_after_a_picture_and_two_without():
    guidance = Guidance.instruct(text=3.0, image=1.2)
    others, weights = guidance.plan(NOW, len(PROMPT), TAIL, VOCABULARY)
    assert others == [at(IMAGES), (BOS, BEGIN, 7)]
    assert weights == pytest.approx([3.0, -1.8, -0.2])
    text_only = (BOS, WORD, OTHER, BEGIN)
    others, weights = guidance.plan(text_only, 3, 3, VOCABULARY)
    assert others == [(BOS, BEGIN)]
    assert weights == pytest.approx([3.0, -2.0])


def test_five_way_plan_leaves_out_streams_of_weight_zero():
    guidance = Guidance.five_way((BOS, OTHER), (BOS, WORD), full=2.0, image=1.2, against=0.0, toward=5.0)
    others, weights = guidance.plan(NOW, len(PROMPT), TAIL, VOCABULARY)
    assert others == [at(IMAGES), (BEGIN, 7), (BOS, WORD, BEGIN, 7)]
    assert weights == pytest.approx([2.0, -0.8, -5.2, 5.0])


def test_equal_streams_are_merged_into_the_full_one_too():
    others, weights = Guidance.two_way(3.0).plan((BOS, BEGIN), 1, 1, VOCABULARY)  # nothing to leave out
    assert (others, weights) == ([], [1.0])


def test_weights_that_cancel_leave_their_stream_out():
    guidance = Guidance((FULL, IMAGES, UNCONDITIONAL), (1.0, 0.5, -0.5))
    assert guidance.plan((BOS, WORD, BEGIN), 2, 2, VOCABULARY) == ([], [1.0])
    assert len(guidance.plan(NOW, len(PROMPT), TAIL, VOCABULARY)[0]) == 2


def test_weights_that_all_cancel_are_refused():
    for guidance in (Guidance.two_way(0.0), Guidance((FULL, UNCONDITIONAL), (1.0, -1.0))):
        assert len(guidance.plan((BOS, WORD, BEGIN), 2, 2, VOCABULARY)[0]) == 1
    for guidance in (Guidance((FULL, UNCONDITIONAL), (1.0, -1.0)), Guidance((FULL,), (0.0,))):
        with pytest.raises(ValueError, match=r"of this Guidance cancel to 0, .*: nothing is left to draw from"):
            guidance.plan((BOS, BEGIN), 1, 1, VOCABULARY)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_two_way_at_its_ends(scale: float):
    others, weights = Guidance.two_way(scale).plan(NOW, len(PROMPT), TAIL, VOCABULARY)
    assert weights == ([1.0] if scale == 1.0 else [0.0, 1.0])
    assert len(others) == len(weights) - 1


def mix(guidance: Guidance, logits: dict) -> torch.Tensor:
    others, weights = guidance.plan(NOW, len(PROMPT), TAIL, VOCABULARY)
    return sum(w * logits[ids] for w, ids in zip(weights, [NOW, *others], strict=True))


def test_mixtures_are_the_formulas():
    torch.manual_seed(0)
    negative, original = (BOS, OTHER), (BOS, WORD)
    f, i, u, b, n, o = torch.randn(6, 50, dtype=torch.float64)
    logits = {
        NOW: f,
        at(IMAGES): i,
        (BOS, BEGIN, 7): u,
        (BEGIN, 7): b,
        (*negative, BEGIN, 7): n,
        (*original, BEGIN, 7): o,
        at(Stream("prompt", negative)): n,
    }
    torch.testing.assert_close(mix(Guidance.two_way(2.5), logits), u + 2.5 * (f - u))
    torch.testing.assert_close(mix(Guidance.two_way(2.5, negative), logits), n + 2.5 * (f - n))
    three = mix(Guidance.instruct(text=3.0, image=1.2), logits)
    torch.testing.assert_close(three, u + 1.2 * (i - u) + 3.0 * (f - i))
    five = mix(Guidance.five_way(negative, original, full=2.0, image=1.2, against=0.7, toward=5.0), logits)
    torch.testing.assert_close(five, b + 2.0 * (f - i) + 1.2 * (i - b) - 0.7 * (n - b) + 5.0 * (o - b))


def test_without_bos_only_a_stream_that_needs_it_fails():
    with pytest.raises(
        ValueError, match=r"no '<s>'. Give negative_prompt_ids, or Stream\('unconditional', bos=False\)"
    ):
        Guidance.two_way(3.0).plan(NOW, len(PROMPT), TAIL, WITHOUT_BOS)
    assert Guidance.two_way(3.0, (OTHER,)).plan(NOW, len(PROMPT), TAIL, WITHOUT_BOS)[1] == [3.0, -2.0]
    assert at(Stream("unconditional", bos=False), vocabulary=WITHOUT_BOS) == (BEGIN, 7)
    assert at(IMAGES, vocabulary=WITHOUT_BOS)[0] == BEGIN


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Stream("text"),
            "stream kind 'text' is unknown; choose one of full, images, unconditional, blank",
        ),
        (lambda: Stream("prompt"), "needs at least one token"),
        (lambda: Stream("full", (1,)), "ids belong to a stream of kind 'prompt' or 'blank'; this one is 'full'"),
        (lambda: Guidance((), ()), "the first stream of a Guidance must be"),
        (lambda: Guidance((UNCONDITIONAL,), (1.0,)), "the first stream of a Guidance must be"),
        (lambda: Guidance((FULL, IMAGES), (1.0,)), "2 streams but 1 weights"),
        (lambda: Guidance((FULL,), (math.nan,)), r"weights\[0\] of Guidance is nan"),
        (lambda: Guidance.two_way(math.inf), "scale of Guidance.two_way is inf, which is not a finite number"),
    ],
)
def test_wrong_recipes_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_guidance_from():
    assert guidance_from(None) == guidance_from(1) == guidance_from(1.0) == Guidance.none()
    assert guidance_from(2) == Guidance.two_way(2.0)
    assert guidance_from(Guidance.instruct()) == Guidance.instruct()
    for wrong in ("3.0", True, [3.0]):
        with pytest.raises(TypeError, match=r"a fastdecode\.Schedule, or a fastdecode\.Guidance"):
            guidance_from(wrong)


@pytest.mark.parametrize("scale", [0.0, 1.7, 4.0])
@pytest.mark.parametrize("negative", [False, True])
def test_guided_scores_are_those_of_transformers(scale: float, negative: bool):
    import fastdecode

    model = tiny_model(5)
    prompts = [[BOS, *text_ids(model, i, n)] for i, n in enumerate((3, 6, 1))]
    options = {**padded(prompts), "guidance_scale": scale, "max_new_tokens": 6, "eos_token_id": None}
    if negative:
        other = padded([text_ids(model, 9 + i, n) for i, n in enumerate((2, 1, 4))])
        options["negative_prompt_ids"] = other["input_ids"]
        options["negative_prompt_attention_mask"] = other["attention_mask"]
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "do_sample": False}
    expected = model.generate(**options, **keep)
    got = fastdecode.generate(model, **options, **keep)
    assert torch.equal(got.sequences, expected.sequences)
    text = [i for i in range(model.config.vocab_size) if i not in vocabulary_of(model).image_ids]
    for ours, theirs in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours[:, text], theirs[:, text], rtol=1e-4, atol=1e-3)
    first = whole_logits(model, prompts[1])[-1]
    torch.testing.assert_close(got.logits[0][1], first, rtol=1e-4, atol=1e-4)
