"""Splitting tokens into text and pictures, and turning whole outputs into documents."""

import logging

import numpy as np
import pytest
import torch
from models_for_tests import BOS, EOS, PAD, WORDS, padded, text_ids, tiny_model, tiny_processor, vocabulary_map
from PIL import Image

import fastdecode
from fastdecode.models.documents import segments
from fastdecode.models.families import vocabulary_of
from fastdecode.models.pictures import decode_pictures

NAMES = vocabulary_map()
B, E = NAMES["<racm3:break>"], NAMES["<eoss>"]
T, U = NAMES["w3"], NAMES["w5"]
BLOCK = [4, 9, 4, 27]
MODEL = tiny_model(0)
V = vocabulary_of(MODEL)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([T, U], [("text", [T, U])]),
        ([B, *BLOCK, E], [("picture", BLOCK)]),
        ([T, B, *BLOCK, E, U], [("text", [T]), ("picture", BLOCK), ("text", [U])]),
        ([B, *BLOCK, E, B, *BLOCK, E], [("picture", BLOCK), ("picture", BLOCK)]),
        ([T, B, *BLOCK], [("text", [T]), ("broken", BLOCK)]),  # the end marker was cut off
        ([T, B, *BLOCK[:2]], [("text", [T]), ("broken", BLOCK[:2])]),
        ([B, *BLOCK[:2], E, T], [("broken", BLOCK[:2]), ("text", [T])]),
        ([B, *BLOCK, 5, E, T], [("broken", [*BLOCK, 5]), ("text", [T])]),
        ([B, *BLOCK[:2], B, *BLOCK, E], [("broken", BLOCK[:2]), ("picture", BLOCK)]),
        ([T, B], [("text", [T, B])]),  # a marker without a picture is left to the tokenizer
        ([B, E, T], [("text", [B, E, T])]),
        ([T, E], [("text", [T, E])]),
    ],
)
def test_segments(ids, expected):
    assert segments(ids, V) == expected


def test_image_ids_without_a_begin_are_no_text():
    assert segments([T, 4, 9, U], V) == [("text", [T]), ("broken", [4, 9]), ("text", [U])]


def row(*parts) -> list[int]:
    return [PAD, PAD, BOS, *(i for part in parts for i in ([part] if isinstance(part, int) else part)), EOS]


def test_documents():
    rows = [
        row(T, [B, *BLOCK, E], U, T, [B, *BLOCK[::-1], E]),
        row(U, U, NAMES["<reserved08706>"], T),
        row(),
    ]
    width = max(map(len, rows))
    sequences = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
    for form in (sequences, sequences.tolist(), list(sequences)):
        first, second, third = fastdecode.to_documents(MODEL, tiny_processor(), form)
        assert [p if isinstance(p, str) else type(p) for p in first] == ["w3", Image.Image, "w5 w3", Image.Image]
        assert second == ["w5 w5 w3"]
        assert third == []
        alone = decode_pictures(MODEL, [BLOCK[::-1]], V)[0]
        assert first[3].tobytes() == alone.tobytes()


def test_start_leaves_the_prompt_out():
    ids = [row(T, U, [B, *BLOCK, E], U)]
    assert [type(p) for p in fastdecode.to_documents(MODEL, tiny_processor(), ids, start=5)[0]] == [Image.Image, str]
    assert fastdecode.to_documents(MODEL, tiny_processor(), ids, start=99) == [[]]
    inside = [fastdecode.to_documents(MODEL, tiny_processor(), ids, start=k)[0] for k in range(6, 12)]
    assert [[type(p) for p in d] for d in inside] == [[Image.Image, str]] * 5 + [[str]]  # never a part of a picture
    assert inside[0][1] == inside[5][0] == "w5"


def test_one_sequence_alone_is_refused():
    with pytest.raises(ValueError, match=r"put one sequence in a list; sequence 0 is [0-9]+, an int"):
        fastdecode.to_documents(MODEL, tiny_processor(), torch.tensor([0, T, U]))


