"""Which tokens of documents with pictures the streamers of transformers get, and when."""

import io
from contextlib import redirect_stdout

import torch
from transformers import TextIteratorStreamer, TextStreamer

import fastdecode
from fastdecode.cli.demo import GOALS, INSTRUCTIONS
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of

BLOCKS, PROCESSOR = fastdecode.load("blocks")
V = vocabulary_of(BLOCKS)
OPTIONS = {**INSTRUCTIONS, "seed": 7, "max_new_tokens": 250}


def document() -> list:
    inputs = PROCESSOR(text=GOALS[1], return_tensors="pt")
    out = fastdecode.generate(BLOCKS, **inputs, **OPTIONS)
    return fastdecode.to_documents(BLOCKS, PROCESSOR, out, start=inputs["input_ids"].shape[1])[0]


def words(text: str) -> list[str]:
    return text.split()


def test_a_text_streamer_prints_text_only():
    said = io.StringIO()
    with redirect_stdout(said):
        fastdecode.generate(
            BLOCKS,
            **PROCESSOR(text=GOALS[1], return_tensors="pt"),
            **OPTIONS,
            streamer=TextStreamer(PROCESSOR.tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    expected = [part for part in document() if isinstance(part, str)]
    assert len(expected) > 1
    assert words(said.getvalue()) == words(" ".join(expected))
    assert "IMG" not in said.getvalue()


def test_so_does_one_that_is_iterated_over():
    streamer = TextIteratorStreamer(PROCESSOR.tokenizer, skip_prompt=True, skip_special_tokens=True)
    fastdecode.generate(BLOCKS, **PROCESSOR(text=GOALS[1], return_tensors="pt"), **OPTIONS, streamer=streamer)
    text = "".join(streamer)
    assert "IMG" not in text
    assert words(text) == words(" ".join(part for part in document() if isinstance(part, str)))


def test_other_streamers_hear_a_picture_row_by_row(monkeypatch):
    steps, heard = [0], []
    step = Decoder.step

    def counting(self, *args):
        steps[0] += 1
        return step(self, *args)

    class Listener:
        def put(self, value: torch.Tensor) -> None:
            heard.append((steps[0], value.flatten().tolist()))

        def end(self) -> None:
            heard.append((steps[0], []))

    monkeypatch.setattr(Decoder, "step", counting)
    inputs = PROCESSOR(text=GOALS[1], return_tensors="pt")
    out = fastdecode.generate(BLOCKS, **inputs, **OPTIONS, streamer=Listener())
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert [token for _, tokens in heard[1:] for token in tokens] == new
    pictures = [(at, tokens[0]) for at, tokens in heard[1:-1] if tokens[0] in V.image_ids]
    waits = {at for at, _ in pictures}
    assert len(pictures) / len(waits) <= 8  # told at least once in a row of 8 tokens
    assert len(pictures) >= 128


def test_text_models_are_streamed_whole():
    prompt = {"input_ids": torch.tensor([[5, 9]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    heard = []

    class Everything(TextStreamer):
        def put(self, value: torch.Tensor) -> None:
            heard.extend(value.flatten().tolist())

    out = fastdecode.generate(
        BLOCKS, **prompt, max_new_tokens=6, do_sample=True, seed=1, streamer=Everything(PROCESSOR.tokenizer)
    )
    assert heard == out[0].tolist()
