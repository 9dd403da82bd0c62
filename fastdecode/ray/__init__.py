"""fastdecode on Ray: a class for Ray Data, jobs on a cluster, and a deployment of Ray Serve.

Names are imported when they are first used: Ray Data needs no web server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdecode.ray.maker import RayMaker
    from fastdecode.ray.painter import Painter
    from fastdecode.ray.serving import Server

_HOMES = {
    "Painter": "fastdecode.ray.painter",
    "RayMaker": "fastdecode.ray.maker",
    "Server": "fastdecode.ray.serving",
}

__all__ = ["Painter", "RayMaker", "Server"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdecode.ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
