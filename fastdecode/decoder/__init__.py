"""One decode step of a model: embed, layers, and the rows of the output head that the step can use."""

from fastdecode.decoder.decoder import Decoder

__all__ = ["Decoder"]
