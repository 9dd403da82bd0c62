"""``examples/cpp_server`` decodes a checkpoint without Python, and answers with the tokens that Python generates."""

import ctypes
import json
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from linking import ROOT, build_example, config, moved_build, run
from models_for_tests import drawing_model, text_ids
from safetensors.torch import load_file, save_file

import fastdecode
from fastdecode.decoder import Decoder
from fastdecode.models.chameleon import Vocabulary

EXAMPLE = ROOT / "examples" / "cpp_server"
STRICT = ("-Wall", "-Wextra", "-Werror")
BLOCKS = Path(fastdecode.__file__).parent / "assets" / "blocks"
MODEL, PROCESSOR = fastdecode.load("blocks")
VOCABULARY = Vocabulary.of(MODEL)
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


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return [answer(request.expected(MODEL)) for request in REQUESTS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built against the installed package by one command."""
    program = tmp_path_factory.mktemp("server") / "server"
    flags = config("--cflags", "--libs")
    run("g++", "-std=c++17", "-O2", "-pthread", *STRICT, EXAMPLE / "server.cpp", *flags, "-o", program)
    return program


# --- the tokens of Python -------------------------------------------------------------------------------------------


def test_the_requests_try_everything(expected: list[str]):
    pictures: dict[str, list[int]] = {}
    for request, line in zip(REQUESTS, expected, strict=True):
        pictures.setdefault(request.mode, []).append(line.split().count(str(END)))
    assert set(pictures) == {"text-only", "image-only", "interleaved-text-image"}
    assert all(count == 1 for count in pictures["image-only"])
    assert max(pictures["interleaved-text-image"]) > 1  # text comes between them
    ends = [line.endswith(" 2") for line in expected]
    assert any(ends)
    assert not all(ends)


@pytest.mark.parametrize(
    ("workers", "slots", "threads"),
    [(1, 1, 1), (1, 8, 1), (1, 64, 3), pytest.param(3, 2, 2, marks=pytest.mark.long), (4, 3, 0)],
)
def test_the_answers_are_those_of_python_however_they_are_batched(server, expected, workers, slots, threads):
    assert ask(server, LINES, "--workers", workers, "--slots", slots, "--threads", threads) == expected


def test_requests_wait_for_pages(server, expected):
    # The longest request fills the context, 32 pages, and its pictures 5: it runs alone, others by twos and threes.
    assert ask(server, LINES, "--slots", 8, "--pages", 37) == expected


@pytest.mark.long
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set(server, expected, isa, monkeypatch):
    monkeypatch.setenv("FASTDECODE_CPU_ISA", isa)
    done = subprocess.run([server, BLOCKS], input="", capture_output=True, text=True, timeout=60)
    if "this processor" in done.stderr:
        pytest.skip(done.stderr)
    assert ask(server, LINES) == expected  # tokens, not logits: these differ by their rounding


def test_an_answer_comes_before_the_end_of_the_input(server, expected):
    with subprocess.Popen([server, BLOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(60, process.kill)  # rather than wait for ever for a line
        late.start()
        for number in (0, 6):
            process.stdin.write(f"{LINES[number]}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{1 if number == 0 else 2} {expected[number]}\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        late.cancel()


SETTINGS = {
    "plain": {},
    "norms behind, few heads of keys": {"swin_norm": True, "kv_heads": 2},
    "biases, image tokens anywhere": {"bias": True, "scattered": True},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_checkpoints(server, tmp_path, name):
    model = drawing_model(11, **SETTINGS[name])
    model.save_pretrained(tmp_path)
    requests = [
        Request(text_ids(model, seed, 3 + seed), mode, 60, 2.0, seed, {"temperature": 1.0}, {"temperature": 1.0})
        for seed in range(4)
        for mode in ("text-only", "image-only", "interleaved-text-image")
    ]
    expected = [answer(request.expected(model)) for request in requests]
    begin = model.config.vocabulary_map["<racm3:break>"]
    assert sum(f" {begin} " in line for line in expected[2::3]) > 1
    assert ask(server, [request.line for request in requests], model=tmp_path) == expected


@pytest.fixture
def rotation_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has Python rotate queries and keys by the cos and sin of the C library, as the server does.

    torch's own differ in the last bit. A float32 model hardly notices; where activations are rounded to bfloat16, a
    token differs once in a while.
    """
    libm = ctypes.CDLL("libm.so.6")
    for name, arguments in (("cosf", 1), ("sinf", 1), ("powf", 2)):
        function = getattr(libm, name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments

    def table(self: Decoder, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        theta, n = self.model.config.rope_parameters["rope_theta"], self.head_dim
        turns = [torch.tensor(1.0) / libm.powf(theta, torch.tensor(2 * i / n)) for i in range(n // 2)]
        angles = [[float(p * turn) for turn in turns] for p in positions.float()]
        cos = torch.tensor([[libm.cosf(a) for a in row] * 2 for row in angles])
        sin = torch.tensor([[sign * libm.sinf(a) for sign in (-1, 1) for a in row] for row in angles])
        return cos, sin

    monkeypatch.setattr(Decoder, "_rope_table", table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_two_bytes_are_read_where_they_lie(server, tmp_path, dtype, rotation_of_c):
    model = drawing_model(12).to(dtype)
    model.save_pretrained(tmp_path)
    requests = [Request(text_ids(model, seed, 5), "interleaved-text-image", 25) for seed in range(6)]
    expected = [answer(request.expected(model)) for request in requests]
    assert ask(server, [request.line for request in requests], model=tmp_path) == expected


# --- builds ---------------------------------------------------------------------------------------------------------


def test_with_cmake_and_the_installed_package(tmp_path, expected):
    [prefix] = config("--cmake-prefix")
    build_example(EXAMPLE, tmp_path, prefix, f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}")
    assert ask(tmp_path / "server", LINES) == expected


@pytest.mark.long
def test_with_a_plain_cmake_build_that_was_moved(tmp_path, tmp_path_factory, expected):
    build_example(EXAMPLE, tmp_path, moved_build(tmp_path_factory))
    assert ask(tmp_path / "server", LINES) == expected


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), (BLOCKS, "--slots", "3", "--help"), ("--help", "--nonsense")]
)
def test_help_describes_options_requests_and_answers(server, arguments):
    said = run(server, *arguments)
    options = ("--workers", "--slots", "--threads", "--pages", "--device")
    for word in (*options, "mode=", "max_tokens=", "guidance=", "seed=", "text.", "image.", "penalty=", "ok", "error"):
        assert word in said
    assert max(map(len, said.splitlines())) <= 100


PROMPT = " ".join(map(str, TREE))
FULL = " ".join(["5"] * CONTEXT)
WRONG_LINES = [
    (f"{PROMPT} 672", "token 672: must be from 0 to 671"),
    (f"{PROMPT} -1", "token -1: must be from 0 to 671"),
    (f"{PROMPT} 99999999999999999999", "token 99999999999999999999: must be from 0 to 671"),
    (f"{PROMPT} 12,13", "12,13: is neither a token's number nor an option (NAME=VALUE)"),
    (f"{PROMPT} {PLACEHOLDER}", f"token {PLACEHOLDER} stands for a picture: give the picture's own tokens instead"),
    ("", "there is no prompt"),
    ("seed=3", "there is no prompt"),
    (f"{PROMPT} mode=video", "mode=video: must be text-only, image-only or interleaved-text-image"),
    (f"{PROMPT} colour=red", "colour=red: is no option; --help lists them"),
    (f"{PROMPT} \0 5", "there is a zero byte in the line"),
    (f"{PROMPT} =3", "=3: is no option; --help lists them"),
    (f"{PROMPT} text.seed=3", "text.seed=3: is no option; --help lists them"),
    (f"{PROMPT} seed=1.5", "seed=1.5: must be a whole number from"),
    (f"{PROMPT} seed=9223372036854775808", "seed=9223372036854775808: must be a whole number from"),
    (f"{PROMPT} guidance=much", "guidance=much: must be a number"),
    (f"{PROMPT} guidance=nan", "guidance=nan: must be a number"),
    (f"{PROMPT} guidance=1e39", "guidance=1e39: must be a number"),
    (f"{PROMPT} guidance=", "guidance=: must be a number"),
    (f"{PROMPT} temperature=-1", "temperature=-1: must be a number, at least 0"),
    (f"{PROMPT} text.temperature=inf", "text.temperature=inf: must be a number, at least 0"),
    (f"{PROMPT} top_k=-1", "top_k=-1: must be a whole number from 0 to"),
    (f"{PROMPT} image.top_p=1.5", "image.top_p=1.5: must be from 0 to 1"),
    (f"{PROMPT} min_p=2", "min_p=2: must be from 0 to 1"),
    (f"{PROMPT} penalty=0", "penalty=0: must be a number above 0"),
    (f"{PROMPT} max_tokens=0", "max_tokens=0: must be a whole number from 1 to"),
    (
        f"{PROMPT} max_tokens=505",
        f"max_tokens=505: no room: after the prompt's {len(TREE)} tokens {CONTEXT - len(TREE)}",
    ),
    (FULL, f"no room: the prompt's {CONTEXT} tokens fill the context of {CONTEXT} tokens"),
    (f"{PROMPT} mode=image-only max_tokens=65", f"no room for a picture: it takes {PICTURE} tokens, and 65 are left"),
    (f"mode=image-only {FULL[:-4]}", "no room for a picture: it takes 66 tokens, and"),
]


def test_wrong_lines_are_answered_and_the_others_too(server, expected):
    lines = [LINES[0], *(line for line, _ in WRONG_LINES), LINES[6]]
    done = subprocess.run(
        [server, BLOCKS], input="\n".join(lines), capture_output=True, text=True, timeout=60
    )  # without a newline at the end
    assert done.returncode == 1
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(map(int, sorted(answers, key=int))) == list(range(1, len(lines) + 1))
    assert answers["1"] == expected[0]
    assert answers[str(len(lines))] == expected[6]
    for number, (line, message) in enumerate(WRONG_LINES, 2):
        assert answers[str(number)].startswith(f"error {message}"), line


def test_a_request_that_the_pages_can_never_hold(server, expected):
    given = "\n".join([LINES[0], f"{PROMPT} mode=image-only guidance=2", LINES[1]])
    done = subprocess.run([server, BLOCKS, "--pages", "3"], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == [
        f"1 {expected[0]}",
        "2 error no room: it takes 10 pages of keys and values, and --pages gives 3",
        f"3 {expected[1]}",
    ]


@pytest.mark.parametrize(
    ("arguments", "isa", "message"),
    [
        ("MODEL --workers 0", "", "--workers 0: must be a whole number from 1 to 256"),
        ("MODEL --slots 2x", "", "--slots 2x: must be a whole number from 1 to 4096"),
        ("MODEL --threads -1", "", "--threads -1: must be a whole number from 0 to 256"),
        ("MODEL --pages", "", "--pages: must be followed by a whole number from 1 to 16777216"),
        ("MODEL --batch 3", "", "--batch: must be --workers, --slots, --threads, --pages, --device or --help"),
        ("MODEL --device gpu", "", "--device gpu: must be cpu, cuda or cuda-graph"),
        ("MODEL --device", "", "--device: must be cpu, cuda or cuda-graph"),
        ("MODEL --device cuda", "", "--device cuda: this server was built without the CUDA library; build fastdecode"),
        ("", "", "give the folder of a model; see --help"),
        ("MODEL second", "", "second: the model is MODEL already"),
        ("nowhere", "", "nowhere/config.json cannot be read"),
        ("MODEL", "none", "FASTDECODE_CPU_ISA = none: must be portable, avx2, avx512 or avx512bf16"),  # of the library
    ],
)
def test_wrong_arguments_are_one_plain_line(server, arguments, isa, message):
    environment = {"FASTDECODE_CPU_ISA": isa} if isa else {}
    words = [str(BLOCKS) if word == "MODEL" else word for word in arguments.split()]
    said = failure(server, *words, status=2, given=LINES[0], **environment)
    assert said.startswith(message.replace("MODEL", str(BLOCKS)))


def test_too_many_slots_for_the_memory(server):
    command = ["bash", "-c", 'ulimit -v 3000000 && exec "$0" "$@"', str(server), str(BLOCKS), "--slots", "4096"]
    done = subprocess.run(command, input=LINES[0], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "server: not enough memory: try fewer --slots, --workers or --pages\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BLOCKS / name, tmp_path / name)
    return tmp_path


def spoil(change: Callable[[dict[str, Any]], None], of: str = "config") -> Callable[[Path], None]:
    """A change of config.json, or of the weights' header."""

    def apply(folder: Path) -> None:
        if of == "config":
            found = json.loads((folder / "config.json").read_text())
            change(found)
            (folder / "config.json").write_text(json.dumps(found))
            return
        data = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        written = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])

    return apply


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """A change of the tensors, written as a whole file."""

    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


def text(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_bytes(content) and None


NORM, GATE = "model.norm.weight", "model.layers.2.mlp.gate_proj.weight"
SPOILT = {
    "cut in a tensor": (cut(2_000_000), "is the file cut short?"),
    "cut by a byte": (cut((BLOCKS / "model.safetensors").stat().st_size - 1), "is the file cut short?"),
    "cut in the header": (cut(1000), "its header should have 26632 bytes, and the whole file has 1000"),
    "cut in its length": (cut(5), "it has 5 bytes, fewer than 8"),
    "empty": (cut(0), "it has 0 bytes, fewer than 8"),
    "gone": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read: No such file"),
    "header of another kind": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"[1, "),
        "is not valid JSON: a value is missing or wrong at byte 4",
    ),
    "header a list": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]"),
        "its header is not a JSON object",
    ),
    "missing": (weights(lambda t: t.pop(GATE)), f"tensor {GATE} is missing"),
    "another shape": (
        weights(lambda t: t.update({GATE: t[GATE][:-1].clone()})),
        f"tensor {GATE} is (511, 192); config.json asks for (512, 192)",
    ),
    "another dtype": (
        weights(lambda t: t.update({NORM: t[NORM].to(torch.int16)})),
        f"tensor {NORM} is I16; it must be F32, BF16 or F16",
    ),
    "offsets beyond": (spoil(lambda h: h[NORM].update(data_offsets=[0, 10**15]), "header"), "is the file cut short?"),
    "offsets backwards": (
        spoil(lambda h: h[NORM].update(data_offsets=[384, 0]), "header"),
        "should lie in bytes 384 to 0",
    ),
    "offsets that overlap": (
        spoil(lambda h: h[NORM].update(data_offsets=[0, 384]), "header"),
        "the one before ends at",
    ),
    "offsets of three": (spoil(lambda h: h[NORM].update(data_offsets=[0, 1, 2]), "header"), "two data_offsets"),
    "offsets not whole": (spoil(lambda h: h[NORM].update(data_offsets=[0, -1]), "header"), "must be whole numbers"),
    "shape and bytes": (spoil(lambda h: h[NORM].update(shape=[193]), "header"), "is (193) of F16, but has 384 bytes"),
    "shape without end": (spoil(lambda h: h[NORM].update(shape=[2**52] * 40), "header"), "of F16, but has 384 bytes"),
    "no dtype": (spoil(lambda h: h[NORM].pop("dtype"), "header"), "needs a dtype, a shape and two data_offsets"),
    "bytes too many": (
        lambda folder: (folder / "model.safetensors").open("ab").write(b"more") and None,
        "and the file has",
    ),
    "config not JSON": (
        text(b'{"model_type": "chameleon"'),
        "config.json is not valid JSON: '}' is missing at byte 26",
    ),
    "config with more": (text(b"{} {}"), "config.json is not valid JSON: more follows the value at byte 3"),
    "config twice": (text(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "config deep": (text(b"[" * 100_000), "config.json is not valid JSON: too many brackets are open"),
    "config half a string": (text(b'{"a": "\\ud800"}'), "half of a surrogate pair is missing"),
    "another model": (spoil(lambda c: c.update(model_type="llama")), "model_type is 'llama'; this server decodes"),
    "no size": (spoil(lambda c: c.pop("hidden_size")), "hidden_size must be a whole number from 1 to 2^30"),
    "size not whole": (spoil(lambda c: c.update(num_hidden_layers=1.5)), "num_hidden_layers must be a whole number"),
    "heads": (spoil(lambda c: c.update(num_attention_heads=7)), "hidden_size must be a multiple of"),
    "rotation": (spoil(lambda c: c["rope_parameters"].update(rope_type="yarn")), "rope_type is 'yarn'"),
    "activation": (spoil(lambda c: c.update(hidden_act="gelu")), "hidden_act must be 'silu'"),
    "flag": (spoil(lambda c: c.update(swin_norm="yes")), "swin_norm must be true or false"),
    "dtype": (
        spoil(lambda c: c.update(dtype="int8")),
        "dtype is 'int8'; it must be 'float32', 'bfloat16' or 'float16'",
    ),
    "dtype of the file": (
        spoil(lambda c: c.update(dtype="bfloat16")),
        "is F16; to compute in it, or in float32, say so",
    ),
    "no marker": (spoil(lambda c: c["vocabulary_map"].pop("<eoss>")), "vocabulary_map has no <eoss>"),
    "token beyond": (spoil(lambda c: c["vocabulary_map"].update({"<s>": 672})), "maps '<s>' to what is no token"),
    "codes": (spoil(lambda c: c["vocabulary_map"].pop("IMGIMGAZ")), "for each of num_embeddings = 256"),
    "two codes in one": (spoil(lambda c: c["vocabulary_map"].update(IMGIMGAZ=5)), "for each of num_embeddings = 256"),
    "end of sequence": (spoil(lambda c: c.update(eos_token_id=[2, "x"])), "eos_token_id must be a token"),
    "picture": (spoil(lambda c: c["vq_config"].update(resolution=4)), "a picture must have 1 to 1024 tokens in a row"),
    "biases": (spoil(lambda c: c.update(attention_bias=True)), "self_attn.q_proj.bias is missing"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_one_plain_line(server, copy, name):
    change, message = SPOILT[name]
    change(copy)
    assert message in failure(server, copy, status=2, given=LINES[0])


def test_a_model_of_nan_fails_its_requests_and_not_the_server(server, copy):
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][7] = float("nan")

    weights(poison)(copy)
    given = "7 max_tokens=3\n8 max_tokens=3\n"
    done = subprocess.run([server, copy], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    first, second = sorted(done.stdout.splitlines())
    assert first == "1 error the model computed NaN or infinite logits"
    assert second.startswith("2 ok ")


def test_generation_config_says_what_ends_a_sequence(server, copy):
    [whole] = ask(server, [LINES[0]], model=copy)
    third = whole.split()[3]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, int(third)]}))
    assert ask(server, [LINES[0]], model=copy) == [" ".join(whole.split()[:4])]


