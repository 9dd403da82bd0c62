"""Writes a tiny Llama with random weights as a GGUF, to try llama.cpp with where no model can be downloaded.

    python -m tools.tiny_gguf tiny.gguf --seed 3

Its tokens are ``<unk>``, ``<s>``, ``</s>``, the 256 bytes, and some words. Needs the package ``gguf``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 96, 2, 4, 2, 256
WORDS = (
    "rain",
    "snow",
    "wind",
    "sun",
    "the",
    "a",
    "of",
    "falls",
    "shines",
    "blows",
    "on",
    "under",
    "hill",
    "roof",
    "sea",
)


def tokens() -> tuple[list[bytes], list[float], list[int]]:
    """Text, score and type of every token, as llama.cpp's SentencePiece tokenizer wants them."""
    kinds = gguf.TokenType
    found = [(b"<unk>", 0.0, kinds.UNKNOWN), (b"<s>", 0.0, kinds.CONTROL), (b"</s>", 0.0, kinds.CONTROL)]
    found += [(f"<0x{byte:02X}>".encode(), 0.0, kinds.BYTE) for byte in range(256)]
    # A word is merged from its beginnings, so these are tokens too; longer ones come first.
    beginnings = {f"\u2581{word}"[:length] for word in WORDS for length in range(1, len(word) + 2)}
    letters = {letter for word in WORDS for letter in word}
    pieces = sorted(beginnings | letters, key=lambda piece: (len(piece), piece))
    found += [(piece.encode(), float(len(piece)), kinds.NORMAL) for piece in pieces]
    texts, scores, types = zip(*found, strict=True)
    return list(texts), list(scores), [int(kind) for kind in types]


def write(path: Path, seed: int = 0) -> None:
    """Write the model whose weights this seed gives."""
    draw = np.random.default_rng(seed)
    texts, scores, types = tokens()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)

    def matrix(name: str, out: int, inside: int, spread: float) -> None:
        writer.add_tensor(name, draw.normal(0.0, spread, (out, inside)).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name, draw.normal(1.0, 0.1, HIDDEN).astype(np.float32))

    matrix("token_embd.weight", len(texts), HIDDEN, 1.0)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        norm(f"{at}attn_norm.weight")
        matrix(f"{at}attn_q.weight", HIDDEN, HIDDEN, 0.2)
        matrix(f"{at}attn_k.weight", HIDDEN * KV_HEADS // HEADS, HIDDEN, 0.2)
        matrix(f"{at}attn_v.weight", HIDDEN * KV_HEADS // HEADS, HIDDEN, 0.2)
        matrix(f"{at}attn_output.weight", HIDDEN, HIDDEN, 0.2)
        norm(f"{at}ffn_norm.weight")
        matrix(f"{at}ffn_gate.weight", INNER, HIDDEN, 0.2)
        matrix(f"{at}ffn_up.weight", INNER, HIDDEN, 0.2)
        matrix(f"{at}ffn_down.weight", HIDDEN, INNER, 0.2)
    norm("output_norm.weight")
    # Words are likelier than bytes, so that what is written can be read.
    head = draw.normal(0.0, 0.3, (len(texts), HIDDEN)).astype(np.float32)
    head[3:259] *= 0.1
    writer.add_tensor("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    write(chosen.path, chosen.seed)


if __name__ == "__main__":
    main()