def test_a_cut_picture_is_left_out_with_a_warning(caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        (document,) = fastdecode.to_documents(MODEL, tiny_processor(), [row(T, [B, *BLOCK[:3]])])
    assert document == ["w3"]
    assert "sequence 0 holds 3 image tokens that make no whole picture of 4: left out" in caplog.text


def test_without_a_decoder_text_works_and_pictures_name_the_missing_weights():
    model = tiny_model(0, draws=False)
    assert fastdecode.to_documents(model, tiny_processor(), [row(T, U)]) == [["w3 w5"]]
    with pytest.raises(ValueError, match=r"no VQ decoder.*model\.vqmodel\.decoder\.conv_in\.weight"):
        fastdecode.to_documents(model, tiny_processor(), [row(T, [B, *BLOCK, E])])


def test_text_does_not_need_the_config_of_pictures():
    model = tiny_model(0)
    model.config.vocabulary_map = {name: token for name, token in NAMES.items() if name != "<image>"}
    assert fastdecode.to_documents(model, tiny_processor(), [row(T, U)]) == [["w3 w5"]]
    with pytest.raises(ValueError, match=r"there are image tokens, but config.vocabulary_map of .* has no <image>: it"):
        fastdecode.to_documents(model, tiny_processor(), [row(T, [B, *BLOCK, E])])


def test_what_generate_returns():
    prompts = padded([[BOS, *text_ids(MODEL, i, n)] for i, n in enumerate((2, 4))])
    options = {"multimodal_generation_mode": "image-only", "do_sample": True, "seed": 1}
    for more in ({}, {"return_dict_in_generate": True}):
        found = fastdecode.generate(MODEL, **prompts, **options, **more)
        documents = fastdecode.to_documents(MODEL, tiny_processor(), found, start=5)
        assert [[type(p) for p in d] for d in documents] == [[Image.Image]] * 2
        whole = fastdecode.to_documents(MODEL, tiny_processor(), found)
        assert set(whole[0][0].split()) <= set(WORDS)


def test_a_tokenizer_will_do_and_nothing_else():
    processor = tiny_processor()
    expected = fastdecode.to_documents(MODEL, processor, [row(T, U)])
    assert fastdecode.to_documents(MODEL, processor.tokenizer, [row(T, U)]) == expected
    with pytest.raises(TypeError, match=r"^processor is a NoneType; give the model's processor, or its tokenizer$"):
        fastdecode.to_documents(MODEL, None, [row(T, U)])


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (None, "got .*, a NoneType"),
        (7, "got 7, an int"),
        ("abc", "got .*, a str"),
        (b"abc", "got .*, a bytes"),
        ({"sequences": [[0]]}, "got .*, a dict"),
        (torch.tensor(3), "got a single number"),
        ([["a"]], "sequence 0 has 'a' in column 0"),
        ([[0, 1.5]], r"sequence 0 has 1\.5 in column 1"),
        ([[0], [True]], "sequence 1 has True in column 0"),
        (torch.ones(1, 2), r"sequence 0 has 1\.0 in column 0"),
        (torch.ones(1, 2, dtype=torch.bool), "sequence 0 has True"),
        (torch.zeros((1, 2), dtype=torch.long, device="meta"), "on the meta device"),
        (torch.zeros((1, 2), dtype=torch.long).to_sparse(), "sparse"),
        ([[0, -1]], r"sequence 0 has -1 in column 1, which is not a token of this checkpoint \(0 to "),
        ([[0, 10**30]], "is not a token of this checkpoint"),
        ([[[0]]], r"sequence 0 has \[0\]"),
    ],
)
def test_what_is_no_sequence(sequences, message: str):
    with pytest.raises(ValueError, match=message):
        fastdecode.to_documents(MODEL, tiny_processor(), sequences)


def test_numpy_arrays_will_do():
    ids = np.array([row(T, [B, *BLOCK, E])])
    found = fastdecode.to_documents(MODEL, tiny_processor(), ids)
    assert [type(part) for part in found[0]] == [str, Image.Image]


@pytest.mark.parametrize("start", [-3, True, 1.0, None, "2"])
def test_a_start_that_is_no_column(start):
    with pytest.raises(ValueError, match=r"^start=.*: it must be a column, 0 or more$"):
        fastdecode.to_documents(MODEL, tiny_processor(), [row(T)], start=start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_pictures_do_not_depend_on_the_models_dtype(dtype: torch.dtype, autocast: bool):
    expected = decode_pictures(MODEL, [BLOCK, BLOCK[::-1]], V)
    with torch.autocast("cpu", enabled=autocast):
        found = decode_pictures(tiny_model(0).to(dtype), [BLOCK, BLOCK[::-1]], V)
    assert [p.tobytes() for p in found] == [p.tobytes() for p in expected]


def test_pictures_of_a_model_that_was_loaded_in_bfloat16(tmp_path):
    MODEL.save_pretrained(tmp_path / "float32")
    tiny_processor().save_pretrained(tmp_path / "float32")
    model, processor = fastdecode.load(tmp_path / "float32", dtype=torch.bfloat16)
    expected = decode_pictures(MODEL, [BLOCK], V)[0].tobytes()
    assert decode_pictures(model, [BLOCK], V)[0].tobytes() == expected
    assert decode_pictures(model.float(), [BLOCK], V)[0].tobytes() != b""
    model.to(torch.bfloat16).save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, _ = fastdecode.load(tmp_path / "again")
    assert again.model.vqmodel.decoder.conv_in.weight.dtype == torch.float32
    kept = MODEL.model.vqmodel.decoder.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in again.model.vqmodel.decoder.state_dict().items())


def test_a_copy_of_a_codebook_that_was_replaced_is_not_used():
    model = tiny_model(0).to(torch.bfloat16)
    before = decode_pictures(model, [BLOCK], V)[0].tobytes()
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.mul_(-3)
    assert decode_pictures(model, [BLOCK], V)[0].tobytes() != before