@pytest.mark.long
def test_under_sanitizers(expected: list[str], copy: Path, tmp_path_factory: pytest.TempPathFactory):
    """Every answer, and files with wrong bytes: a sentence or an answer, never a read out of bounds."""
    program = tmp_path_factory.mktemp("sanitized") / "server"
    sanitize = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    empty = program.with_name("empty.cpp")
    empty.write_text("int main() { return 0; }\n")
    tried = subprocess.run(["g++", *sanitize, empty, "-o", program], capture_output=True)
    if tried.returncode != 0 or subprocess.run([program], capture_output=True).returncode != 0:
        pytest.skip("g++ cannot build or run programs with the address sanitizer here")
    flags = config("--cflags", "--libs")
    run("g++", "-std=c++17", "-pthread", *sanitize, *STRICT, EXAMPLE / "server.cpp", *flags, "-o", program)
    assert ask(program, LINES, "--slots", 3, "--pages", 60) == expected
    wrong = subprocess.run(
        [program, BLOCKS], input="\n".join(line for line, _ in WRONG_LINES), capture_output=True, text=True, timeout=60
    )
    assert (wrong.returncode, wrong.stdout.count(" error ")) == (1, len(WRONG_LINES))
    draw = random.Random(0)
    refused = 0
    for name in ("model.safetensors", "config.json"):
        whole = (BLOCKS / name).read_bytes()
        for _ in range(60):
            spoilt = bytearray(whole)
            for _ in range(draw.choice([1, 1, 4])):
                spoilt[draw.randrange(min(len(whole), 26_640))] = draw.choice(b'0123456789"{}[],:\\ue-\0\xff')
            (copy / name).write_bytes(spoilt)
            done = subprocess.run([program, copy], input="5 max_tokens=2", capture_output=True, text=True, timeout=60)
            assert done.returncode in (0, 1, 2), done.stderr
            assert done.stderr.count("\n") == 1
            refused += done.returncode == 2
        (copy / name).write_bytes(whole)
    assert refused > 40
