"""CM3Leon's contrastive decoding, against log-probabilities that are compared by hand."""

from __future__ import annotations

import re

import pytest
import torch
from family_models import tiny_janus
from models_for_tests import BOS, drawing_model, padded, text_ids, whole_logits
from scipy import stats

import fastdecode
from fastdecode import Guidance, Schedule, Stream, ops
from fastdecode.decoder import Decoder
from fastdecode.engine.batch import Batch
from fastdecode.engine.core import EngineCore
from fastdecode.engine.processed import sample_processed
from fastdecode.generation.api import prepare_call
from fastdecode.models.families import vocabulary_of

MODEL = drawing_model(5, resolution=16)
V = vocabulary_of(MODEL)
N = V.image_length
CODES = sorted(V.image_ids)
WORDS = sorted(set(range(V.size)) - V.image_ids)
PROMPTS = [[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((9, 30, 3))]
MASKED = [BOS, *text_ids(MODEL, 7, 2)]
IMAGE_ONLY = {"multimodal_generation_mode": "image-only"}
FAMILY_WISE = 1e-4
"""Chance that any of these tests fails though nothing is wrong."""

KINDS = {
    "usual": Guidance.contrastive(),
    "wide": Guidance.contrastive(0.02, 6),
    "mask": Guidance.contrastive(0.05, 3, MASKED),
    "only the likeliest": Guidance.contrastive(1.0, 1),
}


def scores(ids: list[int], other: list[int], allowed: list[int], alpha: float, k: int) -> dict[int, float]:
    """log p - log q of the tokens that may come, by their definition: p of ``ids``, q of ``other``."""
    log_p = whole_logits(MODEL, ids)[-1, allowed].double().log_softmax(0)
    log_q = whole_logits(MODEL, other)[-1, allowed].double().log_softmax(0)
    kth = log_p.exp().sort(descending=True).values[min(k, len(allowed)) - 1]
    return {
        token: float(p - q) for token, p, q in zip(allowed, log_p, log_q, strict=True) if p.exp() >= alpha * kth - 1e-12
    }


def picture_by_hand(prompt: list[int], guidance: Guidance) -> list[int]:
    """The tokens of the picture of best scores, one by one."""
    drawn: list[int] = []
    start = list(guidance.streams[1].ids) or [BOS]
    for _ in range(N):
        found = scores([*prompt, V.begin_image, *drawn], [*start, V.begin_image, *drawn], CODES, *guidance.contrast)
        drawn.append(max(sorted(found), key=found.__getitem__))
    return [V.begin_image, *drawn, V.end_image]


@pytest.mark.parametrize("name", KINDS)
def test_greedy_pictures(name: str):
    out = fastdecode.generate(MODEL, **padded(PROMPTS), **IMAGE_ONLY, guidance=KINDS[name])
    for prompt, row in zip(PROMPTS, out[:, 31:].tolist(), strict=True):
        assert row == picture_by_hand(prompt, KINDS[name])


def test_the_restriction_matters():
    free = Guidance((Stream("full"), Stream("unconditional")), (1.0, -1.0))
    found = [fastdecode.generate(MODEL, **padded(PROMPTS), **IMAGE_ONLY, guidance=g) for g in (*KINDS.values(), free)]
    assert len({tuple(out.flatten().tolist()) for out in found}) == len(found)
    plain = fastdecode.generate(MODEL, **padded(PROMPTS), **IMAGE_ONLY)
    strict = fastdecode.generate(MODEL, **padded(PROMPTS), **IMAGE_ONLY, guidance=KINDS["only the likeliest"])
    assert torch.equal(plain, strict)  # alpha 1 and k 1 leave nothing but the likeliest token


def test_greedy_text():
    guidance, prompt = Guidance.contrastive(0.1, 4, everywhere=True), PROMPTS[0]
    out = fastdecode.generate(
        MODEL, torch.tensor([prompt]), guidance=guidance, max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    allowed = [i for i in WORDS if i != MODEL.generation_config.eos_token_id]
    ids = list(prompt)
    for _ in range(12):
        found = scores(ids, [prompt[-1], *ids[len(prompt) :]], allowed, 0.1, 4)
        ids.append(max(sorted(found), key=found.__getitem__))
    assert out[0].tolist() == ids


DRAWS = 5000
COUNTED = [
    (0.05, 4, {"temperature": 2.0}),
    (0.3, 10, {"temperature": 1.0, "top_k": 6}),
    (0.01, 6, {"temperature": 3.0, "top_p": 0.95}),
]


@pytest.mark.parametrize(("alpha", "k", "settings"), COUNTED)
def test_counts(alpha: float, k: int, settings: dict):
    """Of the first token of a picture."""
    prompt = [*PROMPTS[2], V.begin_image]
    found = scores(prompt, [BOS, V.begin_image], CODES, alpha, k)
    tokens = sorted(found, key=found.__getitem__, reverse=True)[: settings.get("top_k", len(found))]
    p = torch.tensor([found[t] / settings.get("temperature", 1.0) for t in tokens]).softmax(0)
    p = p[p.cumsum(0) - p < settings.get("top_p", 1.0)]
    p = (p / p.sum()).tolist()
    out = fastdecode.generate(
        MODEL,
        torch.tensor([prompt]),
        **IMAGE_ONLY,
        guidance=Guidance.contrastive(alpha, k),
        num_return_sequences=DRAWS,
        seed=6,
        do_sample=True,
        max_new_tokens=N + 1,
        image=settings,
        stopping_criteria=[lambda ids, scores: torch.ones(len(ids), dtype=torch.bool)],
    )
    counts = torch.bincount(out[:, len(prompt)], minlength=V.size)
    assert counts[tokens[: len(p)]].sum() == DRAWS
    observed, expected = [0.0], [0.0]
    for token, chance in zip(tokens, p, strict=False):
        observed.append(float(counts[token]))
        expected.append(chance * DRAWS)
        if expected[-1] < 5:  # too rare to be counted alone
            observed[0] += observed.pop()
            expected[0] += expected.pop()
    used = [i for i, e in enumerate(expected) if e > 0]
    assert len(used) > 2
    pvalue = stats.chisquare([observed[i] for i in used], [expected[i] for i in used], sum_check=False).pvalue
    assert pvalue > FAMILY_WISE / len(COUNTED)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4},
        {"sequence_bias": [[[CODES[3]], 4.0], [[CODES[9]], -3.0]]},
        {"image": {"top_p": 0.8, "temperature": 1.5}},
    ],
    ids=str,
)
def test_processors_in_pytorch_get_the_same_tokens(options: dict):
    """Where logits are mixed in PyTorch, for a processor of the caller or to be returned."""
    given = {**padded(PROMPTS), **IMAGE_ONLY, "guidance": KINDS["wide"], "do_sample": True, "seed": [1, 2, 3]}
    fused = fastdecode.generate(MODEL, **given, **options)
    asked = fastdecode.generate(MODEL, **given, **options, logits_processor=[lambda ids, scores: scores + 0.0])
    assert torch.equal(asked, fused)
    kept = fastdecode.generate(MODEL, **given, **options, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(kept.sequences, fused)
    if not options:
        begun = [*PROMPTS[0], V.begin_image]
        found = scores(begun, [BOS, V.begin_image], CODES, 0.02, 6)
        assert set(torch.isfinite(kept.scores[1][0]).nonzero().flatten().tolist()) == set(found)


def test_invalid_logits_are_told_where_logits_are_mixed_in_pytorch():
    model = drawing_model(5, resolution=16)
    with torch.no_grad():
        model.lm_head.weight[CODES[2]] = torch.nan
    given = {**padded(PROMPTS[:1]), **IMAGE_ONLY, "guidance": KINDS["usual"]}
    for more in ({}, {"logits_processor": [lambda ids, scores: scores + 0.0]}):
        with pytest.raises(RuntimeError, match="logits"):
            fastdecode.generate(model, **given, **more)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, None])
