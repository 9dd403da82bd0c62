"""Mixed requests through one engine. This is the short version of ``python -m tests.engine.soak``."""

from dataclasses import replace

import pytest
from soak import FAULTS, References, plan, run, soak
from soak_requests import BAD, blocks_world, drawing_world

SHORT = 36


@pytest.fixture(scope="module")
def world():
    return drawing_world()


@pytest.fixture(scope="module")
def references(world):
    return References(world)


@pytest.mark.parametrize("queued", [False, True])
def test_mixed_requests_give_what_they_give_alone(world, references, queued: bool):
    report = run(world, plan(world, SHORT, 0), references, least_preemptions=int(queued), queued=queued)
    assert report.wrong == []
    counted = {kind: report.counts[kind] for kind in ("finished", "aborted", "failed", "refused")}
    assert sum(counted.values()) == SHORT
    assert counted["finished"] > SHORT // 2


def test_few_rows(world, references):
    """Requests wait for rows as they do for pages."""
    report = run(replace(world, max_rows=8), plan(world, SHORT, 0), references)
    assert report.wrong == []


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_broken_engine_is_found(world, references, fault: str):
    report = run(world, plan(world, SHORT, 0), references, fault=fault, queued=True)
    assert [sentence for sentence in report.wrong if "differs from what it gives alone" in sentence]


def test_plans_have_everything(world):
    """500 requests have every kind of guidance, processor and failure often enough."""
    planned = plan(world, 500, 0)
    good = [p.case for p in planned if p.case.bad is None]
    assert {p.case.bad for p in planned} == {None, *BAD}
    assert 60 < sum(p.abort_after is not None for p in planned) < 140
    guidance = {len(c.plain["guidance"].streams) for c in good if "guidance" in c.plain}
    assert guidance == {2, 3, 4, 5}
    assert {c.plain["multimodal_generation_mode"] for c in good} > {"text-only", "image-only"}
    wanted = {"min_new_tokens", "suppress_tokens", "bad_words_ids", "repetition_penalty", "no_repeat_ngram_size"}
    for name in (*wanted, "guidance_scale"):
        assert sum(name in c.plain for c in good) > 20, name
    for name in ("flatter", "criterion"):
        assert sum(any(hook == name for hook, _ in c.hooks) for c in good) > 20, name
    assert len({c.key for c in good}) < len(good)  # some are asked for twice
    assert plan(world, 500, 0)[-1].case.prompt == planned[-1].case.prompt


@pytest.mark.long
def test_soak_drawing(world):
    report = soak(world, 250, 0, least_preemptions=25)
    assert report.wrong == []


@pytest.mark.long
def test_soak_blocks():
    report = soak(blocks_world(), 60, 0)
    assert report.wrong == []
