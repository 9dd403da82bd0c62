"""What ``examples/cpp_server`` says of wrong requests and arguments: one plain line each."""

import random
import subprocess
from pathlib import Path

import pytest
from linking import config, run
from server_requests import (
    BLOCKS,
    CONTEXT,
    EXAMPLE,
    LINES,
    PICTURE,
    PLACEHOLDER,
    STRICT,
    TREE,
    ask,
    failure,
)


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
