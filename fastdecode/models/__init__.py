"""Model families: what `generate` reads from a checkpoint, and the decoding of pictures."""
