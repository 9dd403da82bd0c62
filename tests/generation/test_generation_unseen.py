"""Inside pictures the host reads many steps at once: same tokens, errors and events as step by step."""

import re

import pytest
import torch
from models_for_tests import BOS, drawing_model, padded, text_ids
from transformers import MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.decoder.cuda_graph import MOST_STEPS
from fastdecode.engine.runner import Runner
from fastdecode.engine.scheduler import Scheduler
from fastdecode.models.families import vocabulary_of

SAMPLED = {"do_sample": True, "seed": 3}
IMAGE_ONLY = {"multimodal_generation_mode": "image-only", **SAMPLED}
SIDE = 16  # a picture of 16 ids


def prompts_of(model, lengths=(9, 30, 3)) -> list[list[int]]:
    return [[BOS, *text_ids(model, i, n)] for i, n in enumerate(lengths)]


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Listener:
    """A streamer."""

    def __init__(self) -> None:
        self.heard: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append([])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many sequences each step sampled that was looked at, and how many steps were taken without a look."""
    found: dict[str, list[int]] = {"seen": [], "unseen": []}
    one, unseen = Runner._one, Runner._unseen

    def noting_one(self, batch):
        step = one(self, batch)
        found["seen"].append(len(step.sequences))
        return step

    def noting_unseen(self, batch, steps):
        found["unseen"].append(steps)
        return unseen(self, batch, steps)

    monkeypatch.setattr(Runner, "_one", noting_one)
    monkeypatch.setattr(Runner, "_unseen", noting_unseen)
    return found


def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "_steps", lambda self: (1 if self.running else 0, False))


@pytest.mark.parametrize("fused", [True, False], ids=["C++ step", "PyTorch's step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 3.0},
        {"guidance": Guidance.instruct(), "image": {"temperature": 0.8, "top_p": 0.9}},
        {"guidance": 2.0, "repetition_penalty": 1.4},
        {"guidance": Guidance.two_way(2.0, everywhere=True)},
        {"multimodal_generation_mode": "interleaved-text-image", "guidance": 2.0, "max_new_tokens": 70},
        {"multimodal_generation_mode": "interleaved-text-image", "max_new_tokens": 60, "repetition_penalty": 0.8},
        {"multimodal_generation_mode": "unrestricted", "max_new_tokens": 40},
        {"do_sample": False, "guidance": 3.0},
        {"max_new_tokens": 18, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_the_same_ids(options: dict, fused: bool, calls, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=SIDE)
    if not fused:
        model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output)
    assert Decoder(model).uses_cpu_step == fused
    prompts = prompts_of(model)
    prompts[1] += [vocabulary_of(model).begin_image, *vocabulary_of(model).code_ids[:5]]  # in the middle of a picture
    options = {**padded(prompts), **IMAGE_ONLY, **options}
    unseen = fastdecode.generate(model, **options)
    free = options["multimodal_generation_mode"] == "unrestricted"
    assert (sum(calls["unseen"]) == 0) == free
    step_by_step(monkeypatch)
    calls["unseen"].clear()
    assert torch.equal(fastdecode.generate(model, **options), unseen)
    assert calls["unseen"] == []


def test_a_picture_is_drawn_in_as_few_looks_as_may_be(calls):
    model = drawing_model(2, resolution=36)
    length = vocabulary_of(model).image_length
    assert length > MOST_STEPS
    fastdecode.generate(model, **padded(prompts_of(model)), **IMAGE_ONLY, guidance=2.0)
    assert calls == {"seen": [], "unseen": [MOST_STEPS, length - MOST_STEPS]}


@pytest.mark.parametrize(
    "asks",
    [
        {"stopping_criteria": StoppingCriteriaList([Never()])},
        {"return_dict_in_generate": True, "output_scores": True},
        {"logits_processor": [lambda ids, scores: scores]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_who_asks_is_told_at_every_step(asks: dict, calls):
    model = drawing_model(2, resolution=SIDE)
    fastdecode.generate(model, **padded(prompts_of(model)), **IMAGE_ONLY, **asks)
    assert calls["unseen"] == []
    assert len(calls["seen"]) >= vocabulary_of(model).image_length


def test_limits_of_length_ask_for_nothing(calls):
    model = drawing_model(2, resolution=SIDE)
    inputs = padded(prompts_of(model))
    criteria = StoppingCriteriaList([MaxLengthCriteria(31 + 18)])
    fastdecode.generate(model, **inputs, **IMAGE_ONLY, max_new_tokens=18, stopping_criteria=criteria)
    assert calls["unseen"] == [16]


def test_a_streamer_hears_every_column(monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=SIDE)
    options = {**padded(prompts_of(model)), **SAMPLED, "guidance": 2.0, "max_new_tokens": 70}
    options["multimodal_generation_mode"] = "interleaved-text-image"
    heard = []
    for _ in range(2):
        listener = Listener()
        out = fastdecode.generate(model, **options, streamer=listener)
        new = out[:, options["input_ids"].shape[1] :]
        assert [row for row in listener.heard[-len(new.T) - 1 : -1]] == new.T.tolist()
        heard.append(listener.heard)
        step_by_step(monkeypatch)
    assert heard[0] == heard[1]


def test_logits_that_are_no_numbers_are_told_by_their_token(monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=SIDE)
    pool, messages = fastdecode.new_pool(model), []
    logits, calls = Decoder.logits, []

    def failing(self, hidden, spans=None):
        found = logits(self, hidden, spans)
        calls.append(len(hidden))
        return found.fill_(torch.nan) if len(calls) % 8 == 0 else found

    monkeypatch.setattr(Decoder, "logits", failing)
    for _ in range(2):
        calls.clear()
        with pytest.raises(RuntimeError) as raised:
            fastdecode.generate(model, **padded(prompts_of(model)), **IMAGE_ONLY, kv_pool=pool)
        messages.append(str(raised.value))
        assert pool.used == 0
        step_by_step(monkeypatch)
    assert messages[0] == messages[1]
    assert messages[0].startswith("sequence 0 has NaN, +inf or nothing but -inf among the logits of its token 18 ")


@pytest.mark.parametrize("pages", range(22, 40))
def test_a_pool_that_ends_inside_a_picture_says_where(pages: int, monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=SIDE)
    pool, told = fastdecode.new_pool(model, pages=pages, page_slots=3), []
    for _ in range(2):
        try:
            ids = fastdecode.generate(model, **padded(prompts_of(model)), **IMAGE_ONLY, guidance=2.0, kv_pool=pool)
            told.append(ids.tolist())
        except fastdecode.PoolExhausted as error:
            told.append(re.sub(r"^the KV pool needs .* free, ", "", str(error)))
        assert pool.used == 0
        step_by_step(monkeypatch)
    assert told[0] == told[1]


def test_an_interruption_frees_the_pages(monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(5, resolution=SIDE)
    pool, step, calls = fastdecode.new_pool(model), Decoder.step, []

    def interrupted(self, cache, tokens):
        calls.append(len(tokens))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return step(self, cache, tokens)

    monkeypatch.setattr(Decoder, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastdecode.generate(model, **padded(prompts_of(model)), **IMAGE_ONLY, kv_pool=pool)
    assert pool.peak > 0
    assert pool.used == 0
