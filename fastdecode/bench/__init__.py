"""``fastdecode bench``: times an operation and its alternatives in the same run."""
