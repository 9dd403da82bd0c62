"""Whether a checkpoint fits into memory: told before it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from fastdecode.models.checkpoint import DECODER_PREFIXES
from fastdecode.models.quantise import WIDTHS, Width

_SMALL = re.compile(r"(model\.)?(layers\.\d+\..*_proj|embed_tokens)\.weight|lm_head\.weight")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """``shapes``: of the stored weights by name. ``dtype``: of the model when it is loaded."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    @classmethod
    def of(cls, files: Mapping[str, Path], dtype: torch.dtype | None) -> Sizes:
        """Of weights by name and the safetensors that hold them, whose headers are read. Without a ``dtype`` it is that
        of the first weight.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(files.values())):
            with safe_open(path, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                    part = stored.get_slice(key)
                    shapes[key] = tuple(part.get_shape())
                    dtype = dtype or _DTYPES.get(part.get_dtype())
        return cls(shapes, dtype or torch.float32)

    def bytes(self, width: Width | None = None, dtype: torch.dtype | None = None) -> int:
        """The memory of the model, and of the largest matrix while it is made small."""
        size = (dtype or self.dtype).itemsize
        total = largest = 0
        for name, shape in self.shapes.items():
            numbers = torch.Size(shape).numel()
            if width is not None and len(shape) == 2 and _SMALL.fullmatch(name):
                total += width.bytes_of(*shape)
                largest = max(largest, numbers * size)
            else:
                total += numbers * (4 if name.startswith(DECODER_PREFIXES) else size)
        return total + largest

    def alternatives(self) -> Iterator[tuple[str, int]]:
        """Arguments of `load` with which the model is smaller, and its memory."""
        if self.dtype.itemsize > 2:
            yield "dtype='bfloat16'", self.bytes(dtype=torch.bfloat16)
        for kind in WIDTHS:
            yield f"weights={kind!r}", self.bytes(Width(kind))

    def check(self, name: str, width: Width | None) -> None:
        """``MemoryError`` if the model surely does not fit; it says what is needed, what there is, what would fit."""
        needed, free = self.bytes(width), available()
        if free is None or needed <= free:
            return
        others = [(how, size) for how, size in self.alternatives() if size < needed]
        fitting = [f"{how} ({_in_words(size)})" for how, size in others if size <= free]
        if fitting:
            advice = f"{' or '.join(fitting)} would fit"
        elif others:
            how, size = min(others, key=lambda other: other[1])
            advice = f"even {how} needs {_in_words(size)}"
        else:
            advice = "nothing smaller can be read"
        how = f"weights of {width.type}" if width else str(self.dtype).removeprefix("torch.")
        raise MemoryError(
            f"{name} needs {_in_words(needed)} of memory in {how}, but {_in_words(free)} are available: {advice}"
        )


def check_file(path: Path) -> None:
    """``MemoryError`` if the weights of a GGUF file surely do not fit."""
    needed, free = path.stat().st_size, available()
    if free is not None and needed > free:
        raise MemoryError(
            f"{path} needs {_in_words(needed)} of memory, but {_in_words(free)} are available: of the types that are "
            "read, Q4_0 is the smallest"
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def available() -> int | None:
    """Bytes that a process can still get here, with swap, or what its control group still allows it if that is less;
    None where the system does not tell.
    """
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        free = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    except (OSError, ValueError, KeyError):
        return None
    return min([free, *_of_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _of_groups(root: Path, own: Path) -> Iterator[int]:
    """What the limit of each control group around this process leaves (version 2). Pages of files can be dropped."""
    try:
        paths = [line.partition("::")[2] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return
    for path in paths:
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit = (folder / "memory.max").read_text().strip()
                used = int((folder / "memory.current").read_text())
                words = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = {name: int(value) for name, value in words}.get("file", 0)
            except (OSError, ValueError):
                continue
            if limit.isdigit():
                yield max(0, int(limit) - used + files)
