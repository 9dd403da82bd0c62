"""Requests of all kinds for one engine, and the tokens that each gets alone."""

import pytest
import torch
from models_for_tests import BOS, drawing_model, text_ids

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.engine.core import EngineCore
from fastdecode.engine.request import Request
from fastdecode.engine.runner import Runner
from fastdecode.generation.api import prepare_call
from fastdecode.generation.prepare import GenerateOptions
from fastdecode.models.families import vocabulary_of

MODEL = drawing_model(5, resolution=16)
V = vocabulary_of(MODEL)
WORDS = sorted({*text_ids(MODEL, 0, 50)})
INTERLEAVED, IMAGE_ONLY = "interleaved-text-image", "image-only"
FIVE = Guidance.five_way((BOS, WORDS[0]), (BOS, WORDS[1]))
MIXED: list[dict] = [
    {"mode": "text-only", "max_new_tokens": 20},
    {"mode": IMAGE_ONLY, "guidance": 2.0},
    {"mode": INTERLEAVED, "guidance": Guidance.instruct(), "max_new_tokens": 60},
    {"mode": "text-only", "guidance": Guidance.two_way(1.5, everywhere=True), "max_new_tokens": 15},
    {"mode": "unrestricted", "max_new_tokens": 30, "repetition_penalty": 1.3},
    {"mode": INTERLEAVED, "max_new_tokens": 50, "image": {"temperature": 0.7, "top_p": 0.9}, "text": {"top_k": 9}},
    {"mode": IMAGE_ONLY, "guidance": FIVE, "image": {"do_sample": False}},
    {"mode": "text-only", "max_new_tokens": 20, "min_new_tokens": 12, "suppress_tokens": WORDS[:2]},
    {"mode": INTERLEAVED, "guidance": 3.0, "max_new_tokens": 44, "sequence_bias": [[[WORDS[2]], 2.5]]},
    {"mode": "text-only", "max_new_tokens": 12, "logits_processor": [lambda ids, scores: scores + 0.0]},
    {"mode": INTERLEAVED, "guidance": Guidance.contrastive(0.05, 4), "max_new_tokens": 50},
    {"mode": "text-only", "guidance": Guidance.contrastive(0.1, 9, everywhere=True), "max_new_tokens": 16},
    {"mode": INTERLEAVED, "guidance": Guidance.two_way(3.0, text_scale=1.5), "max_new_tokens": 40},
]


def call_of(i: int, options: dict) -> tuple[torch.Tensor, dict]:
    options = dict(options)
    prompt = [BOS, *text_ids(MODEL, i % 3, 4 + 7 * (i % 4))]
    mode = options.pop("mode")
    return torch.tensor([prompt]), {"multimodal_generation_mode": mode, "do_sample": True, "seed": i, **options}


def request_of(i: int, options: dict, **more) -> tuple[Request, object]:
    ids, options = call_of(i, options)
    own = {k: options.pop(k) for k in list(options) if k in GenerateOptions.__dataclass_fields__}
    call = prepare_call(MODEL, ids, options, own | {"deterministic": True})
    [request] = call.requests(**more)
    return request, call


def alone(i: int, options: dict) -> torch.Tensor:
    ids, options = call_of(i, options)
    return fastdecode.generate(MODEL, ids, **options, deterministic=True)


ALL = range(len(MIXED))
EXPECTED = [alone(i, options) for i, options in enumerate(MIXED)]


def core(pages: int | None = None, **options) -> EngineCore:
    decoder = Decoder(MODEL, deterministic=True)
    return EngineCore(decoder, decoder.new_pool(pages, page_slots=4), **options)


def add_mixed(engine: EngineCore) -> list[tuple[Request, object]]:
    """The requests of `MIXED`, given to ``engine``."""
    requests = [request_of(i, options) for i, options in enumerate(MIXED)]
    for request, _ in requests:
        engine.add(request)
    return requests


def finish(engine: EngineCore) -> int:
    steps = 0
    while engine.step():
        steps += 1
        assert steps < 1_500
    return steps


def check(requests, numbers=ALL) -> None:
    for i, (request, call) in zip(numbers, requests, strict=True):
        assert request.error is None, request.error
        assert torch.equal(call.output(), EXPECTED[i]), i


def whole_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is taken with a part of a sequence's streams."""
    run = Runner.run

    def checked(self, plan, running):
        for request in running:
            for s in request.live:
                assert len(s.rows) == 1 + len(s.streams) == len(s.weights)
        return run(self, plan, running)

    monkeypatch.setattr(Runner, "run", checked)


def long_prompt(length: int) -> torch.Tensor:
    return torch.tensor([[BOS, *text_ids(MODEL, 5, length - 1)]])
