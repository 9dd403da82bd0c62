"""The tests of `fastdecode.ray` need Ray, which is not there for every Python and processor."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]
