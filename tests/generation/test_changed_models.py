"""What an engine was made for is what it decodes: changed weights, torch's modes, and the config of a wrapper."""

import pytest
import torch
from models_for_tests import BOS, text_ids, tiny_model, tiny_processor
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

import fastdecode
from fastdecode.generation.unsupported import Unsupported

PROMPT = [BOS, *text_ids(tiny_model(0), 0, 40)]
LINEAR = nn.functional.linear


class Negated(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return -found if function is LINEAR else found


def greedy(engine: fastdecode.Engine) -> torch.Tensor:
    return engine.submit(PROMPT, max_new_tokens=8).result()


def load_others(model):
    model.load_state_dict(tiny_model(1).state_dict())


def train(model):
    model.model.norm.weight.sum().backward()
    torch.optim.SGD([model.model.norm.weight], lr=0.5).step()


@pytest.mark.parametrize("change", [load_others, train])
def test_an_engine_refuses_weights_that_were_written_to(change):
    """It would mix them with copies of the old ones, and with keys and values that it has kept."""
    model = tiny_model(0)
    engine = fastdecode.Engine(model)
    greedy(engine)
    greedy(engine)
    change(model)
    with pytest.raises(RuntimeError, match="adapters or weights are others\\): make another Engine"):
        greedy(engine)
    expected = fastdecode.generate(model, torch.tensor([PROMPT]), max_new_tokens=8)
    assert torch.equal(greedy(fastdecode.Engine(model)), expected)


def test_an_engine_of_inference_tensors():
    with torch.inference_mode():
        model = tiny_model(0)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    assert model.lm_head.weight.is_inference()
    engine = fastdecode.Engine(model)
    assert torch.equal(greedy(engine), greedy(engine))


def test_an_engine_decodes_in_the_mode_of_torch_that_it_was_made_in():
    model = tiny_model(0)
    outside = fastdecode.Engine(model)
    plain = greedy(outside)
    waiting = outside.submit(PROMPT, max_new_tokens=8)
    with Negated():
        expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=8)
        assert not torch.equal(expected, plain)
        for use in (lambda: outside.submit(PROMPT), waiting.result, outside.run):
            with pytest.raises(RuntimeError, match=r"^torch is in a Negated, and this engine was made where it was in"):
                use()
        inside = fastdecode.Engine(model)
        assert torch.equal(greedy(inside), expected)
        with pytest.raises(RuntimeError, match=r"^torch is in a Negated, which another thread would not be"):
            inside.start()
        later = inside.submit(PROMPT, max_new_tokens=8)
    with pytest.raises(
        RuntimeError, match=r"^torch is in no mode, and this engine was made where torch is in a Negated"
    ):
        later.result()
    with Negated():
        assert torch.equal(later.result(), expected)
    assert torch.equal(waiting.result(), plain)


class PeftModel(nn.Module):
    """As PEFT's: it finds what it lacks in the model within, and its generation_config may be one of its own."""

    __module__ = "peft.peft_model"

    def __init__(self, model: nn.Module, kind: str = "LORA") -> None:
        super().__init__()
        self.base_model, self.active_adapters = model, ["default"]
        self.peft_config = {"default": type("Config", (), {"peft_type": type("Kind", (), {"value": kind})})}

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)


def test_the_generation_config_of_a_wrapper():
    ids = torch.tensor([PROMPT])
    for use in (fastdecode.generate, lambda model, ids: fastdecode.Engine(model).submit(ids).result()):
        wrapper = PeftModel(tiny_model(0))
        wrapper.generation_config = GenerationConfig(max_new_tokens=3)
        assert use(wrapper, ids).shape == (1, len(PROMPT) + 3)


def test_options_of_ours_in_the_config_of_a_wrapper():
    wrapper, options = PeftModel(tiny_model(0)), {"max_new_tokens": 9, "seed": 5, "do_sample": True, "top_k": 0}
    wrapper.generation_config = GenerationConfig(**options)
    found = fastdecode.Engine(wrapper, tiny_processor()).submit("w1 w2").result()
    assert torch.equal(found, fastdecode.Engine(tiny_model(0), tiny_processor()).submit("w1 w2", **options).result())


def test_adapters_around_a_model_are_refused_in_whole_sentences():
    wrapper = PeftModel(tiny_model(0), "PROMPT_TUNING")
    with pytest.raises(Unsupported, match=r"such as LoRA and IA3: call the PeftModel's own generate$") as refused:
        fastdecode.generate(wrapper, torch.tensor([PROMPT]), fallback="error")
    assert refused.value.reason.endswith("which changes more than the modules of the model")
    wrapper = PeftModel(tiny_model(0))
    wrapper.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(Unsupported, match=r"put them on the \w+ within it$"):
        fastdecode.generate(wrapper, torch.tensor([PROMPT]), fallback="error")


def test_our_own_loop_is_not_handed_over():
    model, ids = tiny_model(0), torch.tensor([PROMPT])
    options = {"num_beams": 2, "max_new_tokens": 4}
    expected = model.generate(ids, **options)
    found = fastdecode.generate(model, ids, **options, custom_generate=fastdecode.custom_generate)
    assert torch.equal(found, expected)


def test_positions_of_another_shape():
    with pytest.raises(ValueError, match=r"^position_ids is \(1, 3\); it must be \(1, 6\), as input_ids"):
        fastdecode.generate(tiny_model(0), torch.tensor([PROMPT[:6]]), position_ids=torch.arange(3)[None])


def test_a_negative_prompt_of_padding():
    negative = {"negative_prompt_ids": torch.ones(1, 2).long(), "negative_prompt_attention_mask": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=r"^negative_prompt_ids has no token"):
        fastdecode.generate(tiny_model(0), torch.tensor([PROMPT]), **negative, guidance_scale=2.0)
