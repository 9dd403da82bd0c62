"""`Painter`, as an actor of Ray Data calls it: rows in, documents out."""

import io
import json

import numpy as np
import pandas
import pyarrow
import pytest
from PIL import Image

import fastdecode
from fastdecode.jobs import Job
from fastdecode.jobs.rows import seed_of
from fastdecode.ray.alike import Expected
from fastdecode.ray.painter import SCHEMA, Painter, rows_of

OPTIONS = {"multimodal_generation_mode": "image-only", "guidance": 3.0, "image": {"temperature": 0.7, "top_p": 0.9}}
PROMPT = "Draw: In column 2 a red circle."


@pytest.fixture(scope="module")
def painter():
    return Painter(Job(options=OPTIONS))


def test_a_document_of_every_row(painter):
    batch = {"id": np.array(["a", "b"], object), "prompt": np.array([PROMPT] * 2, object), "seed": np.array([7, 8])}
    table = painter(batch)
    assert table.schema == SCHEMA
    engine = fastdecode.Engine(painter.worker.model, painter.worker.processor, deterministic=True)
    for row, name, seed in zip(table.to_pylist(), "ab", (7, 8), strict=True):
        handle = engine.submit(PROMPT, **OPTIONS, do_sample=True, seed=seed)
        [picture] = handle.document()
        assert (row["id"], row["prompt"], row["seed"], row["text"]) == (name, PROMPT, seed, "")
        assert row["tokens"] == handle.tokens
        assert row["logprob"] == round(sum(handle.logprobs), 4)
        assert (row["ended"], row["error"]) == ("stop", None)
        [png] = row["png"]
        assert Image.open(io.BytesIO(png)).tobytes() == picture.tobytes()
        facts = json.loads(row["item"])
        assert facts["parts"] == [{"picture": "picture-1.png", "bytes": len(png)}]


def test_text_and_pictures_in_their_order(painter):
    row = {"id": "1", "prompt": "Build a tree in column 1.", "mode": "interleaved-text-image", "max_new_tokens": 300}
    [found] = painter({name: np.array([value], object) for name, value in row.items()}).to_pylist()
    parts = json.loads(found["item"])["parts"]
    assert found["text"] == "\n\n".join(part["text"] for part in parts if "text" in part) != ""
    assert len(found["png"]) == sum("picture" in part for part in parts) > 0


def test_batches_of_every_kind_are_read_alike():
    columns = {
        "id": ["a", "b"],
        "prompt": [PROMPT, "x"],
        "seed": [7, None],
        "image": [None, {"top_k": 5}],
        "note": [1, 2],
    }
    table = pyarrow.table(columns)
    frame = pandas.DataFrame(columns)
    arrays = {name: frame[name].to_numpy() for name in columns}
    rows = rows_of(table, seed=3)
    assert rows_of(arrays, seed=3) == rows_of(frame, seed=3) == rows
    assert [row.seed for row in rows] == [7, seed_of("b", 3)]
    assert [row.options for row in rows] == [{}, {"image": {"top_k": 5}}]
    assert [row.more for row in rows] == [{"note": 1}, {"note": 2}]


def test_a_row_that_cannot_be_made_says_why_and_the_others_are_made(painter, tmp_path):
    batch = pyarrow.table(
        {"id": ["bad", "good"], "prompt": [PROMPT] * 2, "pictures": [[str(tmp_path / "no.png")], None]}
    )
    bad, good = painter(batch).to_pylist()
    assert "no.png' cannot be" in bad["error"] or "there is no such file" in bad["error"]
    assert (bad["png"], bad["tokens"], bad["ended"]) == ([], [], None)
    assert good["error"] is None
    assert len(good["png"]) == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "a"], "prompt": ["x", "y"]}, "the id 'a' is there twice: give every row its own"),
        ({"id": ["a", None], "prompt": ["x", "y"]}, "row 2 of a batch: the id is missing"),
        ({"id": ["a"], "prompt": ["x"], "temprature": [0.5]}, "the dataset: the column 'temprature' looks like"),
        (
            {"id": ["a", "b"], "seed": [2.0**60, None]},
            "the column seed is of floats, which cannot hold 1152921504606846976",
        ),
        ({"id": ["a"], "prompt": ["x"], "kv_pool": [0.5]}, "the dataset: a row cannot set kv_pool"),
    ],
)
def test_wrong_rows_are_refused(painter, columns, message):
    with pytest.raises(ValueError, match=message):
        painter({name: np.array(values) for name, values in columns.items()})
    statistics = painter.worker.engine.statistics()
    assert (statistics.waiting, statistics.running, statistics.pages_used) == (0, 0, 0)


def test_other_weights_and_other_versions_are_refused():
    here = Expected.here(Job())
    here.check(Job())
    name = next(name for name in here.files if name.endswith(".safetensors"))
    with pytest.raises(ValueError, match=f"{name} of blocks is not on this machine what it is where the job was begun"):
        Painter(expected=Expected({**here.files, name: "0"}, here.versions))
    with pytest.raises(ValueError, match=r"this machine has torch .*, and the job was begun with 1.0: install that"):
        Painter(expected=Expected(here.files, {**here.versions, "torch": "1.0"}))
    Expected.here(Job(), any_version=True).check(Job())
