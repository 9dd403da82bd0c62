"""The events of a request while it is decoded: its tokens as text and pictures of a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fastdecode.models.pictures import decode_pictures, missing_decoder_keys
from fastdecode.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens, of text and of pictures. The other events decode them."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text. The deltas between two pictures, joined and stripped, are a string of the document."""

    text: str


@dataclass(frozen=True, slots=True)
class PictureBegun:
    """Picture ``picture`` (counted from 0) begins; it will have ``total`` tokens."""

    picture: int
    total: int


@dataclass(frozen=True, slots=True)
class PicturePart:
    """Part of a picture: all its tokens so far, of ``total``; ends of rows are among them, if the model has such."""

    picture: int
    tokens: tuple[int, ...]
    total: int


@dataclass(frozen=True, slots=True)
class PictureDone:
    """A whole picture. ``image`` is None if there is no VQ decoder."""

    picture: int
    image: Image.Image | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. ``reason``: "stop" (an end token or a stopping criterion), "length", "aborted" or "error", with
    an ``error``.
    """

    reason: str
    error: BaseException | None = None


Event = Tokens | TextDelta | PictureBegun | PicturePart | PictureDone | Finished


class TextDecoder:
    """Decodes tokens one by one. It returns only text that later tokens cannot change."""

    WINDOW = 8

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.begin = self.told = 0

    def feed(self, token: int) -> str:
        self.tokens.append(token)
        before = self._text(self.tokens[self.begin : self.told])
        text = self._text(self.tokens[self.begin :])
        if text.endswith("�") or len(text) <= len(before):
            return ""  # an incomplete character, or no visible text
        self.begin = max(self.told - self.WINDOW, self.begin)
        self.told = len(self.tokens)
        return text[len(before) :]

    def end(self) -> str:
        """The remaining text, complete or not. The next token begins another text."""
        before = self._text(self.tokens[self.begin : self.told])
        text = self._text(self.tokens[self.begin :])
        self.tokens, self.begin, self.told = [], 0, 0
        return text[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""
        return text


class DocumentEvents:
    """Turns the tokens of one sequence into events. Without a ``processor`` (or tokenizer): tokens and pictures only.

    ``draws``: whether a begin of image begins a picture, which it does not in text-only mode. ``begun``: image tokens
    of a picture that the prompt has begun; None if it has begun none.
    """

    def __init__(
        self, model: Any, processor: Any, vocabulary: Vocabulary, draws: bool = True, begun: list[int] | None = None
    ) -> None:
        self.model, self.vocabulary = model, vocabulary
        tokenizer = getattr(processor, "tokenizer", processor)
        self.text = None if tokenizer is None else TextDecoder(tokenizer)
        self.draws = draws and vocabulary.has_pictures
        self.paints = vocabulary.has_pictures and not missing_decoder_keys(model)
        self.picture: list[int] | None = begun
        self.pictures = 0

    def feed(self, tokens: list[int]) -> Iterator[Event]:
        """The events of these tokens. At the end of a picture it runs the VQ decoder."""
        v, part = self.vocabulary, False
        yield Tokens(tuple(tokens))
        for token in tokens:
            if self.picture is not None and token in v.block_ids:
                self.picture.append(token)
                part = True
                continue
            if part:
                yield self._part()
                part = False
            if self.picture is not None:
                yield from self._close(closed=token == v.end_image)
                if token == v.end_image:
                    continue
            if token == v.begin_image and self.draws:
                yield from self._flush()
                self.picture = []
                yield PictureBegun(self.pictures, v.image_length)
            elif self.text is not None and token not in v.block_ids:
                text = self.text.feed(token)
                if text:
                    yield TextDelta(text)
        if part:
            yield self._part()

    def end(self) -> Iterator[Event]:
        """The remaining events after the last token."""
        yield from self._flush()

    def _part(self) -> PicturePart:
        assert self.picture is not None
        return PicturePart(self.pictures, tuple(self.picture), self.vocabulary.image_length)

    def _close(self, closed: bool) -> Iterator[Event]:
        """End a picture. An incomplete one is not decoded, as `fastdecode.to_documents` leaves it out."""
        tokens, self.picture = self.picture or [], None
        if closed and self.vocabulary.grid(tokens) is not None:
            image = decode_pictures(self.model, [tokens], self.vocabulary)[0] if self.paints else None
            yield PictureDone(self.pictures, image)
        self.pictures += 1

    def _flush(self) -> Iterator[Event]:
        text = self.text.end() if self.text is not None else ""
        if text:
            yield TextDelta(text)
