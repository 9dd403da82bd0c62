"""transformers' own generation tests, with every model enabled and without: the first must pass what the second passes.

    python -m tests.transformers_suite --tests FOLDER [--models chameleon llama mistral qwen2 qwen3] [--json FILE]

FOLDER is a checkout of transformers, or whatever holds its ``tests/generation`` and ``tests/models``, of about the
installed version. Tests that fail or are skipped without fastdecode (most of them need the network) do not count. The
exit status is 1 if a test passes only without fastdecode.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.transformers_suite.compare import MODELS, compare, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.transformers_suite", description=__doc__.split("\n\n")[0])
    parser.add_argument("--tests", type=Path, required=True, help="a checkout of transformers")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    arguments = parser.parse_args()
    found = [compare(arguments.tests, model) for model in arguments.models]
    print(table(found))
    for comparison in found:
        for test, message in comparison.lost.items():
            print(f"LOST  {test}\n      {message}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([comparison.to_dict() for comparison in found], indent=1))
    return int(any(comparison.lost for comparison in found))


if __name__ == "__main__":
    sys.exit(main())
