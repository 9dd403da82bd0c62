"""A document that transformers' own loop makes, because the engine cannot read the pictures of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HandedOver:
    """As much of a `fastdecode.Handle` as the command needs."""

    def __init__(self, model: Any, processor: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._model, self._processor, self._inputs = model, processor, inputs
        self._options = {**options, **options.get("text", {})}  # transformers has one set of sampling parameters
        self._options.pop("text", None)
        self._seed: int = self._options.pop("seed")
        self.tokens: list[int] = []
        self.done = False

    @staticmethod
    def needed(model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the prompt has pictures that the model reads as vectors."""
        from fastdecode.models.pictures import reads_vectors

        return inputs.get("pixel_values") is not None and reads_vectors(model)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `fastdecode.generate`."""
        return {**self._inputs, **self._options}

    def result(self) -> list[int]:
        """The new tokens. transformers samples with torch's generator, which gets the seed."""
        import torch

        from fastdecode.generation.api import generate

        if not self.done:
            torch.manual_seed(self._seed)
            found: Any = generate(self._model, **self.arguments)
            self.tokens = found[0, self._inputs["input_ids"].shape[1] :].tolist()
            self.done = True
        return self.tokens

    def document(self) -> list[Any]:
        from fastdecode.models.documents import to_documents

        [document] = to_documents(self._model, self._processor, [self.result()])
        return document
