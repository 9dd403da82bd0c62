"""What a row became: text and pictures, as the files that are written."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fastdecode.models.recipe_words import as_python

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
"""The ids that are names of files as they are."""


def key_of(name: str) -> str:
    """The name of an id's files: the id, or what it begins like and a hash of it."""
    if PLAIN.fullmatch(name):
        return name
    begin = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60]
    return f"{begin or 'item'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


COMPRESSION = 1
"""Of PNG: three times as fast as Pillow's usual 6, and files a quarter larger at most."""


@dataclass(frozen=True)
class Item:
    """``parts``: text and pictures in order. ``facts``: what else is told of it; with an "error" if it failed."""

    id: str
    parts: Sequence[str | Image.Image]
    facts: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        return "error" in self.facts

    @property
    def key(self) -> str:
        return key_of(self.id)

    def files(self) -> dict[str, bytes]:
        """Its files: ``item.json``, and ``picture-1.png`` and so on, with the recipe in their metadata."""
        found: dict[str, bytes] = {}
        parts: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, str):
                parts.append({"text": part})
            else:
                name = f"picture-{len(found) + 1}.png"
                found[name] = png(part, {**self.facts, "picture": len(found) + 1})
                parts.append({"picture": name, "bytes": len(found[name])})
        facts = {"id": self.id, **self.facts, "parts": parts}
        text = json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=False)
        return {"item.json": (text + "\n").encode("utf-8", "surrogatepass"), **found}


def png(picture: Image.Image, facts: Mapping[str, Any]) -> bytes:
    """A picture as PNG, with ``facts`` as JSON under "fastdecode"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("fastdecode", json.dumps(facts, ensure_ascii=False))
    out = io.BytesIO()
    picture.save(out, "png", pnginfo=info, compress_level=COMPRESSION)
    return out.getvalue()


def told(value: Any) -> Any:
    """``value`` as JSON can say it: what it cannot is written as Python would."""
    if isinstance(value, Mapping):
        return {str(name): told(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else as_python(value)
