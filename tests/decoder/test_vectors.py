"""Vectors in prompts: a decoder reads them in place of the embeddings of tokens."""

import pytest
import torch
from family_models import TEXT, tiny_janus, tiny_llava

from fastdecode.decoder import Decoder, decoder_for
from fastdecode.decoder import decoder as decoder_file
from fastdecode.decoder.classes import inner_of
from fastdecode.decoder.forward import ForwardDecoder
from fastdecode.decoder.vectors import embedded, numbers_of

MODELS = {"janus": tiny_janus, "llava": lambda: tiny_llava("llava")}
HOW = ["torch", "steps", "forward"]


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, TEXT["hidden_size"], generator=torch.Generator().manual_seed(seed))


def rows_with(vectors: torch.Tensor) -> list[list[int]]:
    numbers = numbers_of(vectors)
    return [[1, 9, *numbers[:5], 20, 21, 22], [1, 30, 31, 32], [1, *numbers, 40, 41, 42]]


def made(model, how: str, monkeypatch: pytest.MonkeyPatch):
    if how == "forward":
        return ForwardDecoder(model)
    monkeypatch.setattr(decoder_file, "torch_multiplies_slowly", lambda dtype: how == "steps")
    decoder = decoder_for(model)
    assert isinstance(decoder, Decoder)
    assert decoder.prefills_in_steps == (how == "steps")
    return decoder


@torch.inference_mode()
def expected(model, row: list[int], by_number: dict[int, torch.Tensor], steps: int) -> torch.Tensor:
    """(steps, tokens) float64: logits after each of the last tokens, by transformers' modules."""
    embed = model.get_input_embeddings()
    x = torch.stack([by_number[t] if t < 0 else embed(torch.tensor(t)) for t in row])
    hidden = inner_of(model)(inputs_embeds=x[None]).last_hidden_state[0, -steps:]
    return model.lm_head(hidden).double()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MODELS)
def test_logits_after_vectors_are_those_of_transformers_modules(name: str, how: str, monkeypatch: pytest.MonkeyPatch):
    model, vectors = MODELS[name](), features(8)
    rows, by_number = rows_with(vectors), dict(zip(numbers_of(vectors), vectors, strict=True))
    decoder = made(model, how, monkeypatch)
    cache = decoder.new_cache()
    decoder.prefill(cache, [row[:-2] for row in rows], vectors=by_number)
    for step in (-2, -1):
        hidden = decoder.step(cache, torch.tensor([row[step] for row in rows]))
        logits = decoder.logits(hidden)[:, : TEXT["vocab_size"]].double()
        wanted = torch.stack([expected(model, row, by_number, 2)[step] for row in rows])
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_only_equal_vectors_have_equal_numbers():
    vectors = features(6)
    assert numbers_of(vectors) == numbers_of(vectors.clone())
    assert len(set(numbers_of(vectors))) == 6
    assert max(numbers_of(vectors)) < 0
    changed = vectors.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    assert [a == b for a, b in zip(numbers_of(vectors), numbers_of(changed), strict=True)] == [True] * 3 + [
        False,
        True,
        True,
    ]
    assert numbers_of(vectors.bfloat16()) == numbers_of(vectors.bfloat16())
    assert numbers_of(vectors.t()[:, :4].t()) == numbers_of(vectors[:4])  # not contiguous


def test_embeddings_of_tokens_are_left_alone():
    table, vectors = torch.nn.Embedding(10, TEXT["hidden_size"]), features(2)
    low, high = numbers_of(vectors)
    before = table.weight.detach().clone()
    with torch.no_grad():
        x = embedded(torch.tensor([[3, low], [high, 0]]), {low: vectors[0], high: vectors[1]}, table)
    assert torch.equal(x, torch.stack([torch.stack([before[3], vectors[0]]), torch.stack([vectors[1], before[0]])]))
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("how", HOW)
def test_prompts_share_pages_only_if_their_vectors_are_equal(how: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny_llava("llava")
    decoder = made(model, how, monkeypatch)
    first, other = features(40), features(40, seed=1)
    by_number = {n: v for vectors in (first, other) for n, v in zip(numbers_of(vectors), vectors, strict=True)}
    cache = decoder.new_cache(retain=None)
    decoder.prefill(cache, [[1, *numbers_of(first), 9], [1, *numbers_of(other), 9]], vectors=by_number)
    assert not set(cache.pages(0)) & set(cache.pages(1))
    rows, known = cache.add([[1, *numbers_of(first), 9, 10], [1, *numbers_of(other)[:35], 9]])
    assert known[0] >= 32
    assert known[1] == 32
    cache.remove(rows.stop - 1, retain=False)
