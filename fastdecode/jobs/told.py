"""Values as JSON can say them, for files that tell what a document was made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastdecode.models.recipe_words import as_python


def told(value: Any) -> Any:
    """``value``, with text in place of what JSON has no word for: Python that makes it, such as a Guidance."""
    if isinstance(value, Mapping):
        return {str(name): told(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return as_python(value)
