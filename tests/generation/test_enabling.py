"""`enable` and `disable`: models that are copied, pickled and saved stay enabled."""

import copy
import inspect
import io
import pickle
from types import MethodType

import pytest
import torch
from models_for_tests import BOS, text_ids, tiny_model
from transformers import LogitsProcessorList, MambaConfig, MambaForCausalLM

import fastdecode
from fastdecode.generation import api

PROMPT = torch.tensor([[BOS, *text_ids(tiny_model(0), 0, 3)]])
OPTIONS = {"max_new_tokens": 5, "do_sample": False}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def twice(model):
    return saved(copy.deepcopy(pickle.loads(pickle.dumps(model))))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The models that fastdecode decoded."""
    found = []

    def listening(call, *rest):
        found.append(call.model)
        return decode(call, *rest)

    decode = api.decode_call
    monkeypatch.setattr(api, "decode_call", listening)
    return found


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, saved, twice])
def test_copies_stay_enabled(way, decoded):
    model = fastdecode.enable(tiny_model(0))
    expected = tiny_model(0).generate(PROMPT, **OPTIONS)
    twin = way(model)
    assert twin.generate.__self__ is twin
    assert torch.equal(twin.generate(PROMPT, **OPTIONS), expected)
    assert decoded == [twin]
    twin.lm_head.weight.data.neg_()  # it decodes its own weights
    other = twin.generate(PROMPT, **OPTIONS)
    assert not torch.equal(other, expected)
    assert torch.equal(model.generate(PROMPT, **OPTIONS), expected)
    assert fastdecode.disable(twin) is twin
    assert "generate" not in vars(twin)
    assert torch.equal(twin.generate(PROMPT, **OPTIONS), other)
    assert len(decoded) == 3  # disabled: transformers decoded the last
    assert "generate" not in vars(way(fastdecode.disable(model)))


def test_disable_restores_what_was_there():
    model = tiny_model(0)
    model.generate = MethodType(lambda self, *args, **kwargs: "of the caller", model)
    fastdecode.enable(fastdecode.enable(model))
    assert torch.is_tensor(model.generate(PROMPT, **OPTIONS))
    assert fastdecode.disable(fastdecode.disable(model)).generate() == "of the caller"


def test_arguments_by_position():
    model = fastdecode.enable(tiny_model(0))
    without = tiny_model(0).generate(PROMPT, **OPTIONS)[0, 4:5]
    processors = LogitsProcessorList([lambda ids, scores: scores.index_fill(1, without, -torch.inf)])
    expected = tiny_model(0).generate(PROMPT, None, processors, **OPTIONS)
    assert not torch.equal(expected, tiny_model(0).generate(PROMPT, **OPTIONS))
    assert torch.equal(model.generate(PROMPT, None, processors, **OPTIONS), expected)
    with pytest.raises(TypeError, match="multiple values for argument 'logits_processor'"):
        model.generate(PROMPT, None, processors, logits_processor=processors)
    with pytest.raises(TypeError, match="positional arguments"):
        model.generate(*[None] * 30)


def test_it_looks_like_generate():
    found = fastdecode.enable(tiny_model(0)).generate
    assert list(inspect.signature(found).parameters)[:2] == ["inputs", "generation_config"]
    assert found.__doc__ == fastdecode.generate.__doc__
    assert found.__func__ is fastdecode.generate


def test_another_model():
    other = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(TypeError, match=r"^MambaForCausalLM keeps a state of the sequence besides keys and values"):
        fastdecode.enable(other)
