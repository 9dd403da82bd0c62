"""``fastdecode serve``: its messages when it cannot start. tests/serve tests that it runs and ends."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest
import torch

from fastdecode import cli


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name in ("uvicorn", "prometheus_client") else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert cli.main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said == "fastdecode: serve needs uvicorn, prometheus_client: pip install 'fastdecode[serve]'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], ["port 70000", "65535"]),
        (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "cannot be listened at"]),
        (["--max-seconds", "0"], ["seconds is 0.0", "above 0"]),
        (["--max-images", "-1"], ["images is -1", "at least 0"]),
        (["--port", "0", "--max-rows", "0"], ["max_rows=0"]),
        (["--port", "0", "--dtype", "int4"], ["--dtype", "'int4'", "bfloat16"]),
        (["--port", "0", "--weights", "int2"], ["--weights", "'int2'", "int8", "int4"]),
        (["--port", "0", "--weights", "int4", "--device", "cuda"], ["--weights int4", "--device cuda", "for the CPU"]),
        (["--port", "0", "--device", "cuda:99"], ["--device cuda:99", "no such GPU"]),
        (["--port", "0", "--model", "no-such-folder"], ["no-such-folder", "blocks"]),
        (["--port", "0", "--like", "anole"], ["like='anole'", "Chameleon, Anole"]),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("fastdecode: ")
    for word in words:
        assert word in said


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    assert f"127.0.0.1 port {port} cannot be listened at: Address already in use" in capsys.readouterr().err


def test_the_dtype_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("fastdecode.serve.app.create_app", lambda engine, limits, **named: engine)
    monkeypatch.setattr("fastdecode.serve.server.run", lambda engine, listener: served.append(engine))
    assert cli.main(["serve", "--port", "0", "--dtype", "bfloat16"]) == 0
    assert [engine.model.dtype for engine in served] == [torch.bfloat16]


def test_the_weights_are_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("fastdecode.serve.app.create_app", lambda engine, limits, **named: engine)
    monkeypatch.setattr("fastdecode.serve.server.run", lambda engine, listener: served.append(engine))
    for weights in ("int8", "int4"):
        assert cli.main(["serve", "--port", "0", "--weights", weights]) == 0
    made = [repr(engine.model.model.layers[0].mlp.up_proj.weight) for engine in served]
    assert [text.partition(",")[0] for text in made] == ["SmallTensor(int8", "SmallTensor(int4"]
