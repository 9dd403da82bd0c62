"""The classes of `fastdecode.ops` have the attributes that the launchers of the Triton kernels declare."""

import typing

import pytest
import torch

from fastdecode.ops import DecodeState, GrammarTables, Matrix, TokenSets
from fastdecode.ops.linear.triton import GroupedMatrix
from fastdecode.ops.pages import Pages
from fastdecode.ops.rope_append import HeadNorm
from fastdecode.ops.sample.checks import check_arguments
from fastdecode.triton_kernels import arguments

tensor = torch.zeros(1)
sets = TokenSets([[(0, 3)]], 4)
GIVEN = [
    Matrix(tensor),
    GroupedMatrix(1, 32, tensor, tensor, None, None),
    HeadNorm(None, None),
    Pages(tensor, tensor, tensor, tensor),
    sets,
    check_arguments(torch.zeros(1, 4), None, None, None, None, 1.0, 0, 1.0, 0.0, 1.0, None, None, 0, 0, None),
    GrammarTables(sets, [0], [-1], [[0]], vocab=4),
    DecodeState(tensor, tensor, tensor),
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: type(given).__name__)
def test_a_class_has_what_its_launcher_reads(given):
    read = typing.get_type_hints(getattr(arguments, type(given).__name__))
    assert read
    assert [name for name in read if not hasattr(given, name)] == []


def test_every_protocol_has_a_class():
    protocols = {name for name, value in vars(arguments).items() if getattr(value, "_is_protocol", False)} - {
        "Protocol"
    }
    assert protocols == {type(given).__name__ for given in GIVEN}
