"""``fastdecode demo``: a web page of what the embedded model draws, edits and describes."""

from __future__ import annotations

import base64
import html
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fastdecode.cli.output import whole_folder
from fastdecode.cli.progress import loading
from fastdecode.generation.api import explain, generate
from fastdecode.guidance import Guidance
from fastdecode.models.documents import Document, to_documents
from fastdecode.models.loading import load

GOALS = (
    "Build a house with blue walls and a red roof in column 2.",
    "Build a snowman in column 3.",
    "Build a tree in column 1.",
    "Build a traffic light in column 4.",
    "Build a row of a red square, a yellow circle and a purple diamond from column 2.",
    "Build a tower of an orange square, a blue circle, a white diamond and a green triangle in column 2.",
)
DRAWINGS = (
    "In column 2 a red circle.",
    "In column 1 a blue square, on it a yellow triangle. In column 4 a green diamond.",
    "In column 2 a purple square, on it an orange circle. In column 3 a white triangle.",
)
SCALES = (1.0, 1.5, 2.0, 3.0)
SAMPLES = 3
GUIDANCE = Guidance.instruct(text=1.5, image=1.2)
INSTRUCTIONS: dict[str, Any] = {
    "multimodal_generation_mode": "interleaved-text-image",
    "guidance": GUIDANCE,
    "text": {"do_sample": False},
    "image": {"temperature": 0.7, "top_p": 0.9},
    "max_new_tokens": 480,
}
"""Three-way guidance. These weights measured best: the usual 3.0 amplifies the errors of a small model."""
UNCERTAIN = {"temperature": 0.85, "top_p": 0.97}
EDITED = "In column 1 a red square, on it a blue circle. In column 3 a yellow triangle."
EDITS = ("Paint the blue circle green.", "Put a purple diamond in column 3.", "Take the top of column 1 away.")
QUESTION = "<image>Describe the picture."
ENLARGE = 4


@dataclass
class Tally:
    """The number of tokens and pictures decoded, and the time that it took."""

    tokens: int = 0
    pictures: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.tokens + other.tokens, self.pictures + other.pictures, self.seconds + other.seconds)

    def __str__(self) -> str:
        each = f", {1000 * self.seconds / self.pictures:.0f} ms per picture" if self.pictures else ""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens} tokens and {self.pictures} pictures in {self.seconds:.2f} s ({rate:.0f} tokens/s{each})"


@dataclass
class Studio:
    """The embedded model, a seed, and the total so far."""

    model: Any
    processor: Any
    seed: int
    total: Tally = field(default_factory=Tally)

    def ask(self, prompts: list[str], pictures: list[Image.Image] | None = None, **options: Any) -> list[Document]:
        """Decode all prompts in one batch. Returns one document per prompt."""
        inputs = self.processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        start = time.perf_counter()
        sequences = generate(self.model, **inputs, seed=[self.seed + i for i in range(len(prompts))], **options)
        documents = to_documents(self.model, self.processor, sequences, start=length)
        spent = time.perf_counter() - start
        pad = self.processor.tokenizer.pad_token_id
        drawn = sum(isinstance(part, Image.Image) for document in documents for part in document)
        self.total += Tally(int((sequences[:, length:] != pad).sum()), drawn, spent)
        return documents


def first_picture(document: Document) -> Image.Image:
    """The first picture of ``document``. ``RuntimeError`` if there is none."""
    for part in document:
        if isinstance(part, Image.Image):
            return part
    raise RuntimeError("the embedded model drew no picture where the demo asked for one")


def run_demo(output: Path, seed: int = 0) -> Tally:
    """Draw everything, write ``index.html`` and its pictures into ``output``, and print a summary."""
    with loading("blocks"):
        model, processor = load("blocks")
    studio = Studio(model, processor, seed)
    page = Page()
    with whole_folder(output, "demo") as folder:
        _instructions(studio, page)
        _scales(studio, page)
        _edits_and_captions(studio, page)
        effect = explain(model, **processor(text=GOALS[0], return_tensors="pt"), **INSTRUCTIONS)
        page.write(folder, studio.total, str(effect))
    print(studio.total)
    print(f"look at {output / 'index.html'} ({len(page.pictures)} pictures beside it)")
    return studio.total


def _instructions(studio: Studio, page: Page) -> None:
    before = studio.total
    documents = studio.ask(list(GOALS), **INSTRUCTIONS)
    spent = studio.total.seconds - before.seconds
    page.heading(
        "Illustrated instructions",
        "The model is given a goal. It writes each step and draws the scene after it, guided by what it would "
        f"draw from the pictures alone and from nothing, all goals in one batch: {spent:.2f} s.",
    )
    for goal, document in zip(GOALS, documents, strict=True):
        page.strip(goal, document, f"instruction-{GOALS.index(goal) + 1}")


