"""Language models inside other models (Janus, Emu3, LLaVA): logits are those of transformers' own modules."""

from __future__ import annotations

import re

import pytest
import torch
from family_models import JANUS_CODES, TEXT, tiny_emu3, tiny_janus, tiny_llava
from transformers import LlavaConfig, LlavaForConditionalGeneration, PhiConfig

from fastdecode.decoder import Decoder, decoder_for
from fastdecode.decoder.alterations import Fingerprint, needs_forward
from fastdecode.decoder.classes import classes_of, inner_of
from fastdecode.decoder.forward import ForwardDecoder
from fastdecode.decoder.triton_step import TritonStep
from fastdecode.models.quantise import quantise

TOKENS = TEXT["vocab_size"]
MODELS = {
    "janus": tiny_janus,
    "emu3": tiny_emu3,
    "llava of llama": lambda: tiny_llava("llava"),
    "llava of mistral": lambda: tiny_llava("llava", "mistral"),
    "llava_next of qwen2": lambda: tiny_llava("llava_next", "qwen2"),
}


def rows_of(model, lengths: list[int], codes: int) -> list[list[int]]:
    """Random prompts; the last ``codes`` tokens are image tokens behind those of the language model."""
    generator = torch.Generator().manual_seed(len(lengths))
    rows = [torch.randint(8, TOKENS, (n,), generator=generator).tolist() for n in lengths]
    return [
        [*row, *(TOKENS + torch.randint(0, JANUS_CODES, (codes,), generator=generator)).tolist()] if codes else row
        for row in rows
    ]


def found(decoder, rows: list[list[int]], steps: int) -> torch.Tensor:
    """(steps, rows, vocab) float64: the logits after each of the last ``steps`` tokens."""
    cache = decoder.new_cache()
    decoder.prefill(cache, [row[:-steps] for row in rows])
    logits = []
    for step in range(-steps, 0):
        fed = torch.tensor([row[step] for row in rows])
        logits.append(decoder.logits(decoder.step(cache, fed)).double())
    return torch.stack(logits)


