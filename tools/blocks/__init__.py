"""The embedded model ``blocks``: its world, tokenizer, training and evaluation."""
