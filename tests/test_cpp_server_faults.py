"""examples/cpp_server: its reader of JSON alone, and what goes wrong before it serves."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from linking import ROOT, config, run

SOURCE = ROOT / "examples" / "cpp_server"
BLOCKS = ROOT / "fastdecode" / "assets" / "blocks"
READER = """
#include <cstdio>
#include <cstring>

#include "json.h"

int main(int count, char** texts) {
  for (int i = 1; i < count; ++i) {
    try {
      const Json json = JsonReader::read(texts[i], texts[i] + std::strlen(texts[i]), "text");
      std::printf("%.17g\\n", json.number);
    } catch (const std::exception& error) {
      std::printf("%s\\n", error.what());
    }
  }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("server") / "server"
    run("g++", "-std=c++17", "-O1", "-pthread", SOURCE / "server.cpp", *config("--cflags", "--libs"), "-o", program)
    return program


def test_numbers_are_those_of_json(tmp_path: Path):
    (tmp_path / "reader.cpp").write_text(READER)
    run("g++", "-std=c++17", f"-I{SOURCE}", tmp_path / "reader.cpp", "-o", tmp_path / "reader")
    right = ["0", "-0", "12", "-3.25", "1e3", "1.5E-2", "0.125e+1", "10"]
    wrong = ["+1", "01", "-01", ".5", "1.", "1.e3", "1e", "1e+", "-", "--1", "1-1", "1e5.5", "0x10", "1e999"]
    said = run(tmp_path / "reader", *right, *wrong).splitlines()
    assert [float(number) for number in said[: len(right)]] == [json.loads(number) for number in right]
    assert len(said) == len(right) + len(wrong)
    assert all(line.startswith("text is not valid JSON: ") for line in said[len(right) :])


def test_a_folder_as_config_is_one_plain_line(server: Path, tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    done = subprocess.run([server, tmp_path], capture_output=True, text=True, timeout=60, input="")
    assert (done.returncode, done.stderr) == (2, f"server: {tmp_path}/config.json cannot be read\n")


def test_too_many_workers_for_the_memory_end_the_server(server: Path):
    """It does not wait for its first workers, which would wait for requests while standard input stays open."""
    command = f'ulimit -v 900000 && exec "{server}" "{BLOCKS}" --workers 200 --slots 1 --pages 8'
    read, write = os.pipe()
    try:
        done = subprocess.run(["bash", "-c", command], stdin=read, capture_output=True, text=True, timeout=100)
    finally:
        os.close(read)
        os.close(write)
    assert (done.returncode, done.stderr) == (2, "server: no more threads can be started: try fewer --workers\n")
