"""Every limit and every rejected request: a status and one sentence, and nothing left behind."""

from __future__ import annotations

import base64
import http.client
import io
import json
import select
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

import fastdecode.serve.answers
from fastdecode.serve.limits import Limits
from fastdecode.serve.pictures import to_data_url
from tests.serve.serving import ONE_PICTURE, PATIENCE, SNOWMAN, Served, events_of, serving, wait_until

PROMPT = {"prompt": "Build a tree in column 1."}


def huge_png(width: int, height: int) -> str:
    """A PNG that says that it is large, without any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def cut_png() -> str:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG")
    return base64.b64encode(data.getvalue()[:900]).decode()


def readable(connection: http.client.HTTPConnection) -> bool:
    """Whether an answer has begun."""
    return bool(select.select([connection.sock], [], [], 0)[0])


def gif() -> str:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "GIF")
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", ["cannot be read as JSON", "line 1"]),
        (b"\xff\xfe", ["cannot be read as JSON"]),
        (b'{"prompt": "\\ud800"}', ["cannot be read as JSON"]),
        (b"[" * 100_000, ["cannot be read as JSON"]),
        (b"[]", ["must be a JSON object"]),
        (b"{}", ["prompt is missing"]),
        ({"prompt": 1}, ["prompt = 1", "string"]),
        ({"promt": "a"}, ["prompt is missing"]),
        (PROMPT | {"colour": "red"}, ["colour", "no such field", "max_new_tokens"]),
        (PROMPT | {"mode": "pictures"}, ["mode = 'pictures'", "image-only"]),
        (PROMPT | {"guidance": True}, ["guidance = True", "null, a number"]),
        (PROMPT | {"guidance": {"text": 3.0}}, ["guidance.image is missing"]),
        (PROMPT | {"guidance": {"text": 3.0, "image": 1.0, "sound": 1}}, ["guidance.sound", "there are text, image"]),
        (b'{"prompt": "a", "guidance": 1e999}', ["guidance", "finite"]),
        (b'{"prompt": "a", "image": {"temperature": NaN}}', ["image.temperature", "finite"]),
        (PROMPT | {"guidance": {"text": 3.0, "image": 1.2}, "mode": "text-only"}, ["text-only", "everywhere=True"]),
        (PROMPT | {"text": {"topp": 0.9}}, ["text.topp", "top_p"]),
        (PROMPT | {"text": {"top_p": 1.5}}, ["text.top_p=1.5", "between 0 and 1"]),
        (PROMPT | {"image": {"temperature": -1}}, ["image.temperature=-1", "at least 0"]),
        (PROMPT | {"image": {"top_k": 1.5}}, ["image.top_k"]),
        (PROMPT | {"max_new_tokens": 0}, ["max_new_tokens=0: give a whole number of at least 1"]),
        (PROMPT | {"max_new_tokens": True}, ["max_new_tokens = True"]),
        (PROMPT | {"max_new_tokens": 20}, ["no room for one picture"]),
        (PROMPT | {"seed": 2**64}, ["does not fit 64 bits"]),
        (PROMPT | {"seed": 1.5}, ["seed = 1.5"]),
        (PROMPT | {"stream": "yes"}, ["stream = 'yes'"]),
        (PROMPT | {"images": ["?"]}, ["images.0 is not base64"]),
        (PROMPT | {"images": ["aaaa"]}, ["images.0 is not a PNG or JPEG"]),
        (PROMPT | {"images": [gif()]}, ["images.0 is not a PNG or JPEG"]),
        (PROMPT | {"images": [cut_png()]}, ["images.0 is a broken PNG or JPEG", "ends too early"]),
        (
            PROMPT | {"images": [to_data_url(Image.new("L", (1, 101)))]},
            ["images.0 is too narrow: 1 x 101", "100 times"],
        ),
        (PROMPT | {"images": [to_data_url(Image.new("L", (4040, 40)))]}, ["images.0 is too narrow", "4040 x 40"]),
        (PROMPT | {"images": "aaaa"}, ["images = 'aaaa'"]),
        ({"prompt": "<image><image>Describe."}, ["2 <image>", "0 pictures"]),
        ({"prompt": "red " * 600}, ["context", "512"]),
    ],
)
def test_wrong_input_is_422_with_one_sentence(served: Served, body: Any, words: list[str]) -> None:
    for stream in (False, True):
        sent = body | {"stream": True} if stream and isinstance(body, dict) and "stream" not in body else body
        status, _, answer = served.post(sent)
        assert status == 422
        for word in words:
            assert word in answer["error"]
        assert "\n" not in answer["error"]
        assert len(answer["error"]) < 400
    assert served.engine.statistics().submitted == 0
    assert served.post(ONE_PICTURE)[0] == 200


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"Content-Type": "text/plain"}, b"text/plain"),
        ({"Content-Type": "application/json; charset=latin-1"}, b"charset=latin-1: send JSON in UTF-8"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"Content-Encoding is gzip"),
    ],
)
def test_other_kinds_of_content_are_415(served: Served, headers: dict[str, str], word: bytes) -> None:
    connection = served.connect()
    connection.request("POST", "/v1/generate", b'{"prompt": "a"}', headers)
    answer = connection.getresponse()
    assert answer.status == 415
    assert word in answer.read()
    connection.close()


def test_fields_in_the_address_are_422(served: Served) -> None:
    connection = served.connect()
    connection.request("POST", "/v1/generate?stream=true", b'{"prompt": "a"}', {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 422
    assert b"the address has ?stream=true: put the fields into the JSON body" in answer.read()
    connection.close()


TIGHT = Limits(
    body_bytes=20_000, prompt_characters=50, images=2, image_pixels=10_000, new_tokens=80, waiting=2, seconds=60
)
SMALL = to_data_url(Image.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": "a" * 51}, 413, ["51 characters", "at most 50"]),
        ({"prompt": "a" * 20_000}, 413, ["body is too large", "20000 bytes"]),
        (PROMPT | {"images": [SMALL] * 3}, 413, ["3 pictures", "at most 2"]),
        (
            PROMPT | {"images": [SMALL, to_data_url(Image.new("RGB", (101, 100)))]},
            413,
            ["images.1", "101 x 100", "10000"],
        ),
        (PROMPT | {"images": [huge_png(60_000, 60_000)]}, 413, ["images.0 is too large"]),
        (PROMPT | {"max_new_tokens": 81}, 422, ["max_new_tokens = 81", "at most 80"]),
    ],
)
def test_limits_of_a_request(blocks: tuple[Any, Any], body: Any, status: int, words: list[str]) -> None:
    with serving(*blocks, limits=TIGHT) as served:
        found, _, answer = served.post(body)
        assert found == status
        for word in words:
            assert word in answer["error"]
        assert served.engine.statistics().submitted == 0
        assert served.post(PROMPT)[2]["tokens"] <= 80, "the limit is the length where none is given"


def test_a_body_of_unknown_length_is_counted_while_it_is_read(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, limits=TIGHT) as served:
        connection = served.connect()
        connection.putrequest("POST", "/v1/generate")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for _ in range(3):  # less than would fill the buffers between; the end of the body is never sent
            connection.send(b"%x\r\n%s\r\n" % (8000, b" " * 8000))
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"at most 20000 bytes" in answer.read()
        assert answer.headers["Connection"] == "close"
        connection.close()


def test_a_body_that_does_not_come_is_408(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, limits=Limits(seconds=0.05)) as served:
        connection = served.connect()
        connection.putrequest("POST", "/v1/generate")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408
        assert b"0.05 seconds" in answer.read()
        connection.close()


def test_more_requests_than_may_wait_are_told_to_come_back(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, limits=TIGHT, steps=0) as served:
        waiting = [served.send(ONE_PICTURE) for _ in range(3)]
        wait_until(lambda: len(served.service.jobs) == 3)
        for stream in (False, True):
            status, headers, answer = served.post(ONE_PICTURE, stream=stream)
            assert status == 503
            assert int(headers["Retry-After"]) >= 1
            assert "3 requests wait" in answer["error"]
            assert "2" in answer["error"]
        served.gate.open()
        for connection in waiting:
            assert connection.getresponse().status == 200
            connection.close()
        wait_until(served.is_empty)
        assert served.post(ONE_PICTURE)[0] == 200


def test_a_request_whose_time_is_over_is_aborted(blocks: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastdecode.serve.answers, "GRACE_SECONDS", PATIENCE)
    with serving(*blocks, limits=Limits(seconds=0.3), steps=0) as served:  # however slow the machine: never finished

        def begin(stream: bool) -> http.client.HTTPConnection:
            """A request that was submitted; a body that a slow machine did not read in time is sent again."""
            before = set(served.service.jobs)
            connection = served.send(SNOWMAN, stream=stream)
            wait_until(lambda: served.service.jobs - before or readable(connection))
            if served.service.jobs - before:
                return connection
            assert connection.getresponse().status == 408
            connection.close()
            return begin(stream)

        plain, streamed = begin(False), begin(True)
        wait_until(lambda: [job.cause for job in served.service.jobs] == ["timeout"] * 2)
        served.gate.open()
        answer = plain.getresponse()
        assert answer.status == 504
        refused = json.loads(answer.read())
        *_, (name, told) = events_of(streamed.getresponse())
        assert (name, told["reason"]) == ("finished", "timeout")
        assert "status" not in told
        for content in refused, told:
            assert "was aborted: it was not finished after 0.3 seconds" in content["error"]
        for connection in plain, streamed:
            connection.close()
        wait_until(served.is_empty)
        assert served.engine.statistics().aborted == 2


def test_a_request_that_fails_says_so(blocks: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*blocks, pages=9) as served:  # enough to begin, not to end
        status, _, answer = served.post(SNOWMAN)
        assert status == 503
        assert "request 0 failed" in answer["error"]
        assert "pages" in answer["error"]
        [*_, (name, content)] = served.stream(SNOWMAN)
        assert (name, content["reason"]) == ("finished", "error")
        assert "request 1 failed" in content["error"]
        wait_until(served.is_empty)
        assert served.engine.statistics().failed == 2

        def broken(*_: Any) -> None:
            raise RuntimeError("the model is broken")

        monkeypatch.setattr(served.engine._core.runner, "run", broken)
        status, _, answer = served.post(ONE_PICTURE)
        assert status == 500
        assert "the model is broken" in answer["error"]


def test_what_nobody_expected_is_500_and_the_server_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody expected this")

    with monkeypatch.context() as patched:
        patched.setattr(served.engine, "submit", broken)
        status, _, answer = served.post(ONE_PICTURE)
    assert status == 500
    assert "its log" in answer["error"]
    assert served.post(ONE_PICTURE)[0] == 200


@pytest.mark.parametrize(
    "wrong", [{"body_bytes": 0}, {"images": -1}, {"seconds": 0}, {"seconds": float("inf")}, {"waiting": True}]
)
def test_limits_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