def test_what_is_no_number_in_the_other_stream_is_told_there_too(wrong: float | None):
    """Also of a token that the contrast excludes, as in the sampler."""
    ids = torch.tensor([[*PROMPTS[0], V.begin_image]])
    own = {"guidance": Guidance.contrastive(0.1, 1), **IMAGE_ONLY}
    call = prepare_call(MODEL, ids, {"max_new_tokens": N + 1}, own | {"seed": 1})
    [s] = call.sequences
    logits = torch.zeros(2, V.size)
    logits[0, CODES[0]] = 9.0
    if wrong is not None:
        logits[1, CODES[5]] = wrong
    [request] = call.requests(lambda tokens: None)
    request.callbacks.processors = [lambda ids, scores: scores + 0.0]
    s.rows = [0, 1]
    tokens, statuses, _ = sample_processed(request, logits)
    expected = ([CODES[0]], [ops.STATUS_OK]) if wrong is None else ([-1], [ops.STATUS_INVALID_LOGITS])
    assert (tokens, statuses) == expected


def test_requests_of_all_kinds_in_one_engine():
    """Each gets the tokens that it gets alone, whatever the others compare."""
    guidances = [None, KINDS["wide"], 3.0, KINDS["mask"], Guidance.instruct(), KINDS["wide"], KINDS["usual"]]
    decoder = Decoder(MODEL, deterministic=True)
    engine = EngineCore(decoder, decoder.new_pool(page_slots=4))
    calls, expected, parts = [], [], set()
    for i, guidance in enumerate(guidances):
        ids = torch.tensor([PROMPTS[i % 3]])
        own = {"guidance": guidance, "seed": i, "deterministic": True, **IMAGE_ONLY}
        expected.append(fastdecode.generate(MODEL, ids, do_sample=True, **own))
        calls.append(prepare_call(MODEL, ids, {"do_sample": True}, own))
        engine.add(*calls[-1].requests())
    before = Batch.sample

    def seen(self, logits):
        parts.add(tuple(contrast for _, contrast in self.draws.parts))
        return before(self, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "sample", seen)
        while engine.step():
            pass
    for call, wanted in zip(calls, expected, strict=True):
        assert torch.equal(call.output(), wanted)
    assert (None, (0.02, 6), (0.05, 3), (0.1, 1)) in parts


