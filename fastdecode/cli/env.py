"""``fastdecode env``: prints what is installed, what works, and the reason why something does not."""

from __future__ import annotations

import json

from fastdecode.environment import collect


def show(as_json: bool) -> None:
    """Prints what `fastdecode.environment.collect` finds."""
    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    wrong = facts.pop("problems")
    for key, value in facts.items():
        if isinstance(value, dict):
            print(key)
            for name, fact in value.items():
                print(f"  {name:22} {fact}")
        else:
            print(f"{key:24} {value}")
    print("\nnothing is wrong" if not wrong else "\nto look at:")
    for sentence in wrong:
        print(f"  {sentence}")
