"""Clients that leave, and servers that shut down, leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.serve.serving import ONE_PICTURE, SNOWMAN, serving, wait_until


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 12], ids=["waiting", "in text", "in a picture"])
def test_a_client_that_leaves_aborts_its_request(blocks: tuple[Any, Any], steps: int, stream: bool) -> None:
    with serving(*blocks, steps=steps) as served:
        connection = served.send(SNOWMAN, stream=stream)
        wait_until(lambda: len(served.service.jobs) == 1)
        [job] = served.service.jobs
        wait_until(lambda: bool(job.handle.tokens) == bool(steps))
        if stream:
            answer = connection.getresponse()
            assert answer.readline() == b"event: begun\n"
            answer.close()
        connection.close()
        wait_until(lambda: job.cause == "left")
        served.gate.open()
        wait_until(served.is_empty)
        now = served.engine.statistics()
        assert (now.submitted, now.aborted, now.finished, now.failed) == (1, 1, 0, 0)
        assert served.post(ONE_PICTURE)[0] == 200


def test_a_client_that_leaves_while_it_sends(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks) as served:
        connection = served.connect()
        connection.putrequest("POST", "/v1/generate")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b'{"prompt"')
        connection.close()
        assert served.post(ONE_PICTURE)[0] == 200
        assert served.engine.statistics().submitted == 1


def test_shutdown_ends_streams_with_an_event_that_says_so(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, steps=12, max_rows=3) as served:
        streams = [served.stream(SNOWMAN) for _ in range(2)]  # the second one waits
        events = [[next(stream)] for stream in streams]
        plain = served.send(SNOWMAN)
        wait_until(lambda: len(served.service.jobs) == 3 and served.engine.statistics().running != 0)
        served.stop()
        wait_until(lambda: served.service.stopping)
        served.gate.open()
        for told, stream in zip(events, streams, strict=True):
            told += stream
            name, content = told[-1]
            assert (name, content["reason"]) == ("finished", "shutdown")
            assert content["error"].endswith("was aborted: the server is shutting down")
        answer = plain.getresponse()
        assert answer.status == 503
        assert "shutting down" in json.loads(answer.read())["error"]
        plain.close()
        served.join()
        now = served.engine.statistics()
        assert (now.aborted, now.pages_used, now.pages_retained, now.running + now.waiting) == (3, 0, 0, 0)
        with pytest.raises(RuntimeError, match="closed"):
            served.engine.submit("Build a tree in column 1.")


def test_no_request_is_taken_while_it_shuts_down(blocks: tuple[Any, Any]) -> None:
    with serving(*blocks) as served:
        served.service.stop()
        status, _, answer = served.post(ONE_PICTURE)
        assert status == 503
        assert "shutting down" in answer["error"]
        assert served.get("/healthz")[0] == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_cleanly(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fastdecode", "serve", "--port", "0", "--deterministic"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("fastdecode serves blocks at http://127.0.0.1:")
            url = line.split(" at ")[1].split()[0]
            body = json.dumps(SNOWMAN | {"stream": True, "text": {"temperature": 3.0}, "mode": "unrestricted"}).encode()
            asked = urllib.request.Request(f"{url}/v1/generate", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert answer.readline() == b"event: begun\n"
                process.send_signal(number)
                said = answer.read().decode()
            last = json.loads(said.strip().rsplit("data: ", 1)[1])
            assert last["reason"] in ("shutdown", "stop", "length"), "it may have been quicker than the signal"
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in errors
    assert "ERROR" not in errors
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/healthz", timeout=5)
