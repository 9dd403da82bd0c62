"""llama.cpp as a rival: a process that makes steps when it is told to, and otherwise sleeps."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from benchmarks.compiling import ROOT, compiled

BUILDS = {"without OpenMP": ("llama", "OFF"), "with OpenMP": ("llama-openmp", "ON")}


def build_all(folder: Path = ROOT / "build") -> list[Path]:
    """llama.cpp in every build that may be the fastest, by tools/build_llama.sh, in folders of ``folder``. What is
    there already is not built again. ``RuntimeError`` if a build fails.
    """
    made = []
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # a virtual environment has cmake
    for name, openmp in BUILDS.values():
        done = subprocess.run(
            [str(ROOT / "tools" / "build_llama.sh"), str(folder / name)],
            env={**os.environ, "LLAMA_OPENMP": openmp, "PYTHON": sys.executable, "PATH": tools},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"tools/build_llama.sh fails:\n{done.stdout[-3000:]}")
        made.append(folder / name)
    return made


def version(folder: Path) -> str:
    """What is built in ``folder``. ``RuntimeError`` if nothing is."""
    missing = [name for name in ("include/llama.h", "lib/libllama.so", ".version") if not (folder / name).exists()]
    if missing:
        raise RuntimeError(f"{folder} has no {', '.join(missing)}: fill it with tools/build_llama.sh {folder}")
    return (folder / ".version").read_text().strip()


class LlamaSteps:
    """The program ``llama_steps.cpp`` with one model. ``mmap``: weights stay in the mapped file.

    ``RuntimeError`` with what it said, where it cannot do what it is told. Use it in a ``with`` block.
    """

    def __init__(self, folder: Path, model: Path, threads: int, mmap: bool = True) -> None:
        folder = folder.resolve()
        built = version(folder)
        self.name = f"llama.cpp {built}" + ("" if mmap else ", not mapped")
        library = folder / "lib"
        flags = [f"-I{folder / 'include'}", f"-L{library}", f"-Wl,-rpath,{library}", "-lllama", "-lggml-cpu"]
        program = compiled(ROOT / "benchmarks" / "llama_steps.cpp", [*flags, "-lggml-base"])
        command = [str(program), str(model), str(threads), str(int(mmap))]
        self.command = shlex.join(command)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def __enter__(self) -> LlamaSteps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()  # which closes its stdin: it ends

    def _answer(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if not said or said.startswith("error"):
            raise RuntimeError(f"{self.command}: {said or f'ended with {self.process.wait()}'}")
        return said

    def _tell(self, *words: object, tokens: Iterable[int]) -> str:
        assert self.process.stdin is not None
        print(*words, *tokens, file=self.process.stdin, flush=True)
        return self._answer()

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Forget everything and read prompts, all of one length."""
        self._tell("start", len(prompts), len(prompts[0]), tokens=(token for prompt in prompts for token in prompt))

    def logits(self, tokens: Sequence[int], folder: Path) -> Tensor:
        """(sequences, vocabulary) float32 after one token for every prompt. ``folder``: for a file in between."""
        file = folder / f"logits-{self.process.pid}"
        self._tell("logits", file, tokens=tokens)
        found = torch.from_numpy(np.fromfile(file, np.float32).reshape(len(tokens), -1))
        file.unlink()
        return found

    def steps(self, tokens: Sequence[Sequence[int]]) -> list[float]:
        """The seconds of every step. ``tokens``: of a step, one for each prompt. Then the prompts end as before."""
        said = self._tell("steps", len(tokens), tokens=(token for step in tokens for token in step))
        return [float(word) for word in said.split()]
