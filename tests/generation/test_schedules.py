"""Guidance that changes with the place in a picture, against logits that are mixed by hand."""

from __future__ import annotations

import re

import pytest
import torch
from family_models import emu3_vocabulary, tiny_emu3
from models_for_tests import BOS, drawing_model, padded, text_ids, whole_logits

import fastdecode
from fastdecode import Guidance, Schedule, Stream
from fastdecode.decoder import Decoder
from fastdecode.engine.core import EngineCore
from fastdecode.engine.course import Course
from fastdecode.engine.request import Request
from fastdecode.engine.runner import Runner
from fastdecode.generation.api import prepare_call
from fastdecode.models.families import vocabulary_of

MODEL = drawing_model(5, resolution=16)
V = vocabulary_of(MODEL)
N = V.image_length
WORDS = sorted({*text_ids(MODEL, 0, 50)})
INTERLEAVED, IMAGE_ONLY = "interleaved-text-image", "image-only"
PROMPTS = [[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((9, 30, 3))]
BEGUN = [*PROMPTS[0], V.begin_image, *V.code_ids[:5]]

LATE = Schedule.table([1.0] * 5 + [3.0])
EARLY = Schedule.table([3.0] * 6 + [1.0])
HOLES = Schedule.table([1.0, 1.0, 4.0, 1.0, 1.0, 2.0, 1.0])
DOWN, BEND, CURVE = Schedule.linear(5.0, 1.0), Schedule.cosine(0.5, 3.0), Schedule.function(lambda p: 4.0 * p)
NEGATIVE = (BOS, WORDS[0], WORDS[1])
BY_NAME: dict[str, Guidance] = {
    "late": Guidance.two_way(LATE),
    "early": Guidance.two_way(EARLY),
    "holes": Guidance.two_way(HOLES),
    "down": Guidance.two_way(DOWN),
    "function": Guidance.two_way(CURVE, NEGATIVE),
    "instruct": Guidance.instruct(BEND, Schedule.table([1.0] * 4 + [2.0] * 4 + [1.0])),
    "five": Guidance.five_way(NEGATIVE, NEGATIVE[:2], full=DOWN, image=1.2, against=LATE - 1.0, toward=EARLY - 1.0),
    "own": Guidance(
        (Stream("full"), Stream("images"), Stream("unconditional", bos=False), Stream("prompt", NEGATIVE)),
        (1.5, Schedule.table([0.0] * 9 + [-0.5]), Schedule.table([-1.0, -1.0, 0.0]), Schedule.table([0, 0.5, 0.5, 0])),
    ),
}


# --- by hand ----------------------------------------------------------------------------------------------------------


def scales_at(guidance: Guidance, place: int, length: int, inside: bool = True) -> list[float]:
    """The weights at token ``place`` of ``length``, of a picture or (``inside=False``) of text."""
    weights = guidance.weights if inside or guidance.text_weights is None else guidance.text_weights
    return [w.values(length)[min(place, length - 1)] if isinstance(w, Schedule) else w for w in weights]


def by_hand(prompt: list[int], guidance: Guidance, mode: str, new: int, begun: int = 0) -> list[int]:
    """The likeliest tokens, one by one: every stream is read whole by the model's own layers, and mixed in float32.

    ``begun``: the prompt ends with so many tokens of a picture.
    """
    ids, limit = list(prompt), len(prompt) + new
    tail = len(prompt) - 1 - begun if begun else -1
    while len(ids) < limit:
        inside = tail >= 0
        place = len(ids) - tail - 1 if inside else len(ids) - len(prompt)
        if inside and place == N:
            ids.append(V.end_image)
            if mode == IMAGE_ONLY:
                break
            tail = -1
            continue
        if mode == IMAGE_ONLY and not inside:
            tail = len(ids)
            ids.append(V.begin_image)
            continue
        if inside or guidance.everywhere:
            weights = scales_at(guidance, place, N if inside else new, inside)
            parts = zip(guidance.streams, weights, strict=True)
            z = sum(w * whole_logits(MODEL, stream_of(s, ids, len(prompt), tail))[-1] for s, w in parts if w)
        else:
            z = whole_logits(MODEL, ids)[-1]
        allowed = set(V.image_ids) if inside else set(range(V.size)) - V.image_ids
        if not inside and mode == INTERLEAVED:
            allowed -= {V.end_image, V.placeholder, BOS, 1}
            allowed -= {V.begin_image} if limit - len(ids) < N + 2 else set()
        token = max(sorted(allowed), key=lambda i: float(z[i]))
        ids.append(token)
        if not inside and token == V.begin_image and mode == INTERLEAVED:
            tail = len(ids) - 1
    return ids[len(prompt) :]


def stream_of(stream: Stream, ids: list[int], prompt_length: int, tail: int) -> list[int]:
    """The tokens that a stream has by now, in the picture that begins at ``tail``, or behind the prompt (-1)."""
    if tail < 0:
        return [*stream.rewrite(ids[:prompt_length], prompt_length, prompt_length, V), *ids[prompt_length:]]
    return list(stream.rewrite(ids, prompt_length, tail, V))


def drawn(prompts, guidance, mode: str = IMAGE_ONLY, **options) -> list[list[int]]:
    """New tokens of a batch with one guidance for all."""
    inputs = padded(prompts)
    options = {"multimodal_generation_mode": mode, "eos_token_id": None, **options}
    out = fastdecode.generate(MODEL, **inputs, guidance=guidance, **options)
    found = getattr(out, "sequences", out)
    return found[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", BY_NAME)
def test_greedy_pictures(name: str):
    expected = [by_hand(prompt, BY_NAME[name], IMAGE_ONLY, N + 2) for prompt in PROMPTS]
    assert drawn(PROMPTS, BY_NAME[name]) == expected
    plain = [by_hand(prompt, Guidance.none(), IMAGE_ONLY, N + 2) for prompt in PROMPTS]
    assert expected != plain  # the guidance matters here


@pytest.mark.parametrize("name", BY_NAME)
def test_greedy_text_and_pictures(name: str):
    found = drawn(PROMPTS[:2], BY_NAME[name], INTERLEAVED, max_new_tokens=60)
    assert found == [by_hand(prompt, BY_NAME[name], INTERLEAVED, 60) for prompt in PROMPTS[:2]]
    assert sum(row.count(V.begin_image) for row in found) > 2


@pytest.mark.parametrize("name", BY_NAME)
def test_a_prompt_that_ends_inside_a_picture_goes_on_at_its_place(name: str):
    [found] = drawn([BEGUN], BY_NAME[name])
    assert found == by_hand(BEGUN, BY_NAME[name], IMAGE_ONLY, N - 5 + 1, begun=5)


@pytest.mark.parametrize(
    "schedule", [DOWN, Schedule.table([1.0] * 4 + [3.0] * 4 + [1.0]), Schedule.table([3.0] * 4 + [1.0]), BEND]
)
def test_text_by_its_new_tokens(schedule: Schedule):
    for guidance in (schedule, Guidance.two_way(schedule, everywhere=True)):
        found = drawn(PROMPTS, guidance, "text-only", max_new_tokens=14)
        expected = Guidance.two_way(schedule, everywhere=True)
        assert found == [by_hand(prompt, expected, "text-only", 14) for prompt in PROMPTS]


APART = {
    "scales": Guidance.two_way(3.0, NEGATIVE, text_scale=1.5),
    "schedules": Guidance.two_way(DOWN, NEGATIVE, text_scale=Schedule.linear(1.0, 2.0)),
    "pictures alone": Guidance.two_way(3.0, NEGATIVE, text_scale=1.0),
    "text alone": Guidance.two_way(1.0, NEGATIVE, text_scale=2.0),
    "streams": Guidance(
        (Stream("full"), Stream("prompt", NEGATIVE), Stream("prompt", NEGATIVE[:2])),
        (2.0, -1.0, 0.0),
        everywhere=True,
        text_weights=(1.5, 0.0, -0.5),
    ),
}


@pytest.mark.parametrize("name", APART)
def test_text_and_pictures_with_weights_of_their_own(name: str):
    check_everywhere(APART[name])
    text = drawn(PROMPTS, APART[name], "text-only", max_new_tokens=14)
    weights = APART[name].text_weights
    alike = Guidance(APART[name].streams, weights, everywhere=True)
    assert text == drawn(PROMPTS, alike, "text-only", max_new_tokens=14)
    pictures = Guidance(APART[name].streams, APART[name].weights, everywhere=True)
    assert drawn(PROMPTS, APART[name]) == drawn(PROMPTS, pictures)


def test_weights_of_text_matter():
    options = {"mode": INTERLEAVED, "max_new_tokens": 44}
    found = [drawn(PROMPTS, APART[name], **options) for name in ("scales", "pictures alone", "text alone")]
    found.append(drawn(PROMPTS, Guidance.two_way(3.0, NEGATIVE, everywhere=True), **options))
    assert all(found.count(one) == 1 for one in found)


def test_explain_tells_the_weights_of_text():
    def explained(guidance, mode: str):
        options = {"multimodal_generation_mode": mode, "max_new_tokens": 44}
        return fastdecode.explain(MODEL, torch.tensor([PROMPTS[0]]), guidance=guidance, **options)

    found = explained(APART["schedules"], INTERLEAVED)
    assert found.where == "every token"
    assert found.streams == [
        [
            "+1 to +2 in text, +5 to +1 in pictures x full, 10 tokens",
            "+0 to -1 in text, -4 to +0 in pictures x prompt, 3 tokens",
        ]
    ]
    assert any(line.endswith("over the tokens of the new text") for line in found.schedules)
    assert any(line.endswith("over the tokens of a picture") for line in found.schedules)
    assert explained(APART["scales"], "text-only").streams[0][0] == "+1.5 x full, 10 tokens"
    assert explained(APART["scales"], IMAGE_ONLY).streams[0][0] == "+3 x full, 10 tokens"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance((Stream("full"),), (1.0,), text_weights=(2.0,)), "guide text: give everywhere=True too"),
        (
            lambda: Guidance((Stream("full"),), (1.0,), True, text_weights=(2.0, 1.0)),
            "Guidance has 1 streams but 2 text_weights: give one weight per stream",
        ),
        (lambda: Guidance((Stream("full"),), (1.0,), True, text_weights=3.0), "text_weights of Guidance is a float"),
        (lambda: Guidance.two_way(2.0, text_scale="x"), "text_scale of Guidance.two_way is 'x'"),
        (
            lambda: Guidance(
                (Stream("full"), Stream("images")), (1.0, -1.0), True, contrast=(0.1, 1), text_weights=(1.0, 0.0)
            ),
            "a Guidance with a contrast has text_weights: leave one of them out",
        ),
    ],
)
def test_wrong_weights_of_text_are_refused(build, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_weights_of_text_that_cancel_are_refused():
    guidance = Guidance((Stream("full"), Stream("images")), (2.0, -1.0), everywhere=True, text_weights=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"the weights \(1.0, -1.0\) of this Guidance cancel to 0"):
        drawn([[BOS]], guidance, INTERLEAVED, max_new_tokens=40)


def test_text_and_pictures_guided_everywhere():
    check_everywhere(Guidance.two_way(HOLES, NEGATIVE, everywhere=True))


def check_everywhere(guidance: Guidance) -> None:
    found = drawn(PROMPTS[:1], guidance, INTERLEAVED, max_new_tokens=44)
    assert V.begin_image in found[0]
    ids, prompt, tail = list(PROMPTS[0]), PROMPTS[0], -1
    for token in found[0]:  # each token is the likeliest after those before it
        place = len(ids) - tail - 1 if tail >= 0 else len(ids) - len(prompt)
        if place != N or tail < 0:
            weights = scales_at(guidance, place, N if tail >= 0 else 44, tail >= 0)
            rows = [ids, *([*stream.ids, *ids[len(prompt) :]] for stream in guidance.streams[1:])]
            z = sum(w * whole_logits(MODEL, row)[-1] for w, row in zip(weights, rows, strict=True))
            allowed = (
                V.image_ids if tail >= 0 else set(range(V.size)) - V.image_ids - {V.end_image, V.placeholder, 0, 1}
            )
            if tail < 0 and len(prompt) + 44 - len(ids) < N + 2:
                allowed = allowed - {V.begin_image}
            assert token == max(sorted(allowed), key=lambda i: float(z[i]))
        ids.append(token)
        tail = len(ids) - 1 if token == V.begin_image else -1 if token == V.end_image else tail


@torch.no_grad()
@pytest.mark.parametrize("schedule", [Schedule.table([1.0] * 7 + [4.0]), Schedule.linear(5.0, 1.0)], ids=repr)
def test_tokens_that_end_rows_count(schedule: Schedule, monkeypatch: pytest.MonkeyPatch):
    """Emu3 writes a token behind each row of a picture, and one behind the last."""
    model, names, (height, width) = tiny_emu3(), emu3_vocabulary(), (3, 5)
    visual = [i for name, i in names.items() if name.startswith("<|visual")]
    row_end, frame_end, end = (names[f"<|{name}|>"] for name in ("extra_200", "extra_201", "image end"))
    prompt, negative = ([*range(first, first + 6), names["<|image token|>"]] for first in (30, 120))
    length = height * (width + 1) + 1
    expected: list[int] = []
    for place, scale in enumerate(schedule.values(length)):
        if place % (width + 1) == width or place == length - 1:
            expected.append(frame_end if place == length - 1 else row_end)
            continue
        c, u = (model(torch.tensor([[*begun, *expected]])).logits[0, -1].float() for begun in (prompt, negative))
        z = u + scale * (c - u)
        expected.append(max(visual, key=lambda i: float(z[i])))
    rows = rows_of_steps(monkeypatch)
    out = fastdecode.generate(
        model,
        torch.tensor([prompt]),
        image_sizes=torch.tensor([[height, width]]),
        multimodal_generation_mode=IMAGE_ONLY,
        guidance=Guidance.two_way(schedule, negative),
        do_sample=False,
    )
    assert out[0, len(prompt) : len(prompt) + length + 1].tolist() == [*expected, end]
    assert sum(rows[:7]) == (7 if schedule.kind == "table" else 14)


# --- the same however it runs -----------------------------------------------------------------------------------------

SAMPLED = {"do_sample": True, "deterministic": True}


def alone(i: int, guidance, mode: str = IMAGE_ONLY, **options) -> list[int]:
    return drawn([PROMPTS[i % 3]], guidance, mode, seed=i, **SAMPLED, **options)[0]


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("mode", [IMAGE_ONLY, INTERLEAVED])
def test_the_tokens_are_those_of_streams_that_run_all_along(name: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    options = {"max_new_tokens": 60} if mode == INTERLEAVED else {}
    rows = rows_of_steps(monkeypatch)
    skipped = [alone(i, BY_NAME[name], mode, **options) for i in range(3)]
    fewer, made = sum(rows), Course.__init__
    rows.clear()

    def all_along(self, streams, weights, length, *, skips):
        made(self, streams, weights, length, skips=skips)
        self._spans = [(0, 10**9)] * len(self._spans)

    monkeypatch.setattr(Course, "__init__", all_along)
    assert [alone(i, BY_NAME[name], mode, **options) for i in range(3)] == skipped
    assert fewer <= sum(rows)
    if name in ("late", "early", "holes", "five", "own"):
        assert fewer < 0.95 * sum(rows)


def rows_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows of every step that is run."""
    rows, step = [], Runner._step

    def noting(self, batch):
        rows.append(self.cache.rows)
        return step(self, batch)

    monkeypatch.setattr(Runner, "_step", noting)
    return rows


def test_rows_come_and_go_at_their_tokens(monkeypatch: pytest.MonkeyPatch):
    rows = rows_of_steps(monkeypatch)
    for guidance, expected in (
        (LATE, [1] * 5 + [2] * 11),
        (EARLY, [2] * 6 + [1] * 10),
        (HOLES, [1] * 2 + [2] * 4 + [1] * 10),
        (Schedule.table([1.0]), [1] * 16),
    ):
        rows.clear()
        drawn([PROMPTS[0]], guidance)
        assert rows == expected


def test_a_picture_that_begins_behind_the_end_of_a_stream_never_starts_it(monkeypatch: pytest.MonkeyPatch):
    rows = rows_of_steps(monkeypatch)
    early = Schedule.table([3.0, 3.0, 1.0])
    [found] = drawn([BEGUN], early)
    assert rows == [1] * 11
    assert found == by_hand(BEGUN, Guidance.two_way(early), IMAGE_ONLY, 12, begun=5)


@pytest.mark.parametrize("name", ["down", "instruct", "own"])
def test_a_constant_table_is_its_number(name: str):
    """Bit for bit the tokens of a plain guidance with the weights of one token."""
    scheduled = BY_NAME[name]
    weights = scales_at(scheduled, 1, N)
    plain = Guidance(scheduled.streams, tuple(weights))
    held = Guidance(scheduled.streams, tuple(Schedule.table([w, w]) for w in weights))
    assert held.scheduled
    assert [alone(i, held) for i in range(3)] == [alone(i, plain) for i in range(3)]


MIXED: list[tuple[object, str, dict]] = [
    (BY_NAME["late"], IMAGE_ONLY, {}),
    (None, IMAGE_ONLY, {}),
    (BY_NAME["five"], INTERLEAVED, {"max_new_tokens": 60}),
    (2.0, INTERLEAVED, {"max_new_tokens": 50, "sequence_bias": [[[WORDS[2]], 2.5]]}),
    (BY_NAME["own"], IMAGE_ONLY, {"repetition_penalty": 1.3}),
    (Guidance.two_way(HOLES, everywhere=True), "text-only", {"max_new_tokens": 14}),
    (BY_NAME["holes"], INTERLEAVED, {"max_new_tokens": 50, "sequence_bias": [[[WORDS[2]], 2.5]]}),
    (BY_NAME["instruct"], IMAGE_ONLY, {"logits_processor": [lambda ids, scores: scores + 0.0]}),
    (Guidance.two_way(DOWN, everywhere=True), "unrestricted", {"max_new_tokens": 40}),
]


def request_of(i: int, guidance, mode: str, options: dict) -> tuple[Request, object]:
    own = {"multimodal_generation_mode": mode, "guidance": guidance, "seed": i, "deterministic": True}
    given = {"do_sample": True, "eos_token_id": None, **options}
    call = prepare_call(MODEL, torch.tensor([PROMPTS[i % 3]]), given, own)
    [request] = call.requests()
    return request, call


def engine_of(pages: int | None = None, **options) -> EngineCore:
    decoder = Decoder(MODEL, deterministic=True)
    return EngineCore(decoder, decoder.new_pool(pages, page_slots=4), **options)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [alone(i, guidance, mode, **options) for i, (guidance, mode, options) in enumerate(MIXED)]


@pytest.fixture
def whole_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is taken with all streams that a sequence needs."""
    run = Runner.run

    def checked(self, plan, running):
        for s in (s for request in running for s in request.live):
            assert len(s.rows) == 1 + len(s.streams) == len(s.weights)
            for row, stream in zip(s.rows, s.streams_now(), strict=True):
                assert self.rows[row] is s
                assert self.cache.length(row) == len(stream) - 1
        return run(self, plan, running)

    monkeypatch.setattr(Runner, "run", checked)


def finish(engine: EngineCore, requests, preempting: bool = False) -> None:
    for request, _ in requests:
        engine.add(request)
    steps = 0
    while engine.step():
        steps += 1
        assert steps < 2000
        if preempting and steps % 3 == 0 and engine.scheduler.running:
            engine.preempt(engine.scheduler.running[steps % len(engine.scheduler.running)])
        if preempting and steps % 7 == 0:
            engine.reset()  # as after an interruption: every sequence's place is found anew
    for request, _ in requests:
        assert request.error is None, request.error


@pytest.mark.parametrize("pages", [None, 40, 60])
@pytest.mark.parametrize("preempting", [False, True])
@pytest.mark.parametrize("retain", [0, None])
def test_a_mixed_batch_gives_the_tokens_of_each_alone(pages, preempting: bool, retain, expected, whole_guidance):
    engine = engine_of(pages, retain=retain)
    requests = [request_of(i, *each) for i, each in enumerate(MIXED)]
    finish(engine, requests, preempting)
    for i, (_, call) in enumerate(requests):
        assert call.sequences[0].generated == expected[i], i
    if preempting:
        assert engine.scheduler.preemptions > 5
    assert engine.cache.pool.used == engine.cache.retained


def test_processors_get_the_weights_of_their_token():
    louder = [lambda ids, scores: scores * 1.0]
    for name in BY_NAME:
        assert drawn(PROMPTS, BY_NAME[name], logits_processor=louder) == drawn(PROMPTS, BY_NAME[name])


def test_scores_that_are_returned_are_mixed_by_the_schedule():
    keep = {"return_dict_in_generate": True, "output_scores": True, "use_cache": False}
    inputs = padded([PROMPTS[0]])
    guidance = BY_NAME["instruct"]
    out = fastdecode.generate(
        MODEL, **inputs, multimodal_generation_mode=IMAGE_ONLY, guidance=guidance, max_new_tokens=N + 2, **keep
    )
    ids, tail = out.sequences[0].tolist(), len(PROMPTS[0])
    for place in range(N):
        before = ids[: tail + 1 + place]
        parts = zip(guidance.streams, scales_at(guidance, place, N), strict=True)
        z = sum(w * whole_logits(MODEL, s.rewrite(before, tail, tail, V))[-1] for s, w in parts)
        images = sorted(V.image_ids)
        torch.testing.assert_close(out.scores[1 + place][0][images], z[images], rtol=1e-4, atol=1e-3)


class Listener:
    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        pass


@pytest.mark.parametrize("name", ["late", "own"])
def test_a_streamer_hears_the_same_tokens(name: str):
    listener = Listener()
    options = {"max_new_tokens": 60, "seed": 4, "do_sample": True}
    [found] = drawn([PROMPTS[1]], BY_NAME[name], INTERLEAVED, streamer=listener, **options)
    assert listener.heard == [*PROMPTS[1], *found]
    assert drawn([PROMPTS[1]], BY_NAME[name], INTERLEAVED, **options) == [found]


def test_pages_of_streams_that_start_late_are_promised_to_their_requests():
    """A request that comes meanwhile waits rather than takes them."""
    late = Schedule.table([1.0] * 12 + [3.0])
    engine = engine_of(90, most_steps=1)
    first = [request_of(i, late, IMAGE_ONLY, {}) for i in range(2, 26, 3)]
    for request, _ in first:
        engine.add(request)
    while first[-1][0].sequences[0].position < 10:
        engine.step()
    second = request_of(1, 3.0, IMAGE_ONLY, {})  # of a long prompt
    assert engine.scheduler.running == [request for request, _ in first]
    assert [engine.scheduler._coming(request) for request, _ in first] == [3] * 8  # of 2 + 10 tokens
    assert not engine.scheduler._fits(second[0])
    finish(engine, [second])
    assert engine.scheduler.preemptions == 0
    assert first[0][1].sequences[0].generated == alone(2, late)


# --- said beforehand --------------------------------------------------------------------------------------------------


def explained(guidance, mode: str = IMAGE_ONLY, prompt=PROMPTS[0], **options):
    return fastdecode.explain(
        MODEL, torch.tensor([prompt]), multimodal_generation_mode=mode, guidance=guidance, **options
    )


def test_explain():
    found = explained(LATE)
    assert found.streams == [
        ["+1 to +3 x full, 11 tokens", "-2 x unconditional, 2 tokens, decoded at tokens 5 to 15 of 16"]
    ]
    assert found.schedules == ["1 for 5 tokens, then 3, over the tokens of a picture"]
    assert "schedule          1 for 5 tokens, then 3, over the tokens of a picture" in str(found).splitlines()
    found = explained(BY_NAME["own"])
    assert found.streams == [
        [
            "+1.5 x full, 11 tokens",
            "-1 x unconditional, 1 tokens, decoded at tokens 0 to 1 of 16",
            "+0.5 x prompt, 4 tokens, decoded at tokens 1 to 2 of 16",
            "-0.5 x images, 2 tokens, decoded at tokens 9 to 15 of 16",
        ]
    ]
    assert len(found.schedules) == 3
    text = explained(Guidance.two_way(DOWN, everywhere=True), "text-only", max_new_tokens=5)
    assert text.streams == [
        ["+5 to +1 x full, 10 tokens", "-4 to -1 x unconditional, 1 tokens, decoded at tokens 0 to 3 of 5"]
    ]
    assert text.schedules == [
        "5 to 1 in a straight line, over the tokens of a picture, or of the new text outside of one"
    ]
    inside = explained(EARLY, prompt=[*BEGUN, *V.code_ids[:4]])
    assert inside.streams == [["+1 x full, 20 tokens"]]  # it is over
    for plain in (2.0, Guidance.instruct(), None):
        assert explained(plain).schedules == []
        assert "schedule" not in str(explained(plain))


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (
            Schedule.function(lambda p: float("nan")),
            "Schedule.function(<lambda>) at token 0 of 16 is nan, which is not a",
        ),
        (Schedule.function(lambda p: "3"), "at token 0 of 16 is '3', which is not a finite number"),
        (Schedule.function(lambda p: {}[p]), "the function <lambda> of a Schedule raised KeyError at the progress 0"),
        (
            Guidance((Stream("full"), Stream("images")), (0.0, Schedule.table([1.0, 1.0, 0.0]))),
            "cancel to 0 at position 2",
        ),
    ],
)
def test_errors_come_before_anything_is_decoded(guidance, message: str, monkeypatch: pytest.MonkeyPatch):
    rows = rows_of_steps(monkeypatch)
    for call in (explained, lambda g: drawn([PROMPTS[0]], g)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(guidance)
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdecode.Engine(MODEL).submit(
            PROMPTS[0], multimodal_generation_mode=INTERLEAVED, guidance=guidance, max_new_tokens=40
        )
    assert rows == []


def test_the_engine_takes_schedules():
    engine = fastdecode.Engine(MODEL, deterministic=True)
    handles = [
        engine.submit(
            PROMPTS[i % 3],
            multimodal_generation_mode=IMAGE_ONLY,
            guidance=guidance,
            do_sample=True,
            seed=i,
            eos_token_id=None,
        )
        for i, guidance in enumerate((BY_NAME["late"], None, BY_NAME["own"]))
    ]
    engine.run()
    for i, (handle, guidance) in enumerate(zip(handles, (BY_NAME["late"], None, BY_NAME["own"]), strict=True)):
        assert handle.result().flatten().tolist()[-N - 2 :] == alone(i, guidance)
