"""`Engine`, its handles and `stream`: the same documents as `generate`, whole and event by event."""

import asyncio
import gc
import threading
from itertools import pairwise

import pytest
import torch
from engines import (
    BLOCKS,
    PICTURE,
    PROCESSOR,
    SHORT,
    TEXT,
    by_generate,
    document_of,
    engine,
    same_document,
)
from models_for_tests import BOS, drawing_model, text_ids, tiny_processor
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode import Engine, Finished, Guidance, PictureBegun, PictureDone, PicturePart
from fastdecode.cli.demo import GOALS, INSTRUCTIONS
from fastdecode.models.families import vocabulary_of

# --- the same as generate ---------------------------------------------------------------------------------------------


def test_results_are_those_of_generate():
    made = engine(deterministic=True)
    handles = [made.submit(goal, seed=i, **INSTRUCTIONS) for i, goal in enumerate(GOALS[:3])]
    assert [h.number for h in handles] == [0, 1, 2]
    made.run()
    for i, handle in enumerate(handles):
        out, document = by_generate(GOALS[i], seed=i, deterministic=True, **INSTRUCTIONS)
        assert torch.equal(handle.result(), out)
        assert same_document(handle.document(), document)
        assert handle.reason == "stop"
    statistics = made.statistics()
    assert (statistics.submitted, statistics.finished, statistics.waiting, statistics.running) == (3, 3, 0, 0)
    assert statistics.tokens == sum(len(h.tokens) for h in handles)
    assert statistics.pages_used == 0


def test_a_prompt_may_be_text_tokens_or_what_the_processor_returned():
    text = "Draw: In column 2 a red circle."
    inputs = PROCESSOR(text=text, return_tensors="pt")
    made = engine(deterministic=True)
    ids = inputs["input_ids"]
    forms = [text, inputs, dict(inputs), ids, ids[0], ids[0].tolist()]
    handles = [made.submit(form, seed=3, **PICTURE) for form in forms]
    handles.append(made.submit(**inputs, seed=3, **PICTURE))
    results = [h.result() for h in handles]
    assert all(torch.equal(r, results[0]) for r in results)


def test_pictures_in_the_prompt():
    made = engine(deterministic=True)
    [drawn] = made.submit("Draw: In column 1 a red square, on it a blue circle.", seed=1, **PICTURE).document()
    edit = "<image>Paint the blue circle green."
    bare = made.submit("Paint the blue circle green.", images=drawn, seed=5, **PICTURE)
    marked = made.submit(edit, images=[drawn], seed=5, **PICTURE)
    assert torch.equal(bare.result(), marked.result())  # without a mark, pictures go before the text
    options = {**PICTURE, "guidance": Guidance.instruct(text=1.5, image=1.2), "seed": 5}
    handle = made.submit(edit, images=[drawn], **options)
    inputs = PROCESSOR(text=edit, images=[drawn], return_tensors="pt")
    assert torch.equal(handle.result(), fastdecode.generate(BLOCKS, **inputs, deterministic=True, **options))


def test_scores_and_stopping_criteria_come_through():
    made = engine(deterministic=True)
    options = {**SHORT, "seed": 2, "return_dict_in_generate": True, "output_scores": True}
    found = made.submit("Build a tree in column 1.", **options).result()
    expected, _ = by_generate("Build a tree in column 1.", deterministic=True, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))
    stopped = made.submit(
        "Build a tree in column 1.", stop_strings=["column"], tokenizer=PROCESSOR.tokenizer, **{**SHORT, "seed": 2}
    )
    assert stopped.result().shape[1] <= found.sequences.shape[1]


def test_options_in_a_mapping_count_too():
    made = engine(deterministic=True)
    inputs = dict(PROCESSOR(text=TEXT, return_tensors="pt"))
    expected, _ = by_generate(TEXT, deterministic=True, seed=3, **SHORT)
    assert torch.equal(made.submit({**inputs, "seed": 3, **SHORT}).result(), expected)
    with pytest.raises(ValueError, match="kv_pool: an engine has pages of its own"):
        made.submit({**inputs, "kv_pool": 3})


def test_equal_prompts_share_pages_across_requests():
    made = engine(pages=60)
    prompt = " ".join(["Build a row of a red square and a purple diamond from column 2."] * 8)
    first = made.submit(prompt, seed=1, **SHORT).result()
    kept = made.statistics().pages_retained
    assert kept >= first.shape[1] // 32 - 1
    prefilled = []
    prefill = made._core.decoder._prefill_in_chunks

    def noting(work):
        prefilled.append(work.known)
        prefill(work)

    made._core.decoder._prefill_in_chunks = noting
    again = made.submit(prompt, seed=1, **SHORT).result()
    assert torch.equal(again, first)
    assert prefilled[0][0] >= kept * 32 - 32
    made.forget_prompts()
    assert made.statistics().pages_retained == 0
    gc.collect()


