"""A job: items of rows, each made once."""

import io
import json
import os
import tarfile

import pytest
from job_files import JOB, OPTIONS, by, contents, counts, index
from PIL import Image

import fastdecode
from fastdecode.jobs import Job, Row, read_rows, run
from fastdecode.jobs.files import UNFINISHED
from fastdecode.jobs.items import Item, key_of
from fastdecode.jobs.worker import Worker


def test_items_are_what_the_engine_makes_alone(rows, tmp_path):
    assert counts(run(JOB, rows, tmp_path / "out")) == (6, 0, 0, 0)
    model, processor = fastdecode.load("blocks")
    table = index(tmp_path / "out")
    assert [each["id"] for each in table] == [row.id for row in rows]
    for row, each in zip(rows, table, strict=True):
        engine = fastdecode.Engine(model, processor, deterministic=True)
        handle = engine.submit(row.prompt, seed=row.seed, **OPTIONS)
        [picture] = handle.document()
        file = tmp_path / "out" / each["files"] / "picture-1.png"
        with Image.open(file) as made:
            assert made.tobytes() == picture.tobytes()
            told = json.loads(made.text["fastdecode"])
        assert (told["id"], told["prompt"], told["seed"], told["picture"]) == (row.id, row.prompt, row.seed, 1)
        assert (each["prompt"], each["seed"], each["error"]) == (row.prompt, row.seed, None)
        assert (each["tokens"], each["pictures"], each["text"]) == (len(handle.tokens), ["picture-1.png"], "")
        facts = json.loads((file.parent / "item.json").read_text())
        assert facts["parts"] == [{"picture": "picture-1.png", "bytes": file.stat().st_size}]


@pytest.mark.parametrize("per_tar", [None, 4])
def test_nothing_is_made_twice(rows, tmp_path, per_tar):
    def make(todo):
        raise AssertionError("there is nothing to be made")

    run(JOB, rows, tmp_path / "out", per_tar=per_tar)
    before = contents(tmp_path / "out")
    assert counts(run(JOB, rows, tmp_path / "out", per_tar=per_tar, maker=by(make))) == (0, 0, 6, 0)
    assert contents(tmp_path / "out") == before


