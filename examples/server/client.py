"""Ask a `fastdecode serve` for a document and show it while it grows; needs nothing but Python.

python client.py "Build a snowman in column 3." -o snowman
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def events(url: str, request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of the server-sent events of an answer."""
    body = json.dumps(request | {"stream": True}).encode()
    asked = urllib.request.Request(f"{url}/v1/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        name = ""
        for line in answer:
            key, _, value = line.decode().rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


def show(url: str, request: dict[str, Any], folder: Path) -> int:
    """Print the text as it comes and write the pictures; 0 if the document was finished."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for name, content in events(url, request):
        if name == "text":
            print(content["text"], end="", flush=True)
        elif name == "picture_done" and content["png"] is not None:
            number += 1
            file = folder / f"picture-{number}.png"
            file.write_bytes(base64.b64decode(content["png"].partition(",")[2]))
            print(f"\n[{file}]")
        elif name == "finished":
            print(f"\n{content['tokens']} tokens in {content['seconds']:.2f} s, seed {content['seed']}")
            if "error" in content:
                print(content["error"], file=sys.stderr)
                return 1
            return 0
    print("the server ended the answer before it was whole", file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--image", type=Path, action="append", default=[], help="PNG or JPEG of the prompt; repeatable")
    parser.add_argument("--mode", default="interleaved-text-image")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("document"), help="folder for the pictures")
    args = parser.parse_args()
    request: dict[str, Any] = {
        "prompt": args.prompt,
        "images": [base64.b64encode(file.read_bytes()).decode() for file in args.image],
        "mode": args.mode,
        "seed": args.seed,
        "text": {"do_sample": False},
    }
    if args.mode != "text-only":
        request |= {"guidance": {"text": 1.5, "image": 1.2}, "image": {"temperature": 0.7, "top_p": 0.9}}
    try:
        return show(args.url, request, args.output)
    except urllib.error.HTTPError as error:
        print(json.loads(error.read())["error"], file=sys.stderr)
    except OSError as error:
        print(f"no server answers at {args.url} (--url names another address): {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
