"""Which decoder a model gets."""

from __future__ import annotations

from typing import Any

from fastdecode.decoder.alterations import check_inputs, needs_forward
from fastdecode.decoder.base import BaseDecoder
from fastdecode.decoder.decoder import Decoder
from fastdecode.decoder.forward import ForwardDecoder, check_callable


def check_decodable(model: Any) -> None:
    """TypeError and ValueError as `decoder_for`, without making the decoder. The last clause of a ValueError's message,
    after a colon, says what to do.
    """
    check_inputs(model)
    if needs_forward(model) is not None:
        check_callable(model)


def decoder_for(model: Any, deterministic: bool = False) -> BaseDecoder:
    """The fast decoder, if it computes what the model does; else one that calls the model's own forward.

    Give the model without its wrappers (`unwrapped`). TypeError for a model that `classes_of` does not accept,
    ValueError for one that no decoder can decode.
    """
    check_inputs(model)
    reason = needs_forward(model)
    return Decoder(model, deterministic) if reason is None else ForwardDecoder(model, deterministic, reason)
