"""Tokens sampled with guidance: their counts against exact probabilities from transformers' processors."""

import pytest
import torch
from models_for_tests import BOS, padded, text_ids, tiny_model
from scipy import stats
from transformers import ChameleonForConditionalGeneration, LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import fastdecode
from fastdecode.models.families import vocabulary_of

DRAWS = 5000
FAMILY_WISE = 1e-4
"""Chance that any of these tests fails though nothing is wrong."""


class Unmasked(ChameleonForConditionalGeneration):
    """What transformers' model would be if its forward did not hide image tokens."""

    def forward(self, input_ids=None, logits_to_keep=0, labels=None, return_dict=True, **kwargs):
        found = self.model(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(found.last_hidden_state[:, -logits_to_keep:]), past_key_values=found.past_key_values
        )


CASES = {
    "text": (3.0, None, {"temperature": 5.0, "top_k": 12, "top_p": 0.95}),
    "text, negative prompt": (1.8, (0, 34, 41), {"temperature": 1.5, "top_k": 0, "min_p": 0.01}),
    "picture": (3.0, None, {"temperature": 8.0, "top_k": 20, "top_p": 0.9}),
    "picture, negative prompt": (2.0, (0, 35, 29), {"temperature": 3.0, "top_k": 0}),
    "picture, weak": (0.5, None, {"temperature": 1.5, "top_k": 0, "top_p": 0.99}),
}


def probabilities(model, prompt, scale: float, other, banned, settings) -> torch.Tensor:
    """Of the next id: guidance, the ban on a modality, temperature, top-k, top-p, min-p, all by transformers."""
    ids = torch.tensor([prompt])
    chain = LogitsProcessorList([UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model, torch.tensor([other]))])
    chain.append(SuppressTokensLogitsProcessor(banned))
    chain.append(TemperatureLogitsWarper(settings["temperature"]))
    if settings.get("top_k"):
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        chain.append(MinPLogitsWarper(settings["min_p"]))
    with torch.no_grad():
        return chain(ids, model(ids).logits[:, -1]).double().softmax(-1)[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if "," in name else []) for name in CASES])
def test_counts(name: str):
    scale, negative, settings = CASES[name]
    model = tiny_model(1, cls=Unmasked)
    v = vocabulary_of(model)
    prompt = [BOS, *text_ids(model, 1, 4)]
    options = {"guidance_scale": scale, "do_sample": True, "max_new_tokens": 1, **settings}
    other, banned = (prompt[-1],), list(v.image_ids)
    if name.startswith("picture"):
        prompt.append(v.begin_image)
        options |= {"multimodal_generation_mode": "image-only", "max_new_tokens": v.image_length + 1}
        other, banned = (BOS, v.begin_image), [i for i in range(v.size) if i not in v.image_ids]
    if negative is not None:
        other = negative
        options["negative_prompt_ids"] = torch.tensor([negative])
    p = probabilities(model, prompt, scale, other, banned, settings).numpy()
    found = fastdecode.generate(model, torch.tensor([prompt]), num_return_sequences=DRAWS, seed=5, **options)
    counts = torch.bincount(found[:, len(prompt)], minlength=v.size).numpy()
    assert (counts[p == 0] == 0).all()
    likely = p * DRAWS >= 5
    observed, expected = [*counts[likely]], [*(p[likely] * DRAWS)]
    if not likely.all():
        observed.append(counts[~likely].sum())
        expected.append(p[~likely].sum() * DRAWS)
    keep = [i for i, e in enumerate(expected) if e > 0]
    assert len(keep) > 4
    pvalue = stats.chisquare([observed[i] for i in keep], [expected[i] for i in keep], sum_check=False).pvalue
    assert pvalue > FAMILY_WISE / len(CASES)


@pytest.mark.parametrize("scale", [None, 0.0, 1.6])
@pytest.mark.parametrize("seed", range(3))
def test_unrestricted_is_what_an_unmasked_model_generates(seed: int, scale: float | None):
    model = tiny_model(seed, cls=Unmasked, swin_norm=seed == 1)
    prompts = padded([[BOS, *text_ids(model, i, n)] for i, n in enumerate((3, 6, 2))])
    options = {**prompts, "guidance_scale": scale, "max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.2}
    expected = model.generate(**options)
    found = fastdecode.generate(model, **options, multimodal_generation_mode="unrestricted")
    assert torch.equal(found, expected)
    assert set(found[:, 7:].flatten().tolist()) & vocabulary_of(model).image_ids
