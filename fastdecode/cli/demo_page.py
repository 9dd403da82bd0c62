"""The page of ``fastdecode demo``: one HTML file that holds its pictures, and the same pictures as files beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from fastdecode.models.documents import Document

ENLARGE = 4
"""How many times larger the files are than what the model draws."""

STYLE = """
:root{color-scheme:light dark;--ink:#222;--quiet:#555;--paper:#fff;--line:#ddd;--shade:#f4f5f7;--bad:#c0392b}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--quiet:#aaa;--paper:#16181c;--line:#3a3d44;--shade:#20242a;
--bad:#ff7a6b}}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--paper)}
h1{margin-bottom:.2em}h2{margin:2.2em 0 .3em;padding-top:.6em;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4em 0 .4em}p{max-width:46rem}
img{display:block;width:160px;max-width:100%;image-rendering:pixelated;border-radius:4px}
figure{margin:0;width:160px}figcaption{font-size:.82rem;line-height:1.35;color:var(--quiet);margin-top:.35em}
.strip{display:flex;flex-wrap:wrap;gap:14px}.edit{align-items:center}
.order{max-width:11rem;text-align:center;font-style:italic}.order::after{content:"\\2192";display:block;font-style:normal;
font-size:1.6rem;line-height:1}
.said{align-self:center;max-width:26rem;margin:0}
table{border-collapse:collapse;margin-top:1em}td,th{padding:.3em .9em .9em 0;text-align:left;vertical-align:top;
font-weight:normal}thead th{font-weight:600;padding-bottom:.2em}th.asked{width:12rem;font-size:.9rem}
.three{display:flex;gap:4px}.three img{width:56px}.three img.wrong{outline:2px solid var(--bad);outline-offset:-2px}
.score{font-size:.8rem;color:var(--quiet)}.key{color:var(--bad);font-weight:600}
pre{background:var(--shade);padding:1em;overflow:auto;font-size:.8rem;border-radius:4px}
@media (max-width:40rem){.three img{width:40px}th.asked{width:7rem}}
"""


class Page:
    """Collects sections. ``said`` holds alternative texts of pictures, by name; `write` adds those that are lacking."""

    def __init__(self) -> None:
        self.body: list[str | Callable[[], str]] = []
        self.pictures: dict[str, Image.Image] = {}
        self.said: dict[str, str] = {}

    def heading(self, title: str, *paragraphs: str) -> None:
        """Begin a section. Paragraphs are HTML."""
        self.body.append(f"<h2>{html.escape(title)}</h2>" + "".join(f"<p>{words}</p>" for words in paragraphs))

    def document(self, asked: str, document: Document, name: str) -> None:
        """Add what was asked, and the document: each text under the picture that follows it."""
        figures, said, number, steps = [], "", 0, ""
        for part in document:
            if isinstance(part, str):
                said = f"{said} {part}".strip()
                continue
            number, steps = number + 1, f"{steps} {said}".strip()
            kept = self._keep(f"{name}-{number}", part)
            self.said[kept] = f"The scene after: {steps}"
            figures.append((kept, f"{number}. {said}"))
            said = ""
        rest = f"<p class=said>{html.escape(said)}</p>" if said else ""
        self.body.append(f"<h3>Asked: {html.escape(asked)}</h3>")
        self.body.append(lambda: f"<div class=strip>{''.join(self._figure(*f) for f in figures)}{rest}</div>")

    def edit(self, before: Image.Image, order: str, after: Image.Image, name: str) -> None:
        """Add a picture, an instruction and the picture that came of it."""
        first, second = self._keep(f"{name}-1", before), self._keep(f"{name}-2", after)
        asked = f"<div class=order>{html.escape(order)}</div>"
        self.body.append(
            lambda: (
                f"<div class='strip edit'>{self._figure(first, 'Before')}{asked}{self._figure(second, 'After')}</div>"
            )
        )

    def caption(self, picture: Image.Image, said: str, name: str) -> None:
        """Add a picture beside the words that it was answered with."""
        kept = self._keep(name, picture)
        self.body.append(lambda: f"<div class=strip>{self._image(kept)}<p class=said>{html.escape(said)}</p></div><br>")

    def comparison(
        self, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]], name: str
    ) -> None:
        """Add a table: for each prompt and column several pictures; those that are described in other words than the
        prompt's are marked.
        """
        kept = [
            (asked, [[self._keep(f"{name}-{i + 1}-{j + 1}-{k + 1}", p) for k, p in enumerate(c)] for j, c in cells])
            for i, (asked, cells) in enumerate((asked, list(enumerate(cells))) for asked, cells in rows)
        ]

        def table() -> str:
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            lines = []
            for asked, cells in kept:
                line = f"<th class=asked>{html.escape(asked)}</th>"
                for names in cells:
                    right = [self.said[n] == asked for n in names]
                    shown = "".join(self._image(n, "" if ok else "wrong") for n, ok in zip(names, right, strict=True))
                    score = f"<div class=score>{sum(right)} of {len(right)} as asked</div>"
                    line += f"<td><div class=three>{shown}</div>{score}</td>"
                lines.append(f"<tr>{line}</tr>")
            return f"<table><thead><tr><th>Asked</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

        self.body.append(table)

    def _keep(self, name: str, picture: Image.Image) -> str:
        self.pictures[name] = picture
        return name

    def _figure(self, name: str, words: str) -> str:
        return f"<figure>{self._image(name)}<figcaption>{html.escape(words)}</figcaption></figure>"

    def _image(self, name: str, kind: str = "") -> str:
        data = io.BytesIO()
        self.pictures[name].save(data, "PNG")
        encoded = base64.b64encode(data.getvalue()).decode()
        marked = f" class={kind}" if kind else ""
        alt = f"{self.said[name]}{' This is not what was asked.' if kind == 'wrong' else ''}"
        return f'<img{marked} alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'

    @property
    def unsaid(self) -> dict[str, Image.Image]:
        """The pictures that have no alternative text yet, by name."""
        return {name: picture for name, picture in self.pictures.items() if name not in self.said}

    def write(self, folder: Path, said: dict[str, str], opening: str, effect: str) -> None:
        """Write ``index.html`` and the pictures. ``said``: what each of `unsaid` shows, by name; ``opening``: HTML."""
        self.said |= said
        for name, picture in self.pictures.items():
            size = (picture.width * ENLARGE, picture.height * ENLARGE)
            picture.resize(size, Image.Resampling.NEAREST).save(folder / f"{name}.png")
        parts = [part if isinstance(part, str) else part() for part in self.body]
        (folder / "index.html").write_text(
            "<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width,initial-scale=1'><title>fastdecode demo</title>"
            f"<style>{STYLE}</style><h1>fastdecode demo</h1>{opening}{''.join(parts)}"
            "<h2>How the instructions were decoded</h2><p>This is what <code>fastdecode.explain</code> says about the "
            f"first of them.</p><pre>{html.escape(effect)}</pre></html>\n"
        )
