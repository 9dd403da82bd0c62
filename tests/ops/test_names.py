"""`fastdecode.ops.sample` and others are functions, although folders of the operations have the same names."""

import importlib
import pkgutil
import subprocess
import sys

from fastdecode import ops

FUNCTIONS = ("advance", "attend", "embed", "linear", "rms_norm", "rope_append", "sample", "swiglu")

# Each module is the first import of a process of its own: a fork of one that has loaded torch, which takes a second.
IMPORT_EACH = f"""
import importlib, os, sys, torch
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            assert "fastdecode" not in sys.modules
            importlib.import_module(name)
            import fastdecode
            from fastdecode.ops import sample
            for function in {FUNCTIONS!r}:
                found = getattr(fastdecode.ops, function)
                assert callable(found) and found.__module__ == f"fastdecode.ops.{{function}}.operation", (name, found)
                folder = importlib.import_module(f"fastdecode.ops.{{function}}")
                assert found is getattr(folder, function) is getattr(fastdecode.ops, function), (name, function)
            assert sample is fastdecode.ops.sample
            print(name)
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
"""


def test_functions_win_over_folders_of_their_names():
    names = [module.name for module in pkgutil.walk_packages(ops.__path__, "fastdecode.ops.")]
    assert {f"fastdecode.ops.{name}.reference" for name in FUNCTIONS} < set(names)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, "fastdecode.ops", *names], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["fastdecode.ops", *names], done.stderr


def test_every_public_name_is_there():
    for name in ops.__all__:
        assert getattr(ops, name) is not None
    for name in FUNCTIONS:
        assert getattr(importlib.import_module(f"fastdecode.ops.{name}"), name) is getattr(ops, name)
