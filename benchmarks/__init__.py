"""Benchmarks. Each checks its result before it times it, and measures its rival in the same run."""
