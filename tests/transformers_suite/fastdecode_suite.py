"""A pytest plugin for transformers' tests: selects those of generation, and enables every model that they make.

pytest runs in the folder of transformers' tests, whose package has the same name as ours. So this file is loaded as a
module of its own, and finds fastdecode through ``FASTDECODE_SUITE_ROOT``.
``FASTDECODE_SUITE_ENABLED=1``: enable models.
The outcome of every test, and who decoded how many calls, go to the JSON file ``FASTDECODE_SUITE_REPORT``.
"""

import importlib
import json
import os
import random
import sys
import types
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

ENABLED = os.environ["FASTDECODE_SUITE_ENABLED"] == "1"
SEED = 0

OUTCOMES: dict[str, str] = {}
MESSAGES: dict[str, str] = {}
CALLS: dict[str, Counter] = {}
"""By test: calls decoded by fastdecode, handed over, and those that raised before either."""

REASONS: Counter = Counter()
"""Why calls were handed over."""

_running = "collection"


def _count(what: str) -> None:
    CALLS.setdefault(_running, Counter())[what] += 1


def _enable_every_model() -> None:
    root = os.environ["FASTDECODE_SUITE_ROOT"]
    sys.path.insert(0, root)
    import fastdecode
    from fastdecode.decoder.classes import DECODED
    from fastdecode.generation import api
    from fastdecode.generation.enabling import EnabledGenerate

    sys.path.remove(root)  # transformers' tests are called `tests` too
    assert Path(fastdecode.__file__).is_relative_to(root), fastdecode.__file__

    def counted(function, what):
        def call(*args, **kwargs):
            _count(what)
            return function(*args, **kwargs)

        return call

    api.decode_call = counted(api.decode_call, "decoded by fastdecode")
    say_once = counted(api.say_once, "handed to transformers")

    def counted_reason(reason):
        REASONS[reason] += 1
        say_once(reason)

    api.say_once = counted_reason
    generate = EnabledGenerate.__call__

    def reporting(self, *args, **kwargs):
        before = sum(CALLS.get(_running, {}).values())
        try:
            return generate(self, *args, **kwargs)
        except Exception as error:
            if sum(CALLS.get(_running, {}).values()) == before:
                _count("raised before decoding")
                MESSAGES.setdefault(_running, f"{type(error).__name__}: {error}"[:300])
            raise

    EnabledGenerate.__call__ = reporting
    for known in DECODED:

        def enabled(self, *args, original=known.model.__init__, **kwargs):
            original(self, *args, **kwargs)
            fastdecode.enable(self)

        known.model.__init__ = enabled


def _stand_ins() -> None:
    """Modules that transformers' tests import at the top, and those of generation use only with the network."""
    import transformers.utils.import_utils  # noqa: F401 - it asks which packages there are, before there are stand-ins

    for name in ("datasets", "requests"):
        try:
            importlib.import_module(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            stand_in.__getattr__ = lambda attribute: MagicMock(name=attribute)
            sys.modules[name] = stand_in


_stand_ins()
if ENABLED:
    _enable_every_model()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.generation.test_utils import GenerationTesterMixin

    def of_generation(item: pytest.Item) -> bool:
        name = item.name
        mixed = isinstance(getattr(item, "cls", None), type) and issubclass(item.cls, GenerationTesterMixin)
        return (mixed and hasattr(GenerationTesterMixin, name)) or "generat" in name

    left_out = [item for item in items if not of_generation(item)]
    items[:] = [item for item in items if of_generation(item)]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same random inputs with and without fastdecode."""
    global _running
    from tests import test_modeling_common

    _running = item.nodeid
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - transformers' tests use it
    torch.manual_seed(SEED)
    test_modeling_common.global_rng.seed(SEED)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome
        if report.outcome == "failed" and report.longrepr is not None:
            MESSAGES[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = {"outcomes": OUTCOMES, "messages": MESSAGES, "calls": CALLS, "reasons": REASONS}
    Path(os.environ["FASTDECODE_SUITE_REPORT"]).write_text(json.dumps(report))
