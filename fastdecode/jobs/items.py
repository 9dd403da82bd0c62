"""What a row became: text and pictures, as the files that are written."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

FACTS = "item.json"
PICTURE = "picture-{}.png"

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
"""The ids that are names of files as they are."""

COMPRESSION = 3
"""zlib's Z_RLE: several times as fast as Pillow's usual. Photographs get no larger by it, flat areas by a third."""


def key_of(name: str) -> str:
    """The name of an id's files: the id, or what it begins like, ``~`` and a hash of it."""
    if PLAIN.fullmatch(name):
        return name
    begin = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60]
    return f"{begin}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class Made(Protocol):
    """What a store writes of an item: see `Item`."""

    @property
    def id(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def failed(self) -> bool: ...

    def files(self) -> Mapping[str, bytes]: ...


@dataclass(frozen=True)
class Item:
    """A document, or why there is none.

    id      of its row
    parts   text and pictures in their order
    facts   what ``item.json`` says of it besides: JSON. Of an item that failed, with "error", why
    tokens  those that were generated
    """

    id: str
    parts: Sequence[str | Image.Image]
    facts: Mapping[str, Any]
    tokens: tuple[int, ...] = ()

    @property
    def failed(self) -> bool:
        return "error" in self.facts

    def files(self) -> dict[str, bytes]:
        """Its files by their names: ``item.json``, and ``picture-1.png`` and so on, which have the facts in them."""
        found: dict[str, bytes] = {}
        parts: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, str):
                parts.append({"text": part})
                continue
            number = len(found) + 1
            name = PICTURE.format(number)
            found[name] = _png(part, {"id": self.id, **self.facts, "picture": number})
            parts.append({"picture": name, "bytes": len(found[name])})
        facts = {"id": self.id, **self.facts, "parts": parts}
        return {FACTS: (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode(), **found}


def _png(picture: Image.Image, facts: Mapping[str, Any]) -> bytes:
    """A picture as PNG, whose text "fastdecode" is ``facts`` as JSON."""
    info, out = PngInfo(), io.BytesIO()
    info.add_itxt("fastdecode", json.dumps(facts, ensure_ascii=False))
    picture.save(out, "png", pnginfo=info, compress_type=COMPRESSION)
    return out.getvalue()


def text_of(facts: Mapping[str, Any]) -> str:
    """The text of an item, its parts with an empty line between them."""
    return "\n\n".join(part["text"] for part in facts["parts"] if "text" in part)


def drawn(facts: Mapping[str, Any]) -> list[str]:
    """The names of an item's pictures, as `Item.files` names them."""
    return [part["picture"] for part in facts["parts"] if "picture" in part]


def facts_of(content: bytes, sizes: Mapping[str, int], name: str) -> dict[str, Any] | None:
    """What ``item.json`` says of the item ``name``; None unless it and all pictures, whose ``sizes`` these are, are
    whole.
    """
    try:
        facts = json.loads(content)
        pictures = [part for part in facts["parts"] if "picture" in part]
        whole = facts["id"] == name and all(sizes.get(each["picture"]) == each["bytes"] for each in pictures)
    except (ValueError, KeyError, TypeError):
        return None
    return facts if whole else None
