"""What an `Engine` refuses: at once, and by name."""

import re

import pytest
import torch
from engines import BLOCKS, PICTURE, SHORT, TEXT, engine
from models_for_tests import tiny_model
from PIL import Image

from fastdecode import Engine, Guidance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": None}, "no prompt: give text, what the processor returned, or tokens"),
        ({"inputs": torch.full((2, 5), 20)}, "submit takes one prompt, and got 2: submit each by itself"),
        ({"inputs": 3.5}, "the prompt is of type float: give text, what the processor returned, or tokens"),
        ({"inputs": ["a", "b"]}, "the prompt is of type list: give text"),
        ({"inputs": [1.5]}, "the prompt is of type list: give text, what the processor returned, or tokens (integers)"),
        ({"inputs": b"x"}, "the prompt is bytes: give text"),
        ({"input_ids": torch.tensor([[5]])}, "input_ids was given twice: the prompt as text, and as an option"),
        ({"images": "no.png"}, "images 'no.png': there is no such file"),
        ({"images": [1]}, "images[0] is an int: give a PIL picture, the path of a file, or an array"),
        (
            {"inputs": "<image><image>x", "images": [Image.new("RGB", (64, 64))]},
            "the prompt has 2 <image>, but 1 pictures",
        ),
        ({"inputs": "<image>x"}, "the prompt has 1 <image>, but 0 pictures"),
        ({"inputs": [5, 9], "images": [1]}, "images were given without a text"),
        ({"inputs": {"input_ids": torch.tensor([[5]])}, "input_ids": 3}, "input_ids was given twice"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: submit takes one prompt and returns one handle"),
        ({"kv_pool": 5}, "kv_pool: an engine has pages of its own"),
        ({"progress": True}, "progress: iterate over the handle instead"),
        ({"streamer": "mine"}, "streamer: iterate over the handle instead"),
        ({"deterministic": True}, "deterministic: this engine has deterministic=False for all its requests"),
        ({"priority": 1.5}, "priority=1.5: give a whole number"),
        ({"priority": True}, "priority=True: give a whole number"),
        ({"num_beams": 3}, "num_beams=3 asks for beam search"),
        ({"seed": 2**70}, "does not fit 64 bits"),
        ({"max_new_tokens": 9, "suppress_tokens": list(range(BLOCKS.config.vocab_size))}, "leave"),
        (
            {"multimodal_generation_mode": "image-only", "guidance": Guidance.five_way([0], [5], against=1.0)},
            "the request needs 5 streams at once, and the engine has max_rows=3",
        ),
        (
            {"inputs": [5] * 400, "multimodal_generation_mode": "text-only"},
            "the request can never fit: its 400 tokens alone take 13 pages of 32, and the engine has 12",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals_are_at_once_and_by_name(arguments: dict, message: str):
    made = engine(max_rows=3, pages=12)
    arguments = {"inputs": TEXT, **arguments}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        made.submit(**arguments)
    assert made.statistics().submitted == 0
    assert made.submit(TEXT, **SHORT).result() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pages": 0}, "pages=0: give a whole number of at least 1"),
        ({"pages": 2.5}, "pages=2.5: give a whole number"),
        ({"pages": True}, "pages=True: give a whole number"),
        ({"max_rows": -1}, "max_rows=-1: give a whole number"),
        ({"deterministic": "no"}, "deterministic='no': give True or False"),
    ],
)
def test_an_engine_that_cannot_be_made(options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        engine(**options)


def test_models_that_cannot():
    with pytest.raises(TypeError, match="fastdecode decodes"):
        Engine(torch.nn.Linear(2, 2))
    model = tiny_model(1)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match="deterministic=True needs steps of the C"):
        Engine(model, deterministic=True)
    with pytest.raises(ValueError, match="a prompt given as text needs a processor"):
        Engine(tiny_model(1)).submit("hello")


def test_guidance_that_does_not_fit_alone_is_refused():
    made = engine(pages=5)
    with pytest.raises(ValueError, match=r"^the request can never fit: .* 3 streams .* and the engine has 5$"):
        made.submit(
            "<image>" + TEXT, images=[Image.new("RGB", (64, 64))], **{**PICTURE, "guidance": Guidance.instruct()}
        )
