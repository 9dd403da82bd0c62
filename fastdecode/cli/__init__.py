"""The command ``fastdecode``."""

from fastdecode.cli.main import main, parser

__all__ = ["main", "parser"]
