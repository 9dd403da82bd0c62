"""Failures of other decoders that no other test covers. `known_failures.md` lists all of them."""

import ast
import re
from pathlib import Path

import pytest
import torch
from models_for_tests import BOS, PAD, drawing_model, padded, text_ids, tiny_model

import fastdecode
from fastdecode import Guidance
from fastdecode.decoder import Decoder
from fastdecode.models.families import vocabulary_of

TESTS = Path(__file__).parent
ROWS = 59


def rows_of_the_table() -> list[tuple[int, str, str]]:
    """(number, failure, tests or reason) of every row."""
    found = []
    for line in (TESTS / "known_failures.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            number, failure, where = cells
            found.append((int(number), failure, where))
    return found


def named_in(where: str) -> list[tuple[str, str]]:
    """(path, function or Class::function) of every `path::name` in a cell."""
    return re.findall(r"`([\w/]+\.py)::([\w:]+)`", where)


def functions_of(path: Path) -> set[str]:
    """Names of a file's test functions, those of classes as Class::name, read without running it."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return {name for name in found if name.split("::")[-1].startswith("test_")}


def test_the_table_has_every_row_once():
    assert [number for number, _, _ in rows_of_the_table()] == list(range(1, ROWS + 1))


@pytest.mark.parametrize(("number", "failure", "where"), rows_of_the_table(), ids=lambda value: str(value)[:24])
def test_every_row_names_tests_that_exist_or_a_reason(number: int, failure: str, where: str):
    named = named_in(where)
    assert len(failure) > 20
    assert named or where.startswith("Does not apply: "), "neither a test nor a reason"
    assert where.count("`") == 2 * len(named), "a name that is not `path::test`"
    for path, name in named:
        assert name in functions_of(TESTS / path), f"{path} has no {name}"


def test_every_test_of_a_row_is_in_its_row():
    rows = {number: named_in(where) for number, _, where in rows_of_the_table()}
    paths = sorted(TESTS.rglob("test_*.py"))
    assert sum("known_failures" in path.name for path in paths) > 1
    for path in paths:
        for name in functions_of(path):
            if match := re.match(r"test_row_(\d\d)_", name):
                place = path.relative_to(TESTS).as_posix()
                assert (place, name) in rows[int(match[1])], f"{name} is missing from row {match[1]}"


# --- rows -----------------------------------------------------------------------------------------------------------


def test_row_28_the_streams_of_a_sequence_get_one_id_and_finished_rows_get_none(monkeypatch):
    model = tiny_model(5)
    fed: list[list[int]] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, cache, ids: fed.append(ids.tolist()) or step(self, cache, ids))
    v = vocabulary_of(model)
    prompts = [[BOS, *text_ids(model, 0, 3)], [BOS, *text_ids(model, 1, 2), v.begin_image, *v.code_ids[:2]]]
    guidance = Guidance.five_way((BOS, 40), (BOS, 41), full=2.0, image=1.2, against=0.5, toward=3.0)
    options = {"multimodal_generation_mode": "image-only", "guidance": guidance, "do_sample": True, "seed": [1, 2]}
    found = fastdecode.generate(model, **padded(prompts), **options)
    drawn = [[i for i in row if i != PAD] for row in found[:, 6:].tolist()]
    assert drawn[0][0] == v.begin_image
    assert len(drawn[0]) == 6
    assert len(drawn[1]) == 3
    newest = [set(row) for row in drawn]
    for ids in fed[1:]:
        assert len(set(ids)) <= 2, "streams of one sequence were fed different ids"
        assert set(ids) <= newest[0] | newest[1]
    assert fed[-1] == [drawn[0][3]] * 5  # the first sequence's streams alone: the second ended long before


def test_row_29_guidance_acts_on_greedy_draws_and_explain_says_so():
    model = tiny_model(12)
    prompt = torch.tensor([[BOS, *text_ids(model, 0, 4)]])
    options = {"multimodal_generation_mode": "image-only", "do_sample": False}
    plain = fastdecode.generate(model, prompt, **options)
    guided = fastdecode.generate(model, prompt, guidance=6.0, **options)
    by_transformers = fastdecode.generate(model, prompt, guidance_scale=6.0, **options)
    assert not torch.equal(plain, guided)
    assert torch.equal(guided, by_transformers)
    assert [len(streams) for streams in fastdecode.explain(model, prompt, guidance=6.0, **options).streams] == [2]
    assert fastdecode.explain(model, prompt, **options).where == "off"


def test_row_32_every_row_ends_with_an_end_of_its_own():
    """Two ends, each of another row: decoding stops when both rows have ended, and not before."""
    for seed in range(40):
        model = tiny_model(seed)
        prompts = padded([[BOS, *text_ids(model, seed + i, n)] for i, n in enumerate((3, 5))])
        options = {**prompts, "max_new_tokens": 16, "do_sample": False}
        plain = fastdecode.generate(model, **options, eos_token_id=None)[:, 6:].tolist()
        ends = [plain[0][4], plain[1][9]]
        first = [min((row.index(e) for e in ends if e in row), default=99) for row in plain]
        if first == [4, 9] and ends[0] != ends[1]:
            break
    else:
        pytest.fail("no model with two such ends")
    found = fastdecode.generate(model, **options, eos_token_id=ends, pad_token_id=PAD)[:, 6:].tolist()
    assert found == [plain[0][:5] + [PAD] * 5, plain[1][:10]]


@pytest.mark.parametrize("scattered", [False, True])
def test_row_36_begin_of_sequence_is_the_tokenizers_not_the_configs(scattered: bool):
    """The real checkpoints' configs name <pad> as the begin of a sequence."""
    model = drawing_model(3, scattered=scattered)
    assert model.config.bos_token_id == PAD
    v = vocabulary_of(model)
    assert (v.bos, v.pad) == (BOS, PAD)
    others, _ = Guidance.two_way(3.0).plan((BOS, 30, v.begin_image), 2, 2, v)
    assert others == [(BOS, v.begin_image)]
