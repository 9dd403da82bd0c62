"""One decode step of a model: embed, layers, and the rows of the output head that the step can use."""

from fastdecode.decoder.base import BaseDecoder, Upcoming
from fastdecode.decoder.choice import decoder_for
from fastdecode.decoder.decoder import Decoder
from fastdecode.decoder.forward import ForwardDecoder

__all__ = ["BaseDecoder", "Decoder", "ForwardDecoder", "Upcoming", "decoder_for"]
