"""What the body of ``POST /v1/generate`` may say."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError

from fastdecode.guidance import Guidance
from fastdecode.models.recipe import TASKS
from fastdecode.serve.limits import Refused

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SamplingFields(BaseModel):
    """Sampling parameters of text or of pictures; what is left out is the model's own."""

    model_config = STRICT

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class InstructFields(BaseModel):
    """The scales of `fastdecode.Guidance.instruct`."""

    model_config = STRICT

    text: float
    image: float


def _kind_of_guidance(value: Any) -> str | None:
    if isinstance(value, (dict, InstructFields)):
        return "instruct"
    return "scale" if isinstance(value, (int, float)) and not isinstance(value, bool) else None


GuidanceField = Annotated[
    Annotated[float, Tag("scale")] | Annotated[InstructFields, Tag("instruct")],
    Discriminator(
        _kind_of_guidance,
        custom_error_type="guidance",
        custom_error_message='give null, a number such as 3.0, or {"text": 3.0, "image": 1.2}',
    ),
]


MODE = "interleaved-text-image"
"""Of a request without a task."""


class GenerateRequest(BaseModel):
    """One request.

    prompt          text; ``<image>`` marks where a picture goes (without a mark, pictures go before the text)
    task            text-to-image, interleaved, edit, caption, chat or infill: prompt and options are made of ``prompt``
                    and ``images`` as `fastdecode.recipe` does; what the request says goes before its options
    image_size      with a task: width and height in pixels of the pictures to draw; the model's usual size if left out
    images          PNG or JPEG, in base64 or as data URLs
    mode            text-only, image-only, interleaved-text-image or unrestricted; if left out, the task's, or
                    interleaved-text-image
    max_new_tokens  most tokens; the task's, or as many as the server's limit and the model's context allow, if left out
    seed            64 bits; drawn by the server, and told in the answer, if left out
    guidance        null, a number (two-way; 1: none), or the two scales of `fastdecode.Guidance.instruct`
    text, image     sampling parameters
    priority        requests of a higher one go first
    stream          answer with server-sent events while the document is decoded
    previews        while streaming, also show pictures that are not finished
    """

    model_config = STRICT

    prompt: str
    task: Literal[TASKS] | None = None  # type: ignore[valid-type]
    image_size: tuple[int, int] | None = None
    images: tuple[str, ...] = ()
    mode: Literal["text-only", "image-only", "interleaved-text-image", "unrestricted"] | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    guidance: GuidanceField | None = None
    text: SamplingFields | None = None
    image: SamplingFields | None = None
    priority: int = 0
    stream: bool = False
    previews: bool = True

    def options(self) -> dict[str, Any]:
        """As options of `fastdecode.generate`, without the prompt, its length and the seed: with a task only those that
        the request has.
        """
        found: dict[str, Any] = {}
        if self.mode is not None or self.task is None:
            found["multimodal_generation_mode"] = self.mode or MODE
        if isinstance(self.guidance, InstructFields):
            found["guidance"] = Guidance.instruct(self.guidance.text, self.guidance.image)
        elif self.guidance is not None:
            found["guidance"] = float(self.guidance)
        for name, values in (("text", self.text), ("image", self.image)):
            if values is not None:
                found[name] = values.model_dump(exclude_none=True)
        return found


def read_request(body: bytes) -> GenerateRequest:
    """The request in a body of JSON. `Refused` with 422 names the first field that is wrong."""
    try:
        asked = GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, _sentence(error)) from None
    if asked.image_size is not None and asked.task is None:
        raise Refused(422, "image_size needs a task, such as text-to-image")
    return asked


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    kind, message, place = first["type"], first["msg"], list(first["loc"])
    if place[:1] == ["guidance"]:
        place = [part for part in place if part not in ("scale", "instruct")]
    where = ".".join(map(str, place))
    if kind == "json_invalid":
        return f"the body cannot be read as JSON: {message.removeprefix('Invalid JSON: ')}"
    if place[:1] == ["image_size"]:
        return "image_size must be the width and the height in pixels, such as [768, 512]"
    if not place:
        return 'the body must be a JSON object, such as {"prompt": "Build a snowman in column 3."}'
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        owners: dict[Any, type[BaseModel]] = {
            "text": SamplingFields,
            "image": SamplingFields,
            "guidance": InstructFields,
        }
        owner = owners.get(place[0], GenerateRequest) if len(place) > 1 else GenerateRequest
        return f"{where}: there is no such field; there are {', '.join(owner.model_fields)}"
    return f"{where} = {reprlib.repr(first['input'])}: {message[:1].lower()}{message[1:]}"
