"""Rows: what a file of JSON lines, CSV or Parquet says, and which files are refused."""

import datetime
import json
import os
from decimal import Decimal

import pytest

from fastdecode.guidance import Guidance
from fastdecode.jobs.rows import Row, digest, read_rows, seed_of

JSON = '{"id": 1, "prompt": "a", "seed": 5, "top_k": 3, "note": "x"}\n\n{"id": "b", "prompt": "ü", "note": null}\n'
CSV = "id,prompt,seed,top_k,note\r\n1,a,5,3,x\r\nb,ü,,,\r\n"


def parquet_of(file, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_the_same_from_each_kind_of_file(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        cells = {"prompt": ["a", "ü"], "seed": [5, None], "top_k": [3, None], "note": ["x", None]}
        parquet_of(file, {"id": ["1", "b"], **cells})
    else:
        file.write_bytes(b"\xef\xbb\xbf" + (JSON if kind == "jsonl" else CSV).encode())  # as Excel begins its files
    first, second = read_rows(file)
    assert first == Row("1", "a", 5, options={"top_k": 3}, more={"note": "x"})
    assert second == Row("b", "ü", seed_of("b"))


def test_cells_of_csv_hold_json_and_text(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "id,prompt,pictures,image,guidance,mode,image_size,label\n"
        '007,"two\nlines, ""quoted""",a.png,"{""top_p"": 0.5}",instruct,text-only,64x32,12\n'
        '008,,"[""a.png"", ""b.png""]",,"{""text"": 3, ""image"": 1.5}",,"[64, 32]",\n'
    )
    first, second = read_rows(tmp_path / "rows.csv")
    assert first.id == "007"
    assert first.prompt == 'two\nlines, "quoted"'
    assert first.options == {
        "guidance": Guidance.instruct(),
        "image": {"top_p": 0.5},
        "image_size": (64, 32),
        "multimodal_generation_mode": "text-only",
    }
    assert first.more == {"label": "12"}
    assert second.files == [tmp_path / "a.png", tmp_path / "b.png"]
    assert second.options == {"guidance": Guidance.instruct(3, 1.5), "image_size": (64, 32)}


def test_parquet_has_every_field_in_every_row(tmp_path):
    images = [{"top_p": 0.5, "top_k": None}, {"top_p": None, "top_k": 4}]
    parquet_of(tmp_path / "rows.parquet", {"id": [1, 2], "prompt": ["a", "b"], "image": images})
    assert [row.options for row in read_rows(tmp_path / "rows.parquet")] == [
        {"image": {"top_p": 0.5}},
        {"image": {"top_k": 4}},
    ]


def test_seeds_are_of_the_job_and_the_id(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "prompt": ""}\n{"id": "b", "prompt": ""}\n')
    seeds = [[row.seed for row in read_rows(tmp_path / "rows.jsonl", seed)] for seed in (0, 1)]
    assert seeds == [[seed_of("a"), seed_of("b")], [seed_of("a", 1), seed_of("b", 1)]]
    assert len({seed for some in seeds for seed in some}) == 4
    assert all(0 <= seed < 2**63 for some in seeds for seed in some)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a"}', "line 2: the id is missing"),
        ('{"id": true, "prompt": "a"}', "line 2: the id is True"),
        ('{"id": " ", "prompt": "a"}', "line 2: the id is ' '"),
        ('{"id": "0", "prompt": "a"}', "line 2: the id '0' is that of line 1 too"),
        ('{"id": 0, "prompt": "a"}', "line 2: the id '0' is that of line 1 too"),
        ('{"id": "1"}', "line 2: there is no prompt"),
        ('{"id": "1", "prompt": 3}', "line 2: the prompt is an int: give text"),
        ('{"id": "1", "prompt": "\\ud800"}', "line 2: the prompt '\\ud800' has half of a character"),
        ('{"id": "1", "prompt": "a", "temprature": 3}', "'temprature' looks like 'temperature' misspelt"),
        ('{"id": "1", "prompt": "a", "Seed": 3}', "'Seed' looks like 'seed' misspelt"),
        ('{"id": "1", "prompt": "a", "seed": 1.5}', "line 2: the seed is 1.5"),
        ('{"id": "1", "prompt": "a", "seed": 9223372036854775808}', "line 2: the seed is 9223372036854775808"),
        ('{"id": "1", "prompt": "a", "pictures": 3}', "line 2: pictures is 3: give the path"),
        ('{"id": "1", "prompt": "a", "pictures": [""]}', "line 2: pictures is ['']: give the path"),
        ('{"id": "1", "prompt": "a", "guidance": "much"}', "line 2: guidance is 'much'"),
        ('{"id": "1", "prompt": "a", "guidance": true}', "line 2: guidance is True"),
        ('{"id": "1", "prompt": "a", "guidance": {"text": 1}}', "line 2: guidance is {'text': 1}"),
        ('{"id": "1", "prompt": "a", "image_size": "big"}', "line 2: image_size is 'big'"),
        ('{"id": "1", "prompt": "a", "image": 3}', "and an int was given"),
        ('{"id": "1", "prompt": "a", "mode": "a", "multimodal_generation_mode": "a"}', "mode is another name of"),
        ('{"id": "1", "prompt": "a", "num_return_sequences": 2}', "a row cannot set num_return_sequences: write"),
        ("[1]", "line 2 is a list: give an object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, line, sentence):
    (tmp_path / "rows.jsonl").write_text(f'{{"id": "0", "prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"^rows\.jsonl, line 2") as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.txt", b"", "rows.txt ends with .txt: rows are read from .jsonl, .csv, .parquet"),
        ("rows", b"", "rows ends with nothing"),
        ("rows.jsonl", b"\n", "rows.jsonl holds no rows"),
        ("rows.csv", b"id,prompt\n", "rows.csv holds no rows"),
        ("rows.csv", b"", "rows.csv holds no rows"),
        ("rows.csv", b"id,prompt\n1\n", "rows.csv, line 2 has 1 cells, and there are 2 columns"),
        ("rows.csv", b"id,id,prompt\n1,2,a\n", "rows.csv, line 1: the column 'id' is there twice"),
        ("rows.csv", b'id,prompt\n1,"a', "rows.csv, line 2, is not CSV"),
        ("rows.jsonl", b"\xff\xfe", "rows.jsonl is not text in UTF-8"),
        ("rows.parquet", b"PAR", "rows.parquet cannot be read as Parquet"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, name, content, sentence):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="rows") as caught:
        read_rows(tmp_path / name)
    assert sentence in str(caught.value)


def test_only_a_caption_needs_no_prompt(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "pictures": "a.png"}\n')
    assert read_rows(tmp_path / "rows.jsonl", task="caption")[0].prompt == ""
    with pytest.raises(ValueError, match="there is no prompt"):
        read_rows(tmp_path / "rows.jsonl", task="edit")


def test_the_hash_of_rows_changes_with_all_that_they_say(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    row = Row("a", "b", 1, ("a.png",), {"top_k": 1}, {"note": 1}, tmp_path)
    others = [
        Row("c", "b", 1, ("a.png",), {"top_k": 1}, {"note": 1}, tmp_path),
        Row("a", "c", 1, ("a.png",), {"top_k": 1}, {"note": 1}, tmp_path),
        Row("a", "b", 2, ("a.png",), {"top_k": 1}, {"note": 1}, tmp_path),
        Row("a", "b", 1, (), {"top_k": 1}, {"note": 1}, tmp_path),
        Row("a", "b", 1, ("a.png",), {"top_k": 2}, {"note": 1}, tmp_path),
        Row("a", "b", 1, ("a.png",), {"top_k": 1}, {"note": 2}, tmp_path),
        Row("a", "b", 1, ("a.png",), {"guidance": Guidance.instruct(3, 2)}, {"note": 1}, tmp_path),
    ]
    found = [digest([each]) for each in (row, *others)]
    (tmp_path / "a.png").write_bytes(b"2")
    found.append(digest([row]))
    assert len(set(found)) == 9
    with pytest.raises(ValueError, match=r"the row 'a' shows '.*nowhere.png': there is no such file"):
        digest([Row("a", "b", 1, ("nowhere.png",), folder=tmp_path)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"note": "\ud800"}, "line 1: the note .* has half of a character of UTF-16"),
        ({"a\ud800": 1}, "line 1: the column .* has half of a character of UTF-16 in its name"),
        ({"stop_strings": ["\ud800"]}, "line 1: the stop_strings .* has half of a character"),
        ({"image_size": [float("inf"), 8]}, "line 1: image_size is "),
        ({"image_size": [64.5, 64]}, "line 1: image_size is "),
        ({"image_size": [True, True]}, "line 1: image_size is "),
        ({"image_size": "-64x64"}, "line 1: image_size is "),
        ({"prompt": None}, "line 1: there is no prompt"),
    ],
)
def test_what_cannot_be_written_or_drawn_is_refused_with_its_line(tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "x", **line}) + "\n")
    with pytest.raises(ValueError, match=message):
        read_rows(file)


