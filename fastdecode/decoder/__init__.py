"""One decode step of a model: embed, layers, and the rows of the output head that the step can use."""

from fastdecode.decoder.base import BaseDecoder, Upcoming
from fastdecode.decoder.choice import check_decodable, decoder_for
from fastdecode.decoder.decoder import Decoder
from fastdecode.decoder.forward import ForwardDecoder

__all__ = ["BaseDecoder", "Decoder", "ForwardDecoder", "Upcoming", "check_decodable", "decoder_for"]
