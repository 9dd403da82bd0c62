"""Pages of keys and values in generate: shared, bounded and freed; and sequences independent of their batch."""

import random
import re
import signal
import threading

import pytest
import torch
from models_for_tests import drawing_model, padded, text_ids, tiny_model
from transformers import StoppingCriteria, StoppingCriteriaList

import fastdecode
from fastdecode import Guidance
from fastdecode.models.families import vocabulary_of

SAMPLED = {"do_sample": True, "seed": 3}


def prompts_of(model, lengths=(9, 40, 3, 70)) -> list[list[int]]:
    return [text_ids(model, i, n) for i, n in enumerate(lengths)]


class StopsWith(StoppingCriteria):
    """Raises at the n-th token."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_pool_is_empty_afterwards_and_changes_no_token():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, pages=60, page_slots=4)
    inputs = padded(prompts_of(model))
    expected = fastdecode.generate(model, **inputs, max_new_tokens=12, **SAMPLED)
    for _ in range(2):
        assert torch.equal(fastdecode.generate(model, **inputs, max_new_tokens=12, kv_pool=pool, **SAMPLED), expected)
        assert pool.used == 0
        assert 122 / 4 <= pool.peak <= 60


def test_a_picture_gets_its_memory_as_it_begins(monkeypatch: pytest.MonkeyPatch):
    model = drawing_model(1)
    pool = fastdecode.new_pool(model, page_slots=2)
    grown, grow = [], type(pool)._grow

    def note(self, needed):
        grow(self, needed)
        grown.append(self.capacity)

    monkeypatch.setattr(type(pool), "_grow", note)
    length = vocabulary_of(model).image_length + 2
    options = {"multimodal_generation_mode": "image-only", "guidance": 2.0, "max_new_tokens": length, "kv_pool": pool}
    fastdecode.generate(model, **padded(prompts_of(model)), **options, **SAMPLED)
    assert len(grown) <= 2  # the full streams, then the others
    assert pool.peak <= pool.capacity <= max(pool.peak + 2 * len(prompts_of(model)), -(-grown[0] * 3 // 2))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_what_interrupts_decoding_frees_the_pages(kind: type[BaseException]):
    model = tiny_model(1)
    pool = fastdecode.new_pool(model)
    criteria = StoppingCriteriaList([StopsWith(kind(), 5)])
    options = {"max_new_tokens": 12, "kv_pool": pool, "stopping_criteria": criteria}
    with pytest.raises(kind):
        fastdecode.generate(model, **padded(prompts_of(model)), **options)
    assert pool.peak > 0
    assert pool.used == 0
    again = fastdecode.generate(model, **padded(prompts_of(model)), max_new_tokens=12, kv_pool=pool)
    assert torch.equal(again, fastdecode.generate(model, **padded(prompts_of(model)), max_new_tokens=12))


def test_an_error_in_prefill_frees_the_pages():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model)

    def fail(module, inputs, output):
        raise RuntimeError("a layer's own")

    handle = model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="a layer's own"):
        fastdecode.generate(model, **padded(prompts_of(model)), max_new_tokens=3, kv_pool=pool)
    handle.remove()
    assert pool.used == 0


@pytest.mark.parametrize("pages", [24, 30, 32, 40])  # the prompts take 31 at once, the longest alone 18 to 23
def test_sequences_of_a_pool_that_is_too_small_for_all_take_turns(pages: int):
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, pages=pages, page_slots=4)
    options = {**padded(prompts_of(model)), "max_new_tokens": 20, "deterministic": True, **SAMPLED}
    assert torch.equal(fastdecode.generate(model, **options, kv_pool=pool), fastdecode.generate(model, **options))
    assert pool.used == 0
    assert pool.peak > 18


def test_a_pool_that_is_too_small_for_one():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, pages=35, page_slots=2)
    message = (
        r"^the KV pool needs 1 page, 0 of its 35 are free, at new token 1 of 1 sequence \(1 streams\): give more "
        "pages, or fewer sequences at once$"
    )
    with pytest.raises(fastdecode.PoolExhausted, match=message):
        fastdecode.generate(model, **padded(prompts_of(model)), max_new_tokens=20, kv_pool=pool)
    assert pool.used == 0
    fastdecode.generate(model, torch.tensor([text_ids(model, 0, 9)]), max_new_tokens=20, kv_pool=pool)


def test_a_batch_in_lock_step_needs_pages_for_all_at_once():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, pages=32, page_slots=4)
    criteria = StoppingCriteriaList([StopsWith(ValueError(), 10**6)])
    message = r"^the KV pool needs \d pages?, \d of its 32 are free, at new token 1 of 4 sequences \(4 streams\): "
    with pytest.raises(fastdecode.PoolExhausted, match=message):
        fastdecode.generate(
            model, **padded(prompts_of(model)), max_new_tokens=20, kv_pool=pool, stopping_criteria=criteria
        )
    assert pool.used == 0


def test_requests_that_can_never_fit_and_pools_that_cannot_serve():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, pages=3, page_slots=4)
    for lengths, message in [
        ((9, 13), "sequence 1 can never fit: its 13 tokens alone take 4 pages of 4, and kv_pool has 3"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            fastdecode.generate(model, **padded(prompts_of(model, lengths)), max_new_tokens=2, kv_pool=pool)
    drawing = drawing_model(2)
    small = fastdecode.new_pool(drawing, pages=1, page_slots=8)
    ids = torch.tensor([text_ids(drawing, 0, 7)])
    n = vocabulary_of(drawing).image_length
    with pytest.raises(
        ValueError,
        match=rf"^sequence 0 .* its {7 + n} tokens \(7 of the prompt and {n} of the picture .*\) alone take",
    ):
        fastdecode.generate(drawing, ids, multimodal_generation_mode="image-only", kv_pool=small)
    with pytest.raises(ValueError, match=r"^the KV pool has layers, heads of keys"):
        fastdecode.generate(tiny_model(1, layers=3), ids, max_new_tokens=2, kv_pool=pool)
    with pytest.raises(
        ValueError, match=r"^kv_pool is [0-9]+, an int: it must be what fastdecode\.new_pool\(model\) returns"
    ):
        fastdecode.generate(model, ids, max_new_tokens=2, kv_pool=100)
    with pytest.raises(ValueError, match=r"^pages is 0; a pool of pages needs at least 1"):
        fastdecode.new_pool(model, pages=0)
    assert pool.used == pool.peak == small.peak == 0


def test_sequences_of_a_request_share_its_prompt():
    model = tiny_model(1)
    ids = torch.tensor([text_ids(model, 0, 65)])
    alone, shared = fastdecode.new_pool(model, page_slots=4), fastdecode.new_pool(model, page_slots=4)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, **SAMPLED}
    first = fastdecode.generate(model, ids, kv_pool=alone, **options)
    out = fastdecode.generate(model, ids, num_return_sequences=6, kv_pool=shared, **options)
    assert len({tuple(row) for row in out.tolist()}) > 3
    assert alone.peak == 18  # of 72 ids the last is not stored, nor is the prompt's with the prompt
    assert shared.peak == 16 + 6 * 2
    assert torch.equal(out[:1], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deterministic_logits_are_the_same_bits_in_any_company(dtype: torch.dtype):
    model = tiny_model(4, layers=3, kv_heads=2).to(dtype)
    prompts = prompts_of(model, (9, 40, 3, 70, 9, 12))
    prompts[4][:8] = prompts[0][:8]  # pages shared, with one that is written to
    options = {"max_new_tokens": 14, "deterministic": True, "return_dict_in_generate": True, "output_logits": True}
    seeds = [5, 6, 7, 8, 9, 10]
    pool = fastdecode.new_pool(model, page_slots=4)
    together = fastdecode.generate(model, **padded(prompts), seed=seeds, do_sample=True, kv_pool=pool, **options)
    for i, prompt in enumerate(prompts):
        alone = fastdecode.generate(model, torch.tensor([prompt]), seed=seeds[i], do_sample=True, **options)
        for mine, theirs in zip(alone.logits, together.logits, strict=False):
            assert torch.equal(mine[0], theirs[i])
        new = alone.sequences[0, len(prompt) :]
        assert torch.equal(new, together.sequences[i, 70 : 70 + len(new)])


def test_deterministic_pictures_are_the_same_in_any_company():
    model = drawing_model(6)
    prompts = prompts_of(model, (5, 9, 7))
    options = {
        "multimodal_generation_mode": "image-only",
        "guidance": Guidance.instruct(),
        "do_sample": True,
        "deterministic": True,
    }
    together = fastdecode.generate(model, **padded(prompts), seed=[1, 2, 3], **options)
    for i, prompt in enumerate(prompts):
        alone = fastdecode.generate(model, torch.tensor([prompt]), seed=i + 1, **options)
        assert torch.equal(alone[0, len(prompt) :], together[i, 9:])


def test_deterministic_needs_the_cpp_step():
    model = tiny_model(1)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output)
    message = (
        "deterministic=True needs steps of the C++ library, and this model has none: layers.1: mlp is not a "
        "plain ChameleonMLP, or has hooks"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fastdecode.generate(model, torch.tensor([[5, 6]]), max_new_tokens=2, deterministic=True)


@pytest.fixture
def torch_modes_are_as_before():
    """A signal that comes while torch enters or leaves inference mode may leave it on in this thread: then it is turned
    off again, for the tests that follow.
    """
    yield
    if torch.is_inference_mode_enabled():
        _KEPT.append(torch.inference_mode(False))
        _KEPT[-1].__enter__()
    torch.set_grad_enabled(True)


_KEPT: list[torch.inference_mode] = []


def test_ctrl_c_at_any_moment_leaks_no_page(torch_modes_are_as_before: None):
    """A signal's handler runs between any two instructions of the interpreter: of the pool, the cache or the engine."""
    model = drawing_model(6)
    pool = fastdecode.new_pool(model, page_slots=2)
    inputs = padded(prompts_of(model, (5, 9, 7)))
    options = {**inputs, "multimodal_generation_mode": "image-only", "guidance": Guidance.instruct(), "kv_pool": pool}
    expected = fastdecode.generate(model, **options, **SAMPLED)
    generator, interrupted = random.Random(9), 0

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(80):
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(0.0005, 0.02))
                fastdecode.generate(model, **options, **SAMPLED)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert pool.used == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10
    assert torch.equal(fastdecode.generate(model, **options, **SAMPLED), expected)


def test_one_pool_in_several_threads():
    model = tiny_model(1)
    pool = fastdecode.new_pool(model, page_slots=4)
    inputs = padded(prompts_of(model))
    expected = [fastdecode.generate(model, **inputs, max_new_tokens=12, do_sample=True, seed=i) for i in range(4)]
    found: dict[int, torch.Tensor] = {}

    def call(i: int) -> None:
        for _ in range(3):
            found[i] = fastdecode.generate(model, **inputs, max_new_tokens=12, do_sample=True, seed=i, kv_pool=pool)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(4))
    assert pool.used == 0
