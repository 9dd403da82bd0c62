"""Options in layers: which of the usual ones, the job's and the row's a request has."""

import pytest

from fastdecode.jobs.layers import MODE, layered, options_of_row

USUAL = {MODE: "interleaved-text-image", "guidance": 2.0, "text": {"top_p": 0.9}, "image": {"top_p": 0.9}}


def test_sampling_parameters_are_replaced_one_by_one():
    found = layered(USUAL, {"temperature": 1.0, "image": {"top_k": 5}}, {"temperature": 0.5, "text": {"top_p": 0.1}})
    assert found["text"] == {"top_p": 0.1, "temperature": 0.5}
    assert found["image"] == {"top_p": 0.9, "temperature": 0.5, "top_k": 5}
    assert "temperature" not in found


def test_what_a_layer_says_of_one_modality_goes_before_what_it_says_of_both():
    assert layered({"temperature": 1.0, "image": {"temperature": 2.0}}) == {
        "text": {"temperature": 1.0},
        "image": {"temperature": 2.0},
    }


def test_both_names_of_guidance_replace_each_other():
    assert layered(USUAL, {"guidance_scale": 3.0})["guidance_scale"] == 3.0
    assert "guidance" not in layered(USUAL, {"guidance_scale": 3.0})
    assert layered({"guidance_scale": 3.0}, {"guidance": 4.0}) == {"guidance": 4.0}


def test_rows_of_other_modes_get_what_they_can_have():
    found, mode = options_of_row(USUAL, {"temperature": 1.0}, {MODE: "text-only"}, "text-only")
    assert mode == "text-only"
    assert found == {MODE: "text-only", "text": {"top_p": 0.9, "temperature": 1.0}}
    found, mode = options_of_row(USUAL, {"text": {"top_k": 1}}, {MODE: "image-only"}, "text-only")
    assert (found, mode) == ({MODE: "image-only", "guidance": 2.0, "image": {"top_p": 0.9}}, "image-only")
    found, mode = options_of_row({}, {"guidance": 3.0}, {"top_k": 1}, "text-only")
    assert (found, mode) == ({"guidance": 3.0, "text": {"top_k": 1}}, "text-only")


@pytest.mark.parametrize(("mode", "absent"), [("text-only", "image"), ("image-only", "text")])
def test_a_row_that_samples_what_its_mode_lacks_is_refused(mode, absent):
    with pytest.raises(ValueError, match=f"^{absent} says how .* {mode} "):
        options_of_row(USUAL, {MODE: mode}, {absent: {"top_k": 1}}, "text-only")