def test_text_models_have_engines_too():
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    made = Engine(model)
    handles = [made.submit([1, 5, 9, i], max_new_tokens=9, seed=i, do_sample=True) for i in range(4)]
    made.run()
    for i, handle in enumerate(handles):
        expected = fastdecode.generate(model, torch.tensor([[1, 5, 9, i]]), max_new_tokens=9, seed=i, do_sample=True)
        assert torch.equal(handle.result(), expected)
    with pytest.raises(ValueError, match="document\\(\\) needs a processor"):
        handles[0].document()


# --- events -----------------------------------------------------------------------------------------------------------


def check_events(events, handle, fewest_parts: int = 8) -> None:
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "stop"
    assert same_document(document_of(events), handle.document())
    tokens = [t for e in events if isinstance(e, fastdecode.Tokens) for t in e.tokens]
    assert tokens == handle.tokens
    pictures = sum(isinstance(e, PictureDone) for e in events)
    assert [e.picture for e in events if isinstance(e, PictureBegun)] == list(range(pictures))
    for number in range(pictures):
        parts = [e.tokens for e in events if isinstance(e, PicturePart) and e.picture == number]
        assert len(parts) >= fewest_parts  # it fills row by row
        assert len(parts[-1]) == 64
        assert all(b[: len(a)] == a for a, b in pairwise(parts))


def test_events_tell_the_document_while_it_is_made():
    made = engine()
    handle = made.submit(GOALS[1], seed=7, **INSTRUCTIONS)
    check_events(list(handle), handle)
    assert same_document(document_of(list(handle)), handle.document())  # again from the beginning


def test_events_from_the_engines_thread():
    with engine() as made:
        handle = made.submit(GOALS[1], seed=7, **INSTRUCTIONS)
        check_events(list(handle), handle, fewest_parts=1)  # the engine does not wait for who listens


@pytest.mark.parametrize("threaded", [True, False])
def test_async_events(threaded: bool):
    async def hear(handle):
        return [event async for event in handle]

    async def several(made):
        handles = [made.submit(goal, seed=i, **INSTRUCTIONS) for i, goal in enumerate(GOALS[:3])]
        return handles, await asyncio.gather(*map(hear, handles))

    made = engine()
    if threaded:
        made.start()
    handles, heard = asyncio.run(several(made))
    for handle, events in zip(handles, heard, strict=True):
        check_events(events, handle, fewest_parts=1)  # others may have decoded several rows meanwhile
    made.close()


def test_stream_yields_text_and_pictures_and_stops_when_left():
    _, document = by_generate(GOALS[1], seed=7, **INSTRUCTIONS)
    assert same_document(document_of(fastdecode.stream(BLOCKS, PROCESSOR, GOALS[1], seed=7, **INSTRUCTIONS)), document)
    inputs = PROCESSOR(text=GOALS[1], return_tensors="pt")
    events = fastdecode.stream(BLOCKS, PROCESSOR, **inputs, seed=7, **INSTRUCTIONS)
    for event in events:
        if isinstance(event, PictureBegun):
            break
    before = threading.active_count()
    events.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="max_new_tokens"):
        fastdecode.stream(BLOCKS, PROCESSOR, "x", max_new_tokens=-3)  # at once, not at the first event


def test_a_picture_that_the_prompt_began_is_told():
    model = drawing_model(3, resolution=16)
    v = vocabulary_of(model)
    prompt = [BOS, *text_ids(model, 0, 4), v.begin_image, *v.code_ids[:5]]
    made = Engine(model, tiny_processor(16))
    handle = made.submit(prompt, multimodal_generation_mode="image-only", do_sample=True, seed=1)
    events = list(handle)
    [done] = [e for e in events if isinstance(e, PictureDone)]
    assert isinstance(done.image, Image.Image)
    assert not [e for e in events if isinstance(e, PictureBegun)]
    assert next(e for e in events if isinstance(e, PicturePart)).tokens[:5] == v.code_ids[:5]


def test_text_deltas_do_not_break_characters():
    tokens = PROCESSOR.tokenizer("A café, naïve — ≠ 🙂 done.", add_special_tokens=False)["input_ids"]
    decoder = fastdecode.engine.events.TextDecoder(PROCESSOR.tokenizer)
    parts = [decoder.feed(t) for t in tokens]
    text = "".join(parts) + decoder.end()
    assert text == PROCESSOR.tokenizer.decode(tokens, skip_special_tokens=True)
    assert not any("�" in part for part in parts)
    assert decoder.feed(tokens[0]) + decoder.end() == PROCESSOR.tokenizer.decode(tokens[:1])


def test_a_begin_of_image_in_text_begins_no_picture():
    made = engine()
    options = {"multimodal_generation_mode": "text-only", "max_new_tokens": 40, "do_sample": True, "seed": 5}
    begin = vocabulary_of(BLOCKS).begin_image
    handle = made.submit(GOALS[1], sequence_bias=[[[begin], 50.0]], **options)
    events = list(handle)
    assert handle.tokens.count(begin) > 3
    assert not any(isinstance(event, PictureBegun) for event in events)
    assert same_document(document_of(events), handle.document())
