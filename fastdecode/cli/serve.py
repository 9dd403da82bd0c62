"""``fastdecode serve``: a web page and an HTTP interface; all requests share one engine."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from fastdecode.cli.arguments import DTYPES, WEIGHTS, check_device, check_weights, device

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    serve.add_argument("--model", default="blocks", help="'blocks', a folder or a hub id (default: %(default)s)")
    serve.add_argument("--vqgan", type=Path, default=None, help="Meta's vqgan.ckpt, for a checkpoint without decoder")
    serve.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    serve.add_argument(
        "--weights", choices=WEIGHTS, help="make the weights small, on the CPU (default: as in the checkpoint)"
    )
    serve.add_argument("--device", type=device, help="cpu, cuda or cuda:N (default: cpu)")
    serve.add_argument("--like", metavar="NAME", help="for requests with a task: which Chameleon it is, such as Anole")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    serve.add_argument("--pages", type=int, default=None, help="most pages of keys and values (default: no limit)")
    serve.add_argument("--max-rows", type=int, default=64, help="most streams in a step (default: %(default)s)")
    serve.add_argument("--deterministic", action="store_true", help="the same bits whatever runs beside a request")
    limits = serve.add_argument_group("limits, per request")
    limits.add_argument("--max-new-tokens", type=int, default=None, help="tokens (default: the model's context)")
    limits.add_argument("--max-body", type=int, default=16 << 20, help="bytes of a request (default: %(default)s)")
    limits.add_argument("--max-prompt", type=int, default=4000, help="characters (default: %(default)s)")
    limits.add_argument("--max-images", type=int, default=4, help="pictures of a prompt (default: %(default)s)")
    limits.add_argument("--max-pixels", type=int, default=1 << 24, help="pixels of each (default: %(default)s)")
    limits.add_argument("--max-waiting", type=int, default=64, help="requests that may wait (default: %(default)s)")
    limits.add_argument("--max-seconds", type=float, default=120.0, help="until it is aborted (default: %(default)g)")


def check_extra() -> None:
    """Check that the packages of the server are installed. RuntimeError says what to install."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"serve needs {', '.join(missing)}: pip install 'fastdecode[serve]'")


def serve(args: argparse.Namespace) -> None:
    """Load the model and serve it until SIGINT or SIGTERM."""
    check_extra()
    check_weights(args.weights, args.device)
    check_device(args.device)
    from fastdecode.generation.engine import Engine
    from fastdecode.models.loading import load
    from fastdecode.serve.app import create_app
    from fastdecode.serve.limits import Limits
    from fastdecode.serve.server import listen, run

    limits = Limits(
        body_bytes=args.max_body,
        prompt_characters=args.max_prompt,
        images=args.max_images,
        image_pixels=args.max_pixels,
        new_tokens=args.max_new_tokens,
        waiting=args.max_waiting,
        seconds=args.max_seconds,
    )
    with listen(args.host, args.port) as listener:
        dtype = None if args.dtype == "auto" else args.dtype
        model, processor = load(args.model, dtype=dtype, device=args.device, vqgan=args.vqgan, weights=args.weights)
        engine = Engine(model, processor, pages=args.pages, max_rows=args.max_rows, deterministic=args.deterministic)
        app = create_app(engine, limits, model=args.model, like=args.like)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"fastdecode serves {args.model} at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
        run(app, listener)
