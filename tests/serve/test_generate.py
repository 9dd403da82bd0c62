"""Answers in JSON and in streams equal `fastdecode.generate`; and the other routes."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdecode.serve.pictures import to_data_url
from tests.serve.serving import (
    ONE_PICTURE,
    SNOWMAN,
    Served,
    as_document,
    generated,
    same,
    streamed_document,
    to_picture,
    wait_until,
)

CASES = {
    "instruct": SNOWMAN,
    "one picture": ONE_PICTURE,
    "two-way": ONE_PICTURE | {"guidance": 2.0, "image": {"temperature": 0.85, "top_p": 0.97}},
    "text": {"prompt": SNOWMAN["prompt"], "mode": "text-only", "max_new_tokens": 6, "text": {"temperature": 0.9}}
    | {"seed": 5},
    "markers without pictures": {"prompt": SNOWMAN["prompt"], "mode": "text-only", "max_new_tokens": 40, "seed": 5},
    "cut in a picture": SNOWMAN | {"mode": "unrestricted", "max_new_tokens": 120},
    "room for one picture": SNOWMAN | {"max_new_tokens": 120},
}


@pytest.mark.parametrize("request_", CASES.values(), ids=CASES)
def test_json_stream_and_generate_agree(served: Served, blocks: tuple[Any, Any], request_: dict[str, Any]) -> None:
    wanted = generated(*blocks, request_)
    reason = "length" if {"text-only", "unrestricted"} & {request_.get("mode")} else "stop"
    status, headers, answer = served.post(request_)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert same(as_document(answer["document"]), wanted)
    events = list(served.stream(request_))
    assert same(streamed_document(events), as_document(answer["document"]))
    [(first, begun), *_, (last, finished)] = events
    assert (first, last) == ("begun", "finished")
    assert begun == {"number": 1, "seed": request_["seed"]}
    for end, number in ((answer, 0), (finished, 1)):
        assert end["number"] == number
        assert end["seed"] == request_["seed"]
        assert end["reason"] == reason
        assert end["tokens"] == answer["tokens"] > 5
        assert end["seconds"] > 0
        assert "error" not in end
    wait_until(served.is_empty)


def test_a_stream_shows_pictures_as_far_as_they_are_drawn(served: Served) -> None:
    events = list(served.stream(SNOWMAN))
    parts = [content for name, content in events if name == "picture_part"]
    assert parts
    rows: dict[int, list[int]] = {}
    for part in parts:
        assert part["total"] == 64
        rows.setdefault(part["picture"], []).append(part["tokens"] // 8)
        picture = to_picture(part["png"])
        assert (picture.mode, picture.size) == ("RGBA", (64, 64))
        drawn = np.asarray(picture)[::8, ::8, 3].reshape(-1) == 255
        assert drawn.tolist() == [i < part["tokens"] for i in range(64)]
    for told in rows.values():
        assert told == sorted(set(told)), "at most one preview for each row"
    names = [name for name, _ in events]
    assert names.count("picture_begun") == names.count("picture_done") >= 2
    without = list(served.stream(SNOWMAN, previews=False))
    assert "picture_part" not in {name for name, _ in without}
    assert same(streamed_document(without), streamed_document(events))


def test_a_picture_of_an_answer_can_be_edited_and_described(served: Served, blocks: tuple[Any, Any]) -> None:
    _, _, drawn = served.post(ONE_PICTURE)
    url = drawn["document"][0]["png"]
    ask = {"prompt": "<image>Describe the picture.", "mode": "text-only", "max_new_tokens": 60, "seed": 1}
    wanted = generated(*blocks, ask | {"images": [to_picture(url)]})
    assert as_document(served.post(ask, images=[url])[2]["document"]) == wanted
    marked = served.post(ask, images=[url.partition(",")[2]], prompt="Describe the picture.")
    assert as_document(marked[2]["document"]) == wanted, "without a mark, pictures go before the text"
    status, _, edited = served.post(ONE_PICTURE, prompt="Put a blue square in column 4.", images=[url])
    assert (status, [part["type"] for part in edited["document"]]) == (200, ["picture"])


def test_jpeg_is_taken(served: Served) -> None:
    picture = Image.new("RGB", (80, 50), (200, 30, 30))
    url = to_data_url(picture)
    assert to_picture(url).size == (80, 50)
    assert served.post(ONE_PICTURE, images=[url], mode="text-only", max_new_tokens=4)[0] == 200


def test_a_seed_is_drawn_and_told(served: Served) -> None:
    request = ONE_PICTURE | {"seed": None, "image": {"temperature": 1.5}}
    _, _, first = served.post(request)
    _, _, second = served.post(request)
    assert first["seed"] != second["seed"]
    _, _, again = served.post(request, seed=first["seed"])
    assert again["document"] == first["document"]


def test_a_length_beyond_the_context_is_refused_and_none_fills_it(served: Served) -> None:
    request = {"prompt": SNOWMAN["prompt"], "mode": "unrestricted", "seed": 1, "text": {"temperature": 2.0}}
    status, _, answer = served.post(request | {"max_new_tokens": 100_000})
    assert status == 422
    found = re.search(
        r"max_new_tokens = 100000: the prompt has (\d+) tokens .* context is 512, .* room for (\d+):",
        answer["error"],
    )
    assert found is not None
    prompt, room = map(int, found.groups())
    assert prompt + room == 512
    assert served.post(request | {"max_new_tokens": room})[0] == 200
    assert served.post(request | {"max_new_tokens": room + 1})[0] == 422
    status, _, answer = served.post(request)
    assert status == 200
    assert answer["tokens"] <= room


def test_health_page_and_interface(served: Served) -> None:
    status, _, body = served.get("/healthz")
    assert status == 200
    assert json.loads(body) == {"status": "ok", "model": "blocks", "version": "0.1.0"}
    status, headers, body = served.get("/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    named = re.findall(rb'(?:href|src)="(page/[^"]+)"', body)
    assert len(named) == 2
    for path in named:
        assert served.get(f"/{path.decode()}")[0] == 200
    assert b"http://" not in body
    assert b"https://" not in body
    _, _, body = served.get("/openapi.json")
    schema = json.loads(body)["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(SNOWMAN) <= set(schema["properties"])
    for path, wanted in (("/nowhere", 404), ("/v1/generate", 405)):
        status, _, body = served.get(path)
        assert status == wanted
        assert path in json.loads(body)["error"]


def values(served: Served) -> dict[str, float]:
    lines = served.get("/metrics")[2].decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_count_requests(served: Served) -> None:
    before = values(served)
    assert before['fastdecode_requests_total{outcome="finished"}'] == 0
    tokens = [served.post(ONE_PICTURE)[2]["tokens"] for _ in range(2)]
    list(served.stream(ONE_PICTURE))
    assert served.post(ONE_PICTURE, seed="x")[0] == 422
    after = values(served)
    assert after['fastdecode_requests_total{outcome="finished"}'] == 3
    assert after['fastdecode_requests_total{outcome="aborted"}'] == 0
    assert after['fastdecode_refused_total{status="422"}'] == 1
    assert after["fastdecode_tokens_total"] == 3 * tokens[0]
    for name in ("time_to_first_token_seconds", "request_duration_seconds"):
        assert after[f"fastdecode_{name}_count"] == 3
        assert after[f"fastdecode_{name}_sum"] > 0
    assert after["fastdecode_pages_used"] == after["fastdecode_requests_running"] == 0
    assert after["fastdecode_pages_peak"] > 0
    assert "fastdecode_pages_limit" not in after
