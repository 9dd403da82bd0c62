"""What a caller's code between steps is given."""

import torch
from transformers import StoppingCriteriaList

from fastdecode.engine.callbacks import Callbacks


def test_criteria_get_tokens_on_the_device_of_the_prompt():
    """As from transformers: a criterion compares them with tensors of its own. The meta device stands for a GPU."""
    asked = []

    def stops(tokens, scores):
        asked.append((tokens.device.type, tuple(tokens.shape)))
        return len(asked) > 1

    prompts = torch.tensor([[4, 5, 6]])
    callbacks = Callbacks(prompts, 2, 0, stopping=StoppingCriteriaList([stops]), device=torch.device("meta"))
    assert callbacks.step([7]) == [False]
    assert callbacks.step([8]) == [True]
    assert asked == [("meta", (1, 4)), ("meta", (1, 5))]
    assert callbacks.tokens.tolist() == [[4, 5, 6, 7, 8]]
