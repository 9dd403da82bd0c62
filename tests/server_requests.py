"""Requests for ``examples/cpp_server``, the same for `fastdecode.generate`, and calls of the server."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from linking import ROOT, run

import fastdecode
from fastdecode.models.families import vocabulary_of

EXAMPLE = ROOT / "examples" / "cpp_server"
STRICT = ("-Wall", "-Wextra", "-Werror")
BLOCKS = Path(fastdecode.__file__).parent / "assets" / "blocks"
MODEL, PROCESSOR = fastdecode.load("blocks")
VOCABULARY = vocabulary_of(MODEL)
BOS, BEGIN, END, PLACEHOLDER = VOCABULARY.bos, VOCABULARY.begin_image, VOCABULARY.end_image, VOCABULARY.placeholder
PICTURE, CONTEXT = VOCABULARY.image_length + 2, VOCABULARY.context


@dataclass
class Request:
    """A request in the terms of `fastdecode.generate`."""

    prompt: list[int]
    mode: str = "text-only"
    max_tokens: int | None = None
    guidance: float = 1.0
    seed: int = 0
    text: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The same as a line for the server."""
        words = [f"mode={self.mode}", f"guidance={self.guidance}", f"seed={self.seed}"]
        words += [] if self.max_tokens is None else [f"max_tokens={self.max_tokens}"]
        for where, parameters in (("text", self.text), ("image", self.image)):
            for name, value in parameters.items():
                words.append(f"{where}.{'penalty' if name == 'repetition_penalty' else name}={value}")
        return " ".join([*words, *map(str, self.prompt)])

    def expected(self, model: Any) -> list[int]:
        """The new tokens that Python generates."""
        most = self.max_tokens
        if most is None and self.mode != "image-only":  # the server then goes on to the end of the context
            most = model.config.max_position_embeddings - len(self.prompt)
        new = {} if most is None else {"max_new_tokens": most}
        found = fastdecode.generate(
            model,
            torch.tensor([self.prompt]),
            multimodal_generation_mode=self.mode,
            guidance=self.guidance,
            seed=self.seed,
            text=self.text,
            image=None if self.mode == "text-only" else self.image,  # Python refuses what has no effect
            deterministic=True,
            **new,
        )
        return found[0, len(self.prompt) :].tolist()


def tokens_of(text: str) -> list[int]:
    return PROCESSOR(text=text, return_tensors="pt")["input_ids"][0].tolist()


WARM = {"temperature": 0.9, "top_p": 0.95}
TREE, SNOWMAN, CIRCLE, TOWER, HOUSE, ROCKET = map(
    tokens_of,
    [
        "Build a tree in column 1.",
        "Build a snowman in column 3.",
        "Draw: In column 2 a red circle.",
        "Build a tower of a blue square and a red triangle in column 2.",
        "Describe the picture.",
        "Build a rocket in column 4.",
    ],
)
REQUESTS = [
    # text, greedy, and sampled with everything
    Request(TREE, max_tokens=30),
    Request(CIRCLE, max_tokens=30, text={"repetition_penalty": 3.0}),
    Request(CIRCLE, max_tokens=30, seed=3, text={**WARM, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.5}),
    Request(HOUSE, max_tokens=30, seed=3, text={"min_p": 0.05}),
    Request(SNOWMAN, max_tokens=30, guidance=2.5, seed=4, text=WARM),
    Request([BOS], max_tokens=20, guidance=2.5, seed=5, text=WARM),
    # one picture
    Request(TREE, "image-only", guidance=3.0, seed=1, image=WARM),
    Request(SNOWMAN, "image-only", guidance=3.0, seed=-(2**63), image=WARM),
    Request(TOWER, "image-only", guidance=0.0, seed=2, image={"temperature": 1.0, "top_k": 50}),
    Request(ROCKET, "image-only", 80, seed=6, image=WARM),
    Request([BOS], "image-only", guidance=4.0, seed=7, image=WARM),  # nothing is left out: both streams are one
    Request([*CIRCLE, BEGIN, 4, 5, 6], "image-only", guidance=3.0, seed=8, image=WARM),  # it has begun
    # text and pictures
    Request(CIRCLE, "interleaved-text-image", 180, 3.0, 9, text={"temperature": 0.0}, image=WARM),
    Request(TREE, "interleaved-text-image", 150, 3.0, 10, text=WARM, image=WARM),
    Request(SNOWMAN, "interleaved-text-image", 200, 2.0, 11, WARM, {**WARM, "min_p": 0.02, "repetition_penalty": 1.5}),
    Request(TOWER, "interleaved-text-image", None, 1.5, 2**63 - 1, text={"temperature": 1.2}, image={"top_k": 20}),
    Request(ROCKET, "interleaved-text-image", 100, seed=13, text=WARM, image=WARM),
    Request([*TREE, BEGIN, *range(4, 40)], "interleaved-text-image", 120, 3.0, 14, text=WARM, image=WARM),
    Request([BOS, BEGIN], "interleaved-text-image", 100, 3.0, 15, text=WARM, image=WARM),
]
LINES = [request.line for request in REQUESTS]


def ask(server: Path, lines: Sequence[str], *options: str | int, model: Path = BLOCKS) -> list[str]:
    """The answers in the order of the requests, all of which are ok, without their numbers."""
    answers = run(server, model, *map(str, options), input="".join(f"{line}\n" for line in lines)).splitlines()
    numbered = {int(answer.split()[0]): answer.split(maxsplit=1)[1] for answer in answers}
    assert sorted(numbered) == list(range(1, len(lines) + 1))
    assert len(answers) == len(lines)
    return [numbered[number] for number in sorted(numbered)]


def answer(tokens: Sequence[int]) -> str:
    return " ".join(["ok", *map(str, tokens)])


def failure(server: Path, *arguments: str | Path, status: int, given: str = "", **environment: str) -> str:
    """What the server says of arguments or a model that it cannot serve."""
    done = subprocess.run(
        [server, *map(str, arguments)],
        input=given,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("server: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("server: ")
