"""What ``examples/cpp_server`` says of checkpoints that it cannot serve, and reads in one that it can."""

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from server_requests import (
    BLOCKS,
    LINES,
    ask,
    failure,
)


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
