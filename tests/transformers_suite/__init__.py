"""Runs transformers' own generation tests with models that fastdecode has enabled, and without: see `__main__`."""
