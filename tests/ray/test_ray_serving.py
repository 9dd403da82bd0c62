"""`fastdecode.ray.Server` on a real Ray Serve, on this machine."""

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
import ray.data
from ray import serve
from ray.serve.handle import DeploymentHandle

import fastdecode
from fastdecode.ray import Server
from tests.serve.serving import events_of

pytestmark = pytest.mark.xdist_group("ray")

PICTURE = {"prompt": "Draw: In column 2 a red circle.", "mode": "image-only", "seed": 3}
TREE = {
    "prompt": "Build a tree in column 1.",
    "seed": 7,
    "guidance": {"text": 1.5, "image": 1.2},
    "max_new_tokens": 300,
}
PORT = 8123


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def handle(cluster: None) -> DeploymentHandle:
    return serve.run(Server.bind(deterministic=True, limits={"waiting": 100}), name="fastdecode")


def post(request: dict[str, Any], port: int = PORT) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/generate", json.dumps(request), {"Content-Type": "application/json"})
    return connection


def events(connection: http.client.HTTPConnection) -> Iterator[tuple[str, Any]]:
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    yield from events_of(answer)


def text_of(told: list[tuple[str, Any]]) -> str:
    return "".join(content["text"] for name, content in told if name == "text").strip()


def local(request: dict[str, Any]) -> fastdecode.Handle:
    """What an engine here makes of it."""
    engine = fastdecode.Engine(*fastdecode.load("blocks"), deterministic=True)
    guidance = request.get("guidance")
    handle = engine.submit(
        request["prompt"],
        seed=request["seed"],
        multimodal_generation_mode=request.get("mode", "interleaved-text-image"),
        guidance=None if guidance is None else fastdecode.Guidance.instruct(guidance["text"], guidance["image"]),
        **({"max_new_tokens": request["max_new_tokens"]} if "max_new_tokens" in request else {}),
    )
    handle.result()
    return handle


def test_32_streaming_clients_of_which_some_leave(handle):
    def client(number: int) -> list[tuple[str, Any]] | None:
        connection = post({**TREE, "stream": True, "previews": False})
        told = []
        for event in events(connection):
            told.append(event)
            if number % 4 == 3 and len(told) > random.Random(number).randrange(1, 6):
                connection.sock.close()
                connection.close()
                return None
        return told

    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(client, range(32)))
    whole = [answer for answer in answers if answer is not None]
    assert len(whole) == 24
    expected = local(TREE)
    for told in whole:
        assert [name for name, _ in told].count("picture_done") > 0
        name, end = told[-1]
        assert (name, end["reason"], end["tokens"]) == ("finished", expected.reason, len(expected.tokens))
        assert text_of(told) == text_of(whole[0])
    deadline = time.monotonic() + 60
    while True:
        statistics = handle.statistics.remote().result()
        if statistics["running"] == statistics["waiting"] == 0:
            break
        assert time.monotonic() < deadline, statistics
        time.sleep(0.1)
    assert statistics["aborted"] > 0
    assert statistics["finished"] + statistics["aborted"] == statistics["submitted"] == 32
    assert statistics["pages_used"] == 0


def test_handles_give_whole_answers_and_events(handle):
    whole = handle.generate.remote(PICTURE).result()
    [once] = handle.options(stream=True).document.remote(PICTURE)
    told = list(handle.options(stream=True).events.remote(PICTURE))
    connection = post(PICTURE)
    over_http = json.loads(connection.getresponse().read())
    assert [part["type"] for part in whole["document"]] == ["picture"]
    assert whole["document"] == once["document"] == over_http["document"]
    [(_, done)] = [(name, content) for name, content in told if name == "picture_done"]
    assert done["png"] == whole["document"][0]["png"]
    assert whole["tokens"] == len(local(PICTURE).tokens)
    with pytest.raises(ValueError, match="there is no such field; there are prompt, task"):
        handle.generate.remote({**PICTURE, "promt": "x"}).result()
    with pytest.raises(ValueError, match="prompt is missing"):
        list(handle.options(stream=True).events.remote({}))


def test_a_cancelled_call_is_aborted(handle):
    before = handle.statistics.remote().result()["aborted"]
    call = handle.options(stream=True).events.remote({**TREE, "max_new_tokens": 500})
    assert next(iter(call))[0] == "begun"
    call.cancel()
    deadline = time.monotonic() + 60
    while handle.statistics.remote().result()["aborted"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert handle.statistics.remote().result()["pages_used"] == 0


def test_it_is_a_stage_of_ray_data(handle):
    from ray.data.llm import ServeDeploymentProcessorConfig, build_processor

    config = ServeDeploymentProcessorConfig(deployment_name="fastdecode", app_name="fastdecode", batch_size=4)
    stage = build_processor(
        config,
        preprocess=lambda row: {"method": "document", "dtype": None, "request_kwargs": {**PICTURE, "seed": row["id"]}},
        postprocess=lambda row: {"seed": row["seed"], "tokens": row["tokens"], "document": json.dumps(row["document"])},
    )
    rows = stage(ray.data.range(5)).take_all()
    assert sorted(row["seed"] for row in rows) == list(range(5))
    for row in rows:
        assert row["document"] == json.dumps(
            handle.generate.remote({**PICTURE, "seed": row["seed"]}).result()["document"]
        )


def test_a_rolling_update_loses_no_request(handle):
    """Clients go on asking while the replica is replaced. (The last test: the deployment is another one then.)"""
    stop, answers, lock = threading.Event(), [], threading.Lock()

    def client(number: int) -> None:
        while not stop.is_set():
            answer = post({**PICTURE, "seed": number}).getresponse()
            found = (answer.status, answer.read())
            with lock:
                answers.append((number, *found))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    before = len(answers)
    replicas = {"num_replicas": 2}
    changed = Server.options(**replicas).bind(deterministic=True, limits={"waiting": 100, "prompt_characters": 50})
    updated = serve.run(changed, name="fastdecode")
    during = len(answers)
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert 0 < before < during < len(answers)
    assert {status for _, status, _ in answers} == {200}, [a for a in answers if a[1] != 200][:3]
    by_seed: dict[int, set[str]] = {}
    for number, _, body in answers:
        by_seed.setdefault(number, set()).add(json.dumps(json.loads(body)["document"]))
    assert all(len(documents) == 1 for documents in by_seed.values())
    with pytest.raises(ValueError, match="this server takes at most 50"):
        updated.generate.remote({**PICTURE, "prompt": "x" * 60}).result()
