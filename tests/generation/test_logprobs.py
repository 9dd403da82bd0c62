"""``Handle.logprobs``: those of transformers' own chain of warpers, in whichever way the tokens were decoded."""

import pytest
import torch
from engines import PICTURE, TEXT, engine
from models_for_tests import BOS, drawing_model, text_ids

import fastdecode
from fastdecode import Engine, Guidance
from fastdecode.engine.core import EngineCore

MODEL = drawing_model(5, resolution=24)  # the logits of `blocks` have ties, which transformers cuts apart
PROMPT = [BOS, *text_ids(MODEL, 3, 9)]
SAMPLED = {"do_sample": True, "seed": 5}
WAYS = {
    "text": {**SAMPLED, "multimodal_generation_mode": "text-only", "max_new_tokens": 40, "top_p": 0.9},
    "text, penalty, min-p": {
        **SAMPLED,
        "multimodal_generation_mode": "text-only",
        "max_new_tokens": 20,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "temperature": 0.8,
    },
    "picture": {**PICTURE, "seed": 5, "top_p": 0.9, "temperature": 0.7},
    "picture, top-k": {**PICTURE, "seed": 6, "top_k": 5},
    "both, instruct": {
        **SAMPLED,
        "multimodal_generation_mode": "interleaved-text-image",
        "max_new_tokens": 150,
        "guidance": Guidance.instruct(),
        "text": {"top_p": 0.95},
    },
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_they_are_those_of_the_scores(options: dict):
    """``output_scores`` returns what transformers' warpers leave of the logits. Forced tokens have 0."""
    scored = {**options, "return_dict_in_generate": True, "output_scores": True}
    out = fastdecode.generate(MODEL, torch.tensor([PROMPT]), deterministic=True, **scored)
    handle = Engine(MODEL, deterministic=True).submit(PROMPT, **options)
    assert torch.equal(handle.result(), out.sequences)
    tokens, scores = torch.tensor(handle.tokens), torch.cat(out.scores)
    forced = (scores == 0).all(1)
    expected = scores.float().log_softmax(1).gather(1, tokens[:, None])[:, 0].masked_fill(forced, 0.0)
    assert len(handle.logprobs) == len(handle.tokens) > 10
    torch.testing.assert_close(torch.tensor(handle.logprobs), expected, atol=2e-4, rtol=1e-4)
    assert min(handle.logprobs) < -0.1


def test_the_slow_path_with_processors_has_the_same():
    options = WAYS["picture"]
    made = engine(deterministic=True)
    plain = made.submit(TEXT, **options)
    recorded = made.submit(TEXT, **options, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(plain.result(), recorded.result().sequences)
    torch.testing.assert_close(torch.tensor(plain.logprobs), torch.tensor(recorded.logprobs), atol=2e-4, rtol=1e-4)


def test_the_likeliest_token_is_certain():
    handle = engine().submit(TEXT, max_new_tokens=9, do_sample=False, multimodal_generation_mode="text-only")
    handle.result()
    assert handle.logprobs == [0.0] * len(handle.tokens)


def test_preempted_and_interrupted_requests_keep_them(monkeypatch: pytest.MonkeyPatch):
    alone = engine(deterministic=True)
    expected = [alone.submit(TEXT, **{**WAYS["both, instruct"], "seed": n}) for n in range(3)]
    alone.run()
    crowded = engine(deterministic=True, pages=30)
    handles = [crowded.submit(TEXT, **{**WAYS["both, instruct"], "seed": n}) for n in range(3)]
    commit, calls = EngineCore.commit, [0]

    def interrupted(self, step):
        calls[0] += 1
        found = commit(self, step)
        if calls[0] % 60 == 0:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(EngineCore, "commit", interrupted)
    interrupts = 0
    while not all(handle.done for handle in handles):
        try:
            crowded.run()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 1
    assert crowded.statistics().preemptions > 0
    for one, other in zip(handles, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs
        assert len(one.logprobs) == len(one.tokens)


def test_they_grow_with_the_tokens():
    handle = engine().submit(TEXT, **WAYS["text"])
    for event in handle:
        if isinstance(event, fastdecode.Tokens):
            assert len(handle.logprobs) == len(handle.tokens)
