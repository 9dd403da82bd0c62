"""A document that ``fastdecode generate`` makes, and the files that it becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

    from fastdecode.generation.handle import Handle


@dataclass
class Wanted:
    """One document to be made."""

    prompt: str
    seed: int
    stem: str
    """Begins the names of its files: "" for the only document, else ``document-N``."""
    how: dict[str, Any] = field(default_factory=dict)
    """The options that made it, for the metadata of its pictures."""
    handle: Handle | None = None

    def metadata(self, number: int) -> PngInfo:
        """What a PNG says of how it was made: the text ``fastdecode`` is JSON with prompt, seed and options."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        made = {"prompt": self.prompt, "seed": self.seed, "picture": number, **self.how}
        info.add_itxt("fastdecode", json.dumps(made, ensure_ascii=False))
        return info

    @property
    def file(self) -> str:
        return f"{self.stem or 'document'}.md"

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the document and its pictures into ``folder``. Returns what was written, for ``--json``."""
        assert self.handle is not None
        parts: list[dict[str, str]] = []
        number = 0
        for part in self.handle.document():
            if isinstance(part, str):
                parts.append({"text": part})
            else:
                number += 1
                name = f"{self.stem}-picture-{number}.png" if self.stem else f"picture-{number}.png"
                part.save(folder / name, pnginfo=self.metadata(number))
                parts.append({"picture": name})
        made = {"prompt": self.prompt, "seed": self.seed, "tokens": len(self.handle.tokens), "file": self.file}
        (folder / self.file).write_text(markdown(parts) + "\n", encoding="utf-8")
        return {**made, "parts": parts}


def markdown(parts: Sequence[dict[str, str]]) -> str:
    """The parts of a document as text, with links to its pictures."""
    lines, number = [], 0
    for part in parts:
        if "text" in part:
            lines.append(part["text"])
        else:
            number += 1
            lines.append(f"![picture {number}]({part['picture']})")
    return "\n\n".join(lines)