def test_tars_hold_the_rows_in_their_order(rows, tmp_path):
    run(JOB, rows[:5], tmp_path / "out", per_tar=2)
    run(JOB, rows[:5], tmp_path / "folders")
    tars = [f"items-0000{n}.tar" for n in range(3)]
    assert sorted(contents(tmp_path / "out")) == ["index.parquet", *tars, "manifest.json"]
    assert [each["files"] for each in index(tmp_path / "out")] == [tars[n // 2] for n in range(5)]
    with tarfile.open(tmp_path / "out" / tars[1]) as tar:
        assert tar.getnames() == ["r2.json", "r2.1.png", "r3.json", "r3.1.png"]
        assert {member.mtime for member in tar} == {0}
        picture = tar.extractfile("r3.1.png").read()
    assert picture == (tmp_path / "folders" / "items" / "r3" / "picture-1.png").read_bytes()
    assert [each["pictures"] for each in index(tmp_path / "out")] == [[f"r{n}.1.png"] for n in range(5)]


def test_items_in_tars_have_their_pictures_in_order(tmp_path):
    """More than nine of them: 10 comes after 9, not after 1."""
    picture = Image.new("RGB", (4, 4))

    def make(todo):
        yield [Item(row.id, ["a", *[picture] * 11], {"prompt": row.prompt, "seed": row.seed}) for row in todo]

    run(JOB, [Row("a", "", 0)], tmp_path / "out", per_tar=1, maker=by(make))
    with tarfile.open(tmp_path / "out" / "items-00000.tar") as tar:
        assert tar.getnames() == ["a.json", *(f"a.{n}.png" for n in range(1, 12))]
    [facts] = index(tmp_path / "out")
    assert facts["pictures"] == [f"a.{n}.png" for n in range(1, 12)]
    assert facts["text"] == "a"


def test_ids_that_cannot_be_names_of_files_get_others():
    names = ["a", "a/b", "a.b", "a b", "..", ".", "x" * 300, "ü", "é", "e\u0301", "a~b", UNFINISHED]
    keys = [key_of(name) for name in names]
    assert keys[0] == "a"
    assert len({key.lower() for key in keys}) == len(names)
    assert all(key.isascii() and len(key) <= 100 and not set(key) & set("/. ") for key in keys)


# --- items that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tar", [None, 2])
def test_a_broken_item_is_recorded_and_made_again_when_asked(tmp_path, per_tar):
    good = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(good, "png")
    (tmp_path / "broken.png").write_bytes(good.getvalue()[:90])
    prompts = ["Draw: In column 1 a red circle."] * 4
    lines = [{"id": f"r{n}", "prompt": prompt} for n, prompt in enumerate(prompts)]
    lines[1] |= {"prompt": "Paint the circle of <image> green.", "pictures": ["broken.png"]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, rows = tmp_path / "out", read_rows(file)
    assert counts(run(JOB, rows, out, per_tar=per_tar)) == (4, 1, 0, 0)
    errors = [each["error"] for each in index(out)]
    assert [error is None for error in errors] == [True, False, True, True]
    assert "broken.png' is not a picture that can be read" in errors[1]
    before = contents(out)
    assert counts(run(JOB, rows, out, per_tar=per_tar)) == (0, 0, 4, 1)
    assert counts(run(JOB, rows, out, per_tar=per_tar, retry_failed=True)) == (1, 1, 3, 0)
    assert contents(out) == before


def test_an_error_that_is_no_items_own_ends_the_job_and_records_nothing(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdecode.models.documents.decode_pictures", out_of_memory)
    monkeypatch.setattr("fastdecode.generation.handle.to_documents", out_of_memory)
    with pytest.raises(MemoryError):
        run(JOB, rows, tmp_path / "out")
    monkeypatch.undo()
    assert counts(run(JOB, rows, tmp_path / "out")) == (6, 0, 0, 0)


def out_of_memory(*_, **__):
    raise MemoryError("too large")


# --- what is refused --------------------------------------------------------------------------------------------


def test_another_job_is_refused_before_anything_changes(rows, tmp_path, monkeypatch):
    run(JOB, rows, tmp_path / "out")
    before = contents(tmp_path / "out")
    others = {
        "other parameters: parameters.options.guidance was 3.0 and is 2.0": (
            Job(options={**OPTIONS, "guidance": 2.0}),
            rows,
            None,
        ),
        "other parameters: parameters.seed was 0 and is 1": (Job(options=OPTIONS, seed=1), rows, None),
        "another model or other weights: model.dtype was not given and is": (
            Job(options=OPTIONS, dtype="bfloat16"),
            rows,
            None,
        ),
        "other rows: input.rows was 6 and is 1": (JOB, rows[:1], None),
        "another form of output: output.items per tar was not given and is 2": (JOB, rows, 2),
    }
    for words, (job, some, per_tar) in others.items():
        with pytest.raises(ValueError, match=words):
            run(job, some, tmp_path / "out", per_tar=per_tar)
    monkeypatch.setattr("fastdecode.jobs.manifest.versions", lambda: {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"other versions: versions.fastdecode was .* or give --any-version"):
        run(JOB, rows, tmp_path / "out")
    assert run(JOB, rows, tmp_path / "out", any_version=True).there == 6
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("letter.txt", "mine", r"holds letter.txt and no manifest.json, so it is of no job"),
        ("manifest.json", "{", r"does not say what job this is"),
        ("manifest.json", "{}", r"is not as this version of fastdecode writes it"),
    ],
)
def test_a_folder_of_something_else_is_refused(rows, tmp_path, name, content, sentence):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        run(JOB, rows, out)
    assert os.listdir(out) == [name]
    assert (out / name).read_text() == content


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": 1e400}, "guidance"),
        ({"image": {"top_p": 2}}, "top_p"),
        ({"multimodal_generation_mode": "draw"}, "multimodal_generation_mode='draw' is unknown"),
        ({"task": "paint"}, "paint"),
        ({"image_size": (7, 7)}, "7"),
        ({"top_k": "many"}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"text": {"top_k": 1}}, "text says how text is sampled, and image-only writes none"),
    ],
)
def test_options_that_no_row_can_have_are_refused_before_anything_is_written(tmp_path, options, sentence):
    rows = [Row(f"r{n}", "Draw: In column 1 a red circle.", n, options=options) for n in range(4)]
    good = [Row("good", "Draw: In column 1 a red circle.", 9)]
    for some in (rows, rows[:1], good + rows):
        with pytest.raises(ValueError, match="the row 'r0' cannot be made: ") as caught:
            run(JOB, some, tmp_path / "out")
        assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_of_a_row_go_before_those_of_the_job():
    worker = Worker(Job(options=OPTIONS, usual={"text": {"top_p": 0.5}}))
    prompt = "Build a tree in column 2."
    _, options = worker.request(Row("a", prompt, 3, options={"temperature": 0.0, "max_new_tokens": 7}))
    assert options == {
        "multimodal_generation_mode": "image-only",
        "guidance": 3.0,
        "image": {"temperature": 0.0, "top_p": 0.9},
        "max_new_tokens": 7,
        "seed": 3,
    }
    mode = {"multimodal_generation_mode": "text-only"}
    inputs, options = worker.request(Row("a", prompt, 3, options=mode))
    room = worker.model.config.max_position_embeddings - inputs["input_ids"].shape[1]
    assert options == {**mode, "guidance": 3.0, "text": {"top_p": 0.5}, "max_new_tokens": room, "seed": 3}


def test_shards_share_the_rows(rows, tmp_path):
    found = []
    for number in (1, 2, 3, 4):
        run(JOB, rows, tmp_path / "out", shard=(number, 4))
        found.append([each["id"] for each in index(tmp_path / "out" / f"shard-{number}-of-4")])
    assert found == [["r0", "r4"], ["r1", "r5"], ["r2"], ["r3"]]
    run(JOB, rows, tmp_path / "whole")
    whole, part = tmp_path / "whole" / "items", tmp_path / "out" / "shard-2-of-4" / "items"
    assert contents(part / "r5") == contents(whole / "r5")
    with pytest.raises(ValueError, match="shard 7 of 7 has no rows"):
        run(JOB, rows, tmp_path / "out", shard=(7, 7))


# --- rows with faults of their own, and options that cannot be followed -----------------------------------------


def test_damaged_pictures_stop_no_job_however_many(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    pictures = ["bad.png"] * 4 + ["good.png"]
    rows = [Row(f"r{n}", "<image>Draw it.", 1, (name,), folder=tmp_path) for n, name in enumerate(pictures)]
    summary = run(JOB, rows, tmp_path / "out")
    assert (summary.made, summary.failed) == (5, 4)
    assert summary.first_error.startswith("'r0': ValueError: the picture ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": {"temperature": -1}}, "the row 'bad' cannot be made: .*temperature"),
        ({"multimodal_generation_mode": "image_only"}, "the row 'bad' cannot be made: .*image_only"),
        ({"max_new_tokens": "5"}, "the row 'bad' cannot be made: .*max_new_tokens"),
    ],
)
def test_one_row_with_wrong_options_is_told_before_anything_is_written(rows, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(JOB, [*rows, Row("bad", "x", 1, options=options)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