def _scales(studio: Studio, page: Page) -> None:
    page.heading(
        "Guidance",
        "The same prompts at several guidance scales, at temperature 0.85 and top_p 0.97. A quarter of the "
        "captions that the model learned from had one wrong attribute; guidance undoes it.",
    )
    prompts = [f"Draw: {drawing}" for drawing in DRAWINGS for _ in range(SAMPLES)]
    columns = []
    for scale in SCALES:
        documents = studio.ask(prompts, multimodal_generation_mode="image-only", guidance=scale, image=UNCERTAIN)
        columns.append([first_picture(document) for document in documents])
    for i, drawing in enumerate(DRAWINGS):
        rows = [(f"scale {s:g}", c[i * SAMPLES : (i + 1) * SAMPLES]) for s, c in zip(SCALES, columns, strict=True)]
        page.grid(drawing, rows, f"guidance-{i + 1}")


def _edits_and_captions(studio: Studio, page: Page) -> None:
    [drawn] = studio.ask([f"Draw: {EDITED}"], multimodal_generation_mode="image-only", guidance=2.0)
    picture = first_picture(drawn)
    edited = studio.ask(
        [f"<image>{edit}" for edit in EDITS],
        [picture] * len(EDITS),
        multimodal_generation_mode="image-only",
        guidance=GUIDANCE,
        image={"temperature": 0.7, "top_p": 0.9},
    )
    results = [first_picture(document) for document in edited]
    page.heading("Edits", "A picture and an instruction in, a picture out.")
    for i, (edit, result) in enumerate(zip(EDITS, results, strict=True)):
        page.strip(edit, [picture, result], f"edit-{i + 1}")
    captions = studio.ask([QUESTION] * len(results), results, max_new_tokens=80, do_sample=False)
    page.heading("Captions", "The edited pictures, described by the same model.")
    for i, (caption, result) in enumerate(zip(captions, results, strict=True)):
        said = " ".join(part for part in caption if isinstance(part, str))
        page.strip("", [result, said], f"caption-{i + 1}")


class Page:
    """A self-contained HTML page, and the same pictures as files."""

    def __init__(self) -> None:
        self.body: list[str] = []
        self.pictures: dict[str, Image.Image] = {}

    def heading(self, title: str, words: str) -> None:
        self.body.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>")

    def strip(self, title: str, document: Document, name: str) -> None:
        """Add one document, from left to right. Each text is above or beside the picture that follows it."""
        cells, said, number = [], "", 0
        for part in document:
            if isinstance(part, str):
                said = part
                continue
            number += 1
            cells.append(self._figure(part, said, f"{name}-{number}"))
            said = ""
        rest = f"<p class=said>{html.escape(said)}</p>" if said else ""
        heading = f"<h3>{html.escape(title)}</h3>" if title else ""
        self.body.append(f"{heading}<div class=strip>{''.join(cells)}{rest}</div>")

    def grid(self, title: str, rows: list[tuple[str, list[Image.Image]]], name: str) -> None:
        """Add labelled groups of small pictures."""
        cells = []
        for k, (label, pictures) in enumerate(rows):
            drawn = "".join(self._image(p, f"{name}-{k + 1}-{j + 1}", small=True) for j, p in enumerate(pictures))
            cells.append(f"<figure>{drawn}<figcaption>{html.escape(label)}</figcaption></figure>")
        self.body.append(f"<h3>{html.escape(title)}</h3><div class=strip>{''.join(cells)}</div>")

    def _figure(self, picture: Image.Image, words: str, name: str) -> str:
        return f"<figure>{self._image(picture, name)}<figcaption>{html.escape(words)}</figcaption></figure>"

    def _image(self, picture: Image.Image, name: str, small: bool = False) -> str:
        self.pictures[name] = picture
        data = io.BytesIO()
        picture.save(data, "PNG")
        encoded = base64.b64encode(data.getvalue()).decode()
        kind = " class=small" if small else ""
        return f'<img{kind} alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'

    def write(self, folder: Path, total: Tally, effect: str) -> None:
        for name, picture in self.pictures.items():
            size = (picture.width * ENLARGE, picture.height * ENLARGE)
            picture.resize(size, Image.Resampling.NEAREST).save(folder / f"{name}.png")
        (folder / "index.html").write_text(
            "<!doctype html><html lang=en><meta charset=utf-8><title>fastdecode demo</title>"
            "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
            "img{width:160px;image-rendering:pixelated;border-radius:4px}img.small{width:76px;margin-right:3px}"
            "figure{margin:0 14px 8px 0;display:inline-block;vertical-align:top}"
            "figcaption{max-width:170px;font-size:13px;color:#444}.strip{display:flex;flex-wrap:wrap}"
            "h3{font-size:15px;margin:1.2em 0 .4em}.said{align-self:center;max-width:420px}"
            "pre{background:#f4f4f4;padding:1em;overflow:auto;font-size:13px}</style>"
            f"<h1>fastdecode</h1><p>Drawn by <em>blocks</em>, the embedded model: {html.escape(str(total))}.</p>"
            f"{''.join(self.body)}<h2>In effect</h2><pre>{html.escape(effect)}</pre></html>\n"
        )
