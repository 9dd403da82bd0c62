"""Model families: what generate needs to know of a checkpoint, and how its pictures are decoded."""