@torch.inference_mode()
def expected(model, rows: list[list[int]], steps: int) -> torch.Tensor:
    """The same by transformers' modules, each row by itself."""
    columns = []
    for row in rows:
        ids = torch.tensor([row])
        text, codes = ids[ids < TOKENS][None], ids[ids >= TOKENS][None] - TOKENS
        x = model.get_input_embeddings()(text)
        if codes.numel():
            x = torch.cat([x, model.prepare_embeddings_for_image_generation(codes)], 1)
        hidden = inner_of(model)(inputs_embeds=x).last_hidden_state[0, -steps:]
        logits = model.lm_head(hidden)
        if hasattr(model.model, "generation_head"):
            logits = torch.cat([logits, model.model.generation_head(hidden)], -1)
        columns.append(logits.double())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_modules(name: str):
    model = MODELS[name]()
    rows = rows_of(model, [9, 30, 4], codes=6 if name == "janus" else 0)
    decoder = decoder_for(model)
    assert isinstance(decoder, Decoder)
    assert decoder.uses_cpu_step
    wanted = expected(model, rows, 3)
    assert (found(decoder, rows, 3) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("altered", ["the model", "what is between", "nothing"])
@pytest.mark.parametrize("name", ["janus", "emu3", "llava of llama"])
def test_logits_of_the_models_own_forward(name: str, altered: str):
    model, calls = MODELS[name](), []
    module = {"the model": model, "what is between": model.model}.get(altered)
    if module is not None:
        module.register_forward_hook(lambda *given: calls.append(1))
        assert "has a forward hook" in decoder_for(model).forward_reason
    rows = rows_of(model, [9, 12, 4], codes=6 if name == "janus" else 0)
    decoder = ForwardDecoder(model)
    assert decoder.whole == (module is not None)
    wanted = expected(model, rows, 3)
    assert (found(decoder, rows, 3) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert bool(calls) == (module is not None)
    assert not inner_of(model)._forward_hooks


def test_text_and_image_tokens_in_one_step():
    model = tiny_janus()
    rows = [[9, 10, 11, 12], [9, 10, 11, TOKENS + 7], [9, TOKENS, TOKENS + JANUS_CODES - 1, TOKENS + 3]]
    together = found(Decoder(model, deterministic=True), rows, 1)
    for number, row in enumerate(rows):
        alone = found(Decoder(model, deterministic=True), [row], 1)
        assert torch.equal(alone[:, 0], together[:, number])


@torch.inference_mode()
def test_only_what_the_spans_name_is_computed():
    model = tiny_janus()
    decoder = Decoder(model)
    cache = decoder.new_cache()
    decoder.prefill(cache, [[9, 10, 11]])
    hidden = decoder.step(cache, torch.tensor([12]))
    whole = decoder.logits(hidden).clone()
    for spans in ([(3, 20)], [(TOKENS, TOKENS + JANUS_CODES)], [(5, 9), (TOKENS - 2, TOKENS + 4)]):
        decoder.logits(hidden).fill_(torch.nan)
        part = decoder.logits(hidden, spans)
        for low, high in spans:
            assert torch.equal(part[:, low:high], whole[:, low:high])
        assert part[:, 25:30].isnan().all()


@pytest.mark.parametrize("where", ["generation_head", "generation_aligner", "generation_embeddings"])
def test_hooks_of_the_modules_for_image_tokens_are_called(where: str):
    model = tiny_janus()
    rows = rows_of(model, [9], codes=6)
    before = found(Decoder(model), rows, 3)
    getattr(model.model, where).register_forward_hook(lambda module, args, output: output * 2)
    after, wanted = found(Decoder(model), rows, 3), expected(model, rows, 3)
    assert (after - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not torch.allclose(before, after)


def test_bfloat16_is_as_near_to_the_exact_logits_as_transformers():
    model = tiny_janus()
    rows = rows_of(model, [9, 30, 4], codes=6)
    exact = expected(model.double(), rows, 4)
    low = model.bfloat16()
    errors = [
        (logits - exact).square().mean().sqrt() for logits in (found(Decoder(low), rows, 4), expected(low, rows, 4))
    ]
    assert errors[0] <= errors[1]


def test_small_weights_of_a_nested_language_model():
    model = quantise(tiny_emu3(hidden_size=64, intermediate_size=128), "int8")
    assert inner_of(model).layers[1].mlp.up_proj.weight.small.type.startswith("int8")
    rows = rows_of(model, [9, 5], 0)
    assert Decoder(model).uses_cpu_step
    exact = expected(tiny_emu3(hidden_size=64, intermediate_size=128), rows, 3)
    assert (found(Decoder(model), rows, 3) - exact).abs().max() < 0.1 * exact.abs().max()


def test_names_of_what_is_altered_lead_to_the_module():
    model = tiny_emu3()
    model.model.text_model.layers[1].register_forward_hook(lambda *given: None)
    assert decoder_for(model).forward_reason == "model.text_model.layers.1 has a forward hook"


def test_a_language_model_that_is_not_known():
    phi = PhiConfig(**{name: TEXT[name] for name in TEXT if name != "num_key_value_heads"})
    vision = tiny_llava("llava").config.vision_config
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=phi))
    with pytest.raises(TypeError, match=re.escape("is a PhiModel, which fastdecode does not decode")):
        classes_of(model)


@pytest.mark.parametrize("name", ["janus", "emu3"])
def test_steps_by_single_operations(name: str):
    """As on a GPU, where each operation is a kernel; here by their references."""
    model = MODELS[name]()
    rows = rows_of(model, [9, 30, 4], codes=6 if name == "janus" else 0)
    decoder = Decoder(model)
    decoder._take_steps_by(TritonStep(inner_of(model), decoder.swin, "reference"))
    assert decoder.uses_triton_step
    assert decoder.uncaptured_reason is None
    wanted = expected(model, rows, 3)
    assert (found(decoder, rows, 3) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    places = {address for _, address, _ in decoder.beside_layers()}
    if name == "janus":
        own = [*model.model.generation_head.parameters(), *model.model.generation_aligner.parameters()]
        assert {parameter.data_ptr() for parameter in own} <= places
        model.model.generation_head.register_forward_hook(lambda *given: None)
        assert "the head of image tokens" in Decoder.uncaptured_reason.fget(decoder)


def test_text_and_image_rows_by_single_operations():
    model = tiny_janus()
    rows = [[9, 10, 11, 12], [9, 10, 11, TOKENS + 7], [9, TOKENS, TOKENS + JANUS_CODES - 1, TOKENS + 3]]
    decoder = Decoder(model)
    decoder._take_steps_by(TritonStep(inner_of(model), decoder.swin, "reference"))
    wanted = expected(model, rows, 1)
    assert (found(decoder, rows, 1) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("where", ["generation_head", "generation_aligner", "generation_embeddings", ""])
def test_an_engine_sees_that_a_module_around_the_layers_has_changed(where: str):
    """Janus' modules for image tokens, and the module between the model and its language model."""
    model = tiny_janus()
    module = getattr(model.model, where) if where else model.model
    before = Fingerprint(model, weights=True)
    assert before.change() is None
    handle = module.register_forward_hook(lambda *given: None)
    assert before.change() is not None
    handle.remove()
    assert before.change() is None
    if where:
        with torch.no_grad():
            next(module.parameters()).mul_(2)
        assert "its modules, their hooks, adapters or weights are others" in before.change()


def test_image_tokens_in_another_dtype_or_on_another_device():
    model = tiny_janus()
    model.model.generation_head.double()
    assert decoder_for(model).forward_reason == "its weights are float64"
    model = tiny_janus()
    model.model.generation_head.to("meta")
    assert "its weights are on cpu, meta" in needs_forward(model)