def test_long_cells_and_the_booleans_of_pandas_in_csv(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(f"id,prompt,do_sample,note\na,x,False,{'y' * 200_000}\n")
    [row] = read_rows(file)
    assert row.options == {"do_sample": False}
    assert len(row.more["note"]) == 200_000


def test_json_that_is_nested_too_deep(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "a", "prompt": "x", "note": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1 is not JSON"):
        read_rows(file)


def test_a_column_that_is_nested_too_deep_to_be_written(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "a", "prompt": "x", "note": ' + "[" * 900 + "]" * 900 + "}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1(: the note is nested too deep| is not JSON)"):
        read_rows(file)


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="which cannot be read: it is no file"):
        digest([Row("a", "x", 1, ("pipe",), folder=tmp_path)])


def test_structs_dates_and_decimals_of_parquet(tmp_path):
    table = {
        "id": ["a", "b"],
        "prompt": ["x", "y"],
        "guidance": [{"text": 2.0, "image": 1.5}, {"text": None, "image": None}],
        "temperature": [Decimal("0.50"), None],
        "day": [datetime.date(2020, 1, 2), None],
        "price": [Decimal("1.20"), None],
    }
    parquet_of(tmp_path / "rows.parquet", table)
    first, second = read_rows(tmp_path / "rows.parquet")
    assert first.options == {"guidance": Guidance.instruct(2.0, 1.5), "temperature": 0.5}
    assert first.more == {"day": "2020-01-02", "price": "1.20"}
    assert (second.options, second.more) == ({}, {})
