"""An `Engine` of the embedded model, and what `generate` makes of the same prompts."""

from PIL import Image

import fastdecode
from fastdecode import Engine, PictureDone, TextDelta

BLOCKS, PROCESSOR = fastdecode.load("blocks")
SHORT = {"max_new_tokens": 12, "do_sample": True, "multimodal_generation_mode": "text-only"}
PICTURE = {"multimodal_generation_mode": "image-only", "guidance": 2.0, "do_sample": True}
TEXT = "Build a tree in column 1."


def engine(**options) -> Engine:
    return Engine(BLOCKS, PROCESSOR, **options)


def by_generate(prompt: str, **options):
    inputs = PROCESSOR(text=prompt, return_tensors="pt")
    out = fastdecode.generate(BLOCKS, **inputs, **options)
    return out, fastdecode.to_documents(BLOCKS, PROCESSOR, out, start=inputs["input_ids"].shape[1])[0]


def same_picture(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def same_document(one, other) -> bool:
    return len(one) == len(other) and all(
        a == b if isinstance(a, str) or isinstance(b, str) else same_picture(a, b)
        for a, b in zip(one, other, strict=True)
    )


def document_of(events) -> list:
    """What the events tell, as a document."""
    found: list = []
    for event in events:
        if isinstance(event, TextDelta):
            if not found or not isinstance(found[-1], str):
                found.append("")
            found[-1] += event.text
        elif isinstance(event, PictureDone):
            found.append(event.image)
    stripped = [part.strip() if isinstance(part, str) else part for part in found]
    return [part for part in stripped if part != ""]
