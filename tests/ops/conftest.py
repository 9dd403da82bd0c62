"""Fixtures of these tests."""

import pytest

from fastdecode.ops import Sample, last_backend
from fastdecode.ops import sample as sample_by


@pytest.fixture(params=["reference", "cpu"])
def sample(request):
    """`sample` by one backend, which is seen to have run."""

    def by_backend(logits, **arguments) -> Sample:
        got = sample_by(logits, backend=request.param, **arguments)
        assert last_backend() == request.param
        return got

    return by_backend
