"""The command ``fastdecode`` and its subcommands. Heavy imports are deferred until a subcommand needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from fastdecode.cli import arguments as types
from fastdecode.cli import generate as generate_documents
from fastdecode.cli import run as run_rows
from fastdecode.cli import serve
from fastdecode.cli.process import hide_unneeded, silence
from fastdecode.extras import missing_package


def parser() -> argparse.ArgumentParser:
    """The argument parser with all commands and options."""
    top = types.Parser(
        prog="fastdecode", description="Decode models that write text and draw images as one token stream."
    )
    top.add_argument("--version", action="version", version=f"fastdecode {metadata.version('fastdecode')}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="demo | generate | run | serve | bench | config | env"
    )

    demo = commands.add_parser("demo", help="draw with the embedded model and write a page to look at")
    demo.add_argument("-o", "--output", type=types.folder, default=Path("fastdecode-demo"), help="folder (%(default)s)")
    demo.add_argument("--seed", type=types.whole(types.SEEDS[0], 2**62), default=0)

    generate = commands.add_parser(
        "generate",
        help="continue prompts with text and pictures",
        description="Continue prompts with text and pictures. Writes document.md and its pictures, or document-1.md "
        "and so on for several documents, and prints the text.",
    )
    generate_documents.add_arguments(generate)

    run = commands.add_parser(
        "run",
        help="make a document of every row of a file, each once",
        description="Make a document of every row of a file. Give the same command again after it was stopped: items "
        "that are there are not made again.",
    )
    run_rows.add_arguments(run)

    server = commands.add_parser(
        "serve",
        help="serve a page and an HTTP interface",
        description="Serve a page on which documents grow, and POST /v1/generate for programs; see examples/server.",
    )
    serve.add_arguments(server)

    bench = commands.add_parser(
        "bench",
        help="time an operation beside what one would run otherwise",
        description="Time an operation beside what one would run otherwise; every case is checked before it is timed.",
    )
    bench.add_argument("operation", choices=["sample", "step"], help="a draw, or each operation of a decode step")
    bench.add_argument("--quick", action="store_true", help="the corners of the grid only")
    bench.add_argument("--compile", action="store_true", help="also torch.compile of the torch chain (slow to start)")
    bench.add_argument("--json", type=types.file, help="also write the figures and the machine there")
    bench.add_argument(
        "--plot", type=types.file, help="also draw the figures there, as PNG, PDF or SVG (needs matplotlib)"
    )
    bench.add_argument("--csv", type=types.file, help="also write the figures there")

    config = commands.add_parser(
        "config",
        help="flags for those who link the C library",
        description="Flags for those who link the C library: gcc main.c $(fastdecode config --cflags --libs). "
        "Paths with spaces are quoted: then write eval gcc main.c $(fastdecode config --cflags --libs)",
    )
    config.add_argument("--cflags", action="store_true", help="for the compiler")
    config.add_argument("--libs", action="store_true", help="for the linker")
    config.add_argument("--cmake-prefix", action="store_true", help="for CMAKE_PREFIX_PATH")

    env = commands.add_parser("env", help="what is installed and what works")
    env.add_argument("--json", action="store_true")
    return top


def show_config(args: argparse.Namespace) -> None:
    """Print the requested flags on one line."""
    from fastdecode import build_info

    wanted = {
        "cflags": build_info.compiler_flags,
        "libs": build_info.linker_flags,
        "cmake_prefix": build_info.cmake_prefix,
    }
    found = [flags() for name, flags in wanted.items() if getattr(args, name)]
    if not found:
        raise ValueError("config: say what to print: --cflags, --libs or --cmake-prefix")
    print(" ".join(found))


def run_benchmark(args: argparse.Namespace) -> None:
    """Run the requested benchmark."""
    if args.operation == "sample":
        from fastdecode.bench.sample import run_bench

        run_bench(args.quick, args.json, args.csv, args.compile, args.plot)
        return
    from fastdecode.bench.step import run_step_bench

    if args.compile or args.plot is not None:
        raise ValueError("bench step: --compile and --plot are for bench sample")
    run_step_bench(args.quick, args.json, args.csv)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 on success; for wrong input it prints one sentence and returns 2."""
    command = "fastdecode"
    try:
        args = parser().parse_args(arguments)
        command = args.command
        if arguments is None:  # the process is ours
            silence()
            if command in ("demo", "generate", "run", "serve"):
                hide_unneeded(getattr(args, "model", "blocks"))
        if args.command == "env":
            from fastdecode.cli.env import show

            show(args.json)
        elif args.command == "demo":
            from fastdecode.cli.demo import run_demo

            run_demo(args.output, args.seed)
        elif args.command == "run":
            return run_rows.run_job(args)
        elif args.command == "serve":
            serve.serve(args)
        elif args.command == "config":
            show_config(args)
        elif args.command == "bench":
            run_benchmark(args)
        else:
            generate_documents.write_documents(args)
    except KeyboardInterrupt:
        print("fastdecode: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `fastdecode … | head`
        if arguments is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it exits
        return 141  # as a program that SIGPIPE ends
    except OSError as error:
        print(f"fastdecode: {_in_words(error)}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"fastdecode: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        reason = missing_package(command, error)
        print(f"fastdecode: {reason}; `fastdecode env` tells what is installed", file=sys.stderr)
        return 2
    return 0


def _in_words(error: OSError) -> str:
    """The message of ``error``: for one of the system, which file and why."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{types.shown(error.filename, 200)} cannot be used: {error.strerror}"
