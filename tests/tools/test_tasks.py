"""Training sequences: their layout, their omitted or wrong parts, and that they are reproducible."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from tools.blocks import tasks, world
from tools.blocks.configuration import IMAGE_TOKENS
from tools.blocks.tokenizer import make_processor

TOKENIZER = make_processor().tokenizer


class Pictures:
    """Stands for the picture tokenizer: every picture is its own first pixels' sum, 64 times."""

    def encode(self, pixels: torch.Tensor, return_dict: bool) -> SimpleNamespace:
        assert return_dict
        codes = pixels.flatten(1).sum(1).long().abs() % 256
        return SimpleNamespace(image_tokens=codes[:, None].expand(-1, IMAGE_TOKENS))


def make(seed: int = 3) -> tasks.Tasks:
    return tasks.Tasks(TOKENIZER, Pictures(), seed)


def only(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setattr(tasks, "SHARES", {task: 1.0})


def test_restart_makes_the_same_sequences():
    made = make()
    first = made.make(200)
    made.make(50)
    made.restart(3)
    assert made.make(200) == first
    made.restart(4)
    assert made.make(200) != first


@pytest.mark.parametrize("task", list(tasks.SHARES))
def test_layout(monkeypatch: pytest.MonkeyPatch, task: str):
    """``<s> prompt response </s>``, and the loss counts the response and ``</s>``."""
    only(monkeypatch, task)
    made = make()
    for sequence in made.make(60):
        assert sequence.ids[0] == TOKENIZER.bos_token_id
        assert sequence.ids[-1] == TOKENIZER.eos_token_id
        assert len(sequence.ids) == len(sequence.counts) <= 384
        begins = sequence.counts.index(1)
        assert all(count == 1 for count in sequence.counts[begins:])
        pictures = sequence.ids.count(made.begin)
        assert pictures == sequence.ids.count(made.end)
        codes = sum(made.first_code <= i < made.first_code + 256 for i in sequence.ids)
        assert codes == pictures * IMAGE_TOKENS
        if sequence.task in ("draw", "caption", "edit", "illustrate"):
            assert sequence.ids[begins - 1] == made.separator


def test_what_is_left_out(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "edit")
    kinds = Counter(sequence.task for sequence in make().make(2000))
    for kind, share in (("nothing", tasks.ALL_DROPPED), ("pictures", tasks.TEXT_DROPPED)):
        assert abs(kinds[kind] / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_a_scene_that_is_used_again_is_described_anew(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "draw")
    monkeypatch.setattr(tasks, "FRESH", 1)
    monkeypatch.setattr(tasks, "REUSED", 1.0)
    made = make()
    sequences = [s for s in made.make(1000) if s.task == "draw"]
    assert len(made.known) == 1
    [scene] = made.known[0][0]
    right = TOKENIZER(world.drawing_prompt(scene), add_special_tokens=False).input_ids
    said = Counter(tuple(s.ids[1 : s.counts.index(1) - 1]) for s in sequences)
    share = said[tuple(right)] / len(sequences)
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / len(sequences)) ** 0.5
    assert len(said) > 3
