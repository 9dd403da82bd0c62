"""Fast guided decoding for models that write text and draw images as one token stream."""

__version__ = "0.1.0"
