"""``index.parquet``: a table of a job's items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdecode.jobs.files import written_file
from fastdecode.jobs.items import text_of

NAME = "index.parquet"

COLUMNS = {
    "id": "string",
    "files": "string",
    "prompt": "string",
    "seed": "int64",
    "text": "string",
    "pictures": "list<string>",
    "tokens": "int64",
    "logprob": "float64",
    "ended": "string",
    "error": "string",
}
"""By name, what they hold. ``files``: the item's folder or tar, seen from the output folder. ``pictures``: the names of
those that it drew, in there.
"""


def write_index(items: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write the index of ``items``, what their ``item.json`` say, in their order."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"list<string>": pyarrow.list_(pyarrow.string())}
    schema = pyarrow.schema([(name, kinds.get(kind, kind)) for name, kind in COLUMNS.items()])
    rows = [
        {**{name: facts.get(name) for name in COLUMNS}, "text": text_of(facts), "pictures": facts["drawn"]}
        for facts in items
    ]
    with written_file(target / NAME) as draft, open(draft, "wb") as opened:  # pyarrow opens no name that is not UTF-8
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), opened)
