"""``examples/llamacpp``: what it samples from llama.cpp's logits is what numpy and the reference sample from them.

FASTDECODE_LLAMA names the folder that ``tools/build_llama.sh`` has filled; without it these tests are skipped.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from linking import ROOT, build_example, config, run

from fastdecode import ops

EXAMPLE = ROOT / "examples" / "llamacpp"
LLAMA = Path(os.environ.get("FASTDECODE_LLAMA") or "nowhere").resolve()
PROMPTS = ("the rain falls on", "snow", "a wind of the sea", "sun", "the hill")
NEGATIVE = "the sun shines on the roof"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not os.environ.get("FASTDECODE_LLAMA"),
        reason="there is no libllama: build it with tools/build_llama.sh FOLDER and set FASTDECODE_LLAMA=FOLDER",
    ),
]


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    [prefix] = config("--cmake-prefix")
    build_example(EXAMPLE, folder, f"{prefix};{LLAMA}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    return folder / "guided"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="the package gguf is not installed: it writes the model of this test")
    from tools.tiny_gguf import write

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write(path, seed=3)
    return path


def samples(program: Path, model: Path, dump: Path, *options: object, prompts: tuple[str, ...] = PROMPTS) -> np.ndarray:
    """What the program sampled: request, step, token, and the logits (2, vocab) of the two sequences."""
    from tools.tiny_gguf import tokens

    run(program, model, "--dump-logits", dump, "--threads", "1", *map(str, options), *prompts, errors="replace")
    vocab = len(tokens()[0])
    record = [("request", "<i8"), ("step", "<i8"), ("token", "<i8"), ("logits", "<f4", (2, vocab))]
    return np.fromfile(dump, dtype=np.dtype(record))


SETTINGS = {
    "guided": {"scale": 1.5, "seed": 7, "temperature": 0.9, "top-p": 0.9, "top-k": 0, "min-p": 0},
    "strong": {"scale": 4.0, "seed": -5, "temperature": 1.5, "top-p": 1, "top-k": 20, "min-p": 0.02},
    "greedy": {"scale": 2.0, "temperature": 0},
    "not guided": {"scale": 1.0, "seed": 9, "temperature": 1, "top-p": 1, "top-k": 0},
    "only the negative prompt": {"scale": 0.0, "seed": 2},
}
DEFAULTS = {"scale": 1.5, "seed": 0, "temperature": 0.8, "top-p": 0.95, "top-k": 40, "min-p": 0.0}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_the_reference(guided, model, tmp_path, name):
    options = [word for key, value in SETTINGS[name].items() for word in (f"--{key}", value)]
    drawn = samples(guided, model, tmp_path / "dump", "--negative", NEGATIVE, "--tokens", 40, *options)
    assert len(drawn) > 60
    assert set(drawn["request"]) == set(range(len(PROMPTS)))
    chosen = {**DEFAULTS, **SETTINGS[name]}
    scale = np.float32(chosen["scale"])
    rest = np.float32(1) - scale
    conditional, negative = drawn["logits"][:, 0], drawn["logits"][:, 1]
    assert not np.allclose(conditional, negative)
    mixed = scale * conditional + rest * negative if rest else conditional
    mixed = rest * negative if not scale else mixed
    expected = ops.sample(
        torch.from_numpy(mixed),
        temperature=chosen["temperature"],
        top_k=chosen["top-k"],
        top_p=chosen["top-p"],
        min_p=chosen["min-p"],
        seed=torch.from_numpy(chosen["seed"] + drawn["request"]),
        step=torch.from_numpy(drawn["step"].copy()),
        backend="reference",
    )
    assert expected.token.tolist() == drawn["token"].tolist()
    if chosen["temperature"] == 0:
        assert mixed.argmax(1).tolist() == drawn["token"].tolist()


def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def rotated(x: np.ndarray) -> np.ndarray:
    """``x`` (length, heads, size): llama.cpp rotates neighbouring numbers of a head as pairs."""
    turns = 10000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * np.arange(len(x))[:, None] * turns)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def logits_of(weights: dict[str, np.ndarray], sequence: list[int]) -> np.ndarray:
    """(length, vocab) float64: the model of ``tools/tiny_gguf.py`` in numpy."""
    from tools import tiny_gguf as tiny

    x = weights["token_embd.weight"][sequence]
    later = np.triu(np.full((len(x), len(x)), -np.inf), 1)
    for layer in range(tiny.LAYERS):
        w = {name.removeprefix(f"blk.{layer}."): value for name, value in weights.items()}
        y = normed(x, w["attn_norm.weight"])
        q, k, v = (
            (y @ w[f"attn_{name}.weight"].T).reshape(len(x), heads, -1)
            for name, heads in (("q", tiny.HEADS), ("k", tiny.KV_HEADS), ("v", tiny.KV_HEADS))
        )
        k, v = (part.repeat(tiny.HEADS // tiny.KV_HEADS, 1) for part in (rotated(k), v))
        scores = np.einsum("ihd,jhd->hij", rotated(q), k) / np.sqrt(q.shape[-1]) + later
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", shares, v).reshape(len(x), -1) @ w["attn_output.weight"].T
        y = normed(x, w["ffn_norm.weight"])
        gate = y @ w["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
    return normed(x, weights["output_norm.weight"]) @ weights["output.weight"].T


def prompt_tokens(text: str) -> list[int]:
    """Begin of sequence and words: each word of the prompts here is a token, with its space."""
    from tools.tiny_gguf import tokens

    return [1, *(tokens()[0].index(f"\u2581{word}".encode()) for word in text.split())]


@pytest.mark.parametrize("negative", [NEGATIVE, ""])
def test_both_sequences_of_a_request_are_what_they_should_be(guided, model, tmp_path, negative):
    """The logits are those that numpy computes of the prompt, or the negative one, and the tokens so far."""
    import gguf

    weights = {t.name: t.data.astype(np.float64) for t in gguf.GGUFReader(str(model)).tensors}
    drawn = samples(guided, model, tmp_path / "dump", "--negative", negative, "--tokens", 40, "--seed", 11)
    lengths = [int((drawn["request"] == number).sum()) for number in range(len(PROMPTS))]
    assert min(lengths) < max(lengths) == 40  # some end before others
    for number, prompt in enumerate(PROMPTS):
        mine = drawn[drawn["request"] == number]
        made = mine["token"].tolist()
        assert mine["step"].tolist() == list(range(len(made)))
        assert made.count(2) == (len(made) < 40)  # the end of the sequence is the last that is sampled
        for k, begin in enumerate((prompt, negative)):
            sequence = [*prompt_tokens(begin), *made[:-1]]
            expected = logits_of(weights, sequence)[-len(made) :]
            assert np.abs(mine["logits"][:, k] - expected).max() < 0.1  # llama.cpp keeps keys and values in float16


def test_it_prints_a_line_for_each_prompt(guided, model):
    said = run(guided, model, "--tokens", "5", "--threads", "1", "--temperature", "0", *PROMPTS, errors="replace")
    lines = said.splitlines()
    assert [line.split(" ->")[0] for line in lines] == list(PROMPTS)


def test_help(guided):
    for word in ("--scale", "--negative", "--tokens", "--seed", "--dump-logits"):
        assert word in run(guided, "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "give a model and a prompt; see --help"),
        (["MODEL", "--tokens", "400", "snow"], "and --tokens 400 do not fit into the model's 256"),
        (["MODEL", "--top-p", "2", "snow"], "--top-p 2: must be a number from 0 to 1"),
        (["MODEL", "--seed", "x", "snow"], "--seed x: must be a whole number from"),
        (["MODEL", "--scale", "nan", "snow"], "--scale nan: must be a number"),
        (["MODEL", "--nope", "3", "snow"], "--nope: is no option; --help lists them"),
        (["MODEL", "snow", "--seed"], "--seed: a value must follow"),
        (["MODEL", "--dump-logits", "no/where", "snow"], "no/where: cannot be opened"),
        (["MODEL", *["snow"] * 129], "give at most 128 prompts"),
        (["nowhere.gguf", "snow"], "nowhere.gguf cannot be loaded: "),
        ([__file__, "snow"], "test_llamacpp.py cannot be loaded: "),
    ],
)
def test_errors_are_one_plain_line(guided, model, arguments, message):
    words = [str(model) if word == "MODEL" else word for word in arguments]
    done = subprocess.run([guided, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("guided: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
