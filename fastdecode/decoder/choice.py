"""Which decoder a model gets."""

from __future__ import annotations

from typing import Any

from fastdecode.decoder.aligned import AlignedDecoder
from fastdecode.decoder.alterations import altered_reason, check_inputs, needs_forward
from fastdecode.decoder.base import BaseDecoder
from fastdecode.decoder.classes import known_classes
from fastdecode.decoder.decoder import Decoder
from fastdecode.decoder.forward import ForwardDecoder, check_callable, check_training
from fastdecode.decoder.others import check_supported


def check_decodable(model: Any) -> None:
    """TypeError and ValueError as `decoder_for`, without making the decoder. The last clause of a ValueError's message,
    after a colon, says what to do.
    """
    if known_classes(model) is None:
        check_supported(model)
        check_training(model.modules())
        return
    check_inputs(model)
    if needs_forward(model) is not None:
        check_callable(model)


def decoder_for(model: Any, deterministic: bool = False) -> BaseDecoder:
    """The fast decoder, if it computes what the model does; else one that calls the model's own forward.

    Give the model without its wrappers (`unwrapped`). TypeError for a model that `check_supported` refuses,
    ValueError for one that no decoder can decode.
    """
    if known_classes(model) is None:
        check_supported(model)
        return AlignedDecoder(model, deterministic, str(altered_reason(model)))
    check_inputs(model)
    reason = needs_forward(model)
    return Decoder(model, deterministic) if reason is None else ForwardDecoder(model, deterministic, reason)