def test_a_family_with_a_stream_of_its_own():
    model = tiny_janus()
    streams = (Stream("full"), Stream("blank"))
    for prompt in ([[1, 20, 21, 22]], [[1, 30, 31]]):
        ids = torch.tensor(prompt)
        guidance = Guidance(streams, (1.0, -1.0), contrast=(0.1, 5))
        found = fastdecode.generate(model, ids, **IMAGE_ONLY, guidance=guidance, deterministic=True)
        single = Guidance(streams, (1.0, -1.0), contrast=(1.0, 1))
        plain = fastdecode.generate(model, ids, **IMAGE_ONLY, deterministic=True)
        assert torch.equal(plain, fastdecode.generate(model, ids, **IMAGE_ONLY, guidance=single, deterministic=True))
        assert not torch.equal(plain, found)


def test_explain():
    given = {**padded(PROMPTS[:1]), **IMAGE_ONLY}
    found = fastdecode.explain(MODEL, **given, guidance=Guidance.contrastive(0.02, 22, MASKED))
    assert found.streams == [["+1 x full, 11 tokens", "-1 x prompt, 4 tokens"]]
    [said] = found.contrasts
    assert said == "tokens that are at least 0.02 x as likely in the full stream as the 22nd likeliest"
    assert f"guided tokens     {said}" in str(found)
    usual = fastdecode.explain(MODEL, **given, guidance=Guidance.contrastive())
    assert usual.contrasts == ["tokens that are at least 0.1 x as likely in the full stream as the likeliest"]
    for k, shown in ((3, "3rd"), (11, "11th"), (101, "101st"), (112, "112th")):
        assert f"the {shown} likeliest" in str(fastdecode.explain(MODEL, **given, guidance=Guidance.contrastive(k=k)))
    plain = fastdecode.explain(MODEL, **given, guidance=2.0)
    assert plain.contrasts == []
    assert "guided tokens" not in str(plain)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance.contrastive(1.5), "alpha of a Guidance's contrast is 1.5: give a number from 0 to 1"),
        (lambda: Guidance.contrastive("a"), "alpha of a Guidance's contrast is 'a', which is not a finite number"),
        (lambda: Guidance.contrastive(k=0), "k of a Guidance's contrast is 0: give a whole number of at least 1"),
        (lambda: Guidance.contrastive(k=2.5), "k of a Guidance's contrast is 2.5: give a whole number"),
        (lambda: Guidance.contrastive(k=True), "k of a Guidance's contrast is True: give a whole number"),
        (lambda: Guidance.contrastive(negative_prompt_ids=[]), "negative_prompt_ids has no token"),
        (lambda: Guidance(contrast=3), r"contrast of Guidance is 3: give a pair (alpha, k), or None"),
        (lambda: Guidance(contrast=(0.1, 2)), "with a contrast compares the full sequence with another stream"),
        (
            lambda: Guidance((Stream("full"), Stream("images")), (0.0, 1.0), contrast=(0.1, 2)),
            "and the full one a weight that is not 0",
        ),
        (
            lambda: Guidance((Stream("full"), Stream("images")), (Schedule.linear(1, 2), -1.0), contrast=(0.1, 2)),
            "a Guidance with a contrast has a Schedule among its weights: give numbers",
        ),
    ],
)
def test_wrong_contrasts_are_refused(build, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_a_prompt_that_leaves_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="compares the full sequence with a stream of the same tokens"):
        fastdecode.generate(MODEL, torch.tensor([[BOS]]), **IMAGE_ONLY, guidance=Guidance.contrastive())
    out = fastdecode.generate(MODEL, torch.tensor([[BOS]]), **IMAGE_ONLY, guidance=Guidance.contrastive(0.1, 3, MASKED))
    assert out.shape == (1, 1 + N + 2)
