"""Sampling parameters of one modality: which calls sample, and with what."""

import math

import pytest

from fastdecode.engine.parameters import Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize("values", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3}])
def test_a_greedy_call_samples_where_its_modality_asks_for_it(values: dict):
    found = GREEDY.override(values, "image", do_sample=False)
    assert found == Sampling(temperature=1.0, **values)


def test_a_temperature_of_its_own_counts():
    assert GREEDY.override({"temperature": 0.5}, "image", do_sample=False) == Sampling(temperature=0.5)
    assert GREEDY.override({"temperature": 0.0, "top_p": 0.5}, "image", do_sample=False).temperature == 0.0
    assert GREEDY.override({"do_sample": True}, "image", do_sample=False) == Sampling()


@pytest.mark.parametrize("values", [{}, {"top_p": None, "min_p": None}, {"repetition_penalty": 1.5}])
def test_a_greedy_call_stays_greedy(values: dict):
    assert GREEDY.override(values, "image", do_sample=False).temperature == 0.0


def test_a_sampling_call_keeps_what_is_not_given():
    base = Sampling(temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, repetition_penalty=1.2)
    assert base.override({"top_k": 0}, "text", do_sample=True) == Sampling(0.7, 0, 0.8, 0.1, 1.2)
    assert base.override({"do_sample": False}, "text", do_sample=True).temperature == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 1.01}, r"image\.top_p=1\.01 is out of range: it must be between 0 and 1"),
        ({"min_p": -0.1}, r"image\.min_p=-0\.1 is out of range"),
        ({"top_k": True}, r"image\.top_k=True is out of range"),
        ({"temperature": math.inf}, r"image\.temperature=inf is out of range"),
        ({"nucleus": 1}, r"image\['nucleus'\] is not a sampling parameter"),
    ],
)
def test_bad_values(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Sampling().override(values, "image", do_sample=True)
