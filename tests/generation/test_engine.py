"""`Engine`, its handles and `stream`: the same documents as `generate`, from any thread, and every error."""

import asyncio
import gc
import re
import threading
from itertools import pairwise

import pytest
import torch
from models_for_tests import BOS, drawing_model, text_ids, tiny_model, tiny_processor
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fastdecode
from fastdecode import Engine, Finished, Guidance, PictureBegun, PictureDone, PicturePart, RequestFailed, TextDelta
from fastdecode.cli.demo import GOALS, INSTRUCTIONS
from fastdecode.models.chameleon import Vocabulary

BLOCKS, PROCESSOR = fastdecode.load("blocks")
SHORT = {"max_new_tokens": 12, "do_sample": True, "multimodal_generation_mode": "text-only"}
PICTURE = {"multimodal_generation_mode": "image-only", "guidance": 2.0, "do_sample": True}


def engine(**options) -> Engine:
    return Engine(BLOCKS, PROCESSOR, **options)


def by_generate(prompt: str, **options):
    inputs = PROCESSOR(text=prompt, return_tensors="pt")
    out = fastdecode.generate(BLOCKS, **inputs, **options)
    return out, fastdecode.to_documents(BLOCKS, PROCESSOR, out, start=inputs["input_ids"].shape[1])[0]


def same_picture(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def same_document(one, other) -> bool:
    return len(one) == len(other) and all(
        a == b if isinstance(a, str) or isinstance(b, str) else same_picture(a, b)
        for a, b in zip(one, other, strict=True)
    )


# --- the same as generate -------------------------------------------------------------------------------------------


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


# --- events ---------------------------------------------------------------------------------------------------------


def document_of(events) -> list:
    """What the events tell, as a document."""
    found: list = []
    for event in events:
        if isinstance(event, TextDelta):
            if not found or not isinstance(found[-1], str):
                found.append("")
            found[-1] += event.text
        elif isinstance(event, PictureDone):
            found.append(event.image)
    stripped = [part.strip() if isinstance(part, str) else part for part in found]
    return [part for part in stripped if part != ""]


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
    v = Vocabulary.of(model)
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


# --- threads, aborts, ends ------------------------------------------------------------------------------------------


def test_many_threads_submit_abort_and_wait():
    expected = [by_generate(GOALS[i % 6], seed=i, deterministic=True, **INSTRUCTIONS)[0] for i in range(6)]
    found, errors = {}, []

    def caller(made: Engine, numbers: range) -> None:
        try:
            for i in numbers:
                handle = made.submit(GOALS[i % 6], seed=i, **INSTRUCTIONS)
                extra = made.submit(GOALS[i % 6], seed=i + 50, **INSTRUCTIONS)
                extra.abort()
                found[i] = handle.result(timeout=300)
                with pytest.raises(RequestFailed, match=f"request {extra.number} was aborted"):
                    extra.result()
        except BaseException as error:
            errors.append(error)

    for threaded in (True, False):
        made = engine(deterministic=True, pages=100)
        if threaded:
            made.start()
        threads = [threading.Thread(target=caller, args=(made, range(t, 6, 3))) for t in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert all(torch.equal(found[i], expected[i]) for i in range(6))
        statistics = made.statistics()
        assert (statistics.finished, statistics.aborted, statistics.pages_used) == (6, 6, 0)
        made.close()
        made.close()
        found.clear()


def test_an_aborted_request_frees_its_pages_at_once_when_nobody_decodes():
    made = engine()
    handle, other = made.submit(GOALS[0], **INSTRUCTIONS), made.submit(GOALS[1], seed=1, **INSTRUCTIONS)
    events = iter(handle)
    for _ in range(5):
        next(events)
    assert made.statistics().pages_used > 0
    handle.abort()
    handle.abort()
    assert (handle.done, handle.reason) == (True, "aborted")
    assert [type(e) for e in events][-1] is Finished
    assert other.result().shape[0] == 1
    assert made.statistics().pages_used == 0


def test_a_failed_request_raises_its_error_with_its_number():
    def broken(ids, scores):
        raise KeyError("mine")

    made = engine()
    good = made.submit(GOALS[0], seed=1, **INSTRUCTIONS)
    bad = made.submit("Build a tree in column 1.", logits_processor=[broken], **SHORT)
    made.run()
    with pytest.raises(RequestFailed, match=r"^request 1 failed: KeyError: 'mine'$") as raised:
        bad.result()
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(RequestFailed, match=r"^request 1 failed"):
        list(bad)
    with pytest.raises(RequestFailed, match=r"^request 1 failed"):
        bad.document()
    assert bad.reason == "error"
    assert good.reason == "stop"
    assert made.statistics().failed == 1


def test_waiting_for_too_long_is_told():
    for threaded in (True, False):
        made = engine()
        if threaded:
            made.start()
        handle = made.submit(GOALS[0], **INSTRUCTIONS)
        with pytest.raises(TimeoutError, match="request 0 has not ended after 0 s"):
            handle.result(timeout=0)
        handle.result()
        made.close()


def test_closing_ends_what_is_left_and_says_so():
    made = engine().start()
    handles = [made.submit(goal, **INSTRUCTIONS) for goal in GOALS]
    made.close()
    assert {h.reason for h in handles} <= {"aborted", "stop"}
    assert handles[-1].reason == "aborted"
    with pytest.raises(RequestFailed, match=r"^request 5 was aborted: the engine was closed$"):
        handles[-1].result()
    for call in (lambda: made.submit(GOALS[0]), made.run, made.start):
        with pytest.raises(RuntimeError, match=r"^this engine is closed: make another one$"):
            call()
    assert made.statistics().pages_used == made.statistics().pages_retained == 0
    assert not any(thread.name == "fastdecode engine" for thread in threading.enumerate())


def test_run_goes_on_after_an_interrupt(monkeypatch: pytest.MonkeyPatch):
    expected, _ = by_generate(GOALS[0], seed=1, deterministic=True, **INSTRUCTIONS)
    made = engine(deterministic=True)
    handle = made.submit(GOALS[0], seed=1, **INSTRUCTIONS)
    step, calls = type(made._core.decoder).step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) in (10, 45, 90, 130):
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(type(made._core.decoder), "step", interrupted)
    interrupts = 0
    while not handle.done:
        try:
            made.run()
        except KeyboardInterrupt:
            interrupts += 1
            assert made.statistics().pages_used == 0
    assert interrupts > 2
    assert torch.equal(handle.result(), expected)
    assert made.statistics().preemptions == 0  # nobody else wanted its pages


def test_equal_prompts_share_pages_across_requests():
    made = engine(pages=60)
    prompt = " ".join(["Build a row of a red square and a purple diamond from column 2."] * 8)
    first = made.submit(prompt, seed=1, **SHORT).result()
    kept = made.statistics().pages_retained
    assert kept >= first.shape[1] // 32 - 1
    prefilled = []
    prefill = made._core.decoder._prefill_in_chunks

    def noting(cache, rows, known, prompts):
        prefilled.append(known)
        prefill(cache, rows, known, prompts)

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


# --- refusals -------------------------------------------------------------------------------------------------------

TEXT = "Build a tree in column 1."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": None}, "no prompt: give text, what the processor returned, or tokens"),
        ({"inputs": torch.full((2, 5), 20)}, "submit takes one prompt, and got 2: submit each by itself"),
        ({"inputs": 3.5}, "the prompt is a float: give text, what the processor returned, or tokens"),
        ({"inputs": ["a", "b"]}, "the prompt is a list: give text"),
        ({"inputs": [1.5]}, "the prompt is a list: give text, what the processor returned, or tokens (integers)"),
        ({"inputs": b"x"}, "the prompt is bytes: give text"),
        ({"input_ids": torch.tensor([[5]])}, "input_ids was given twice: the prompt as text, and as an option"),
        ({"images": "no.png"}, "images is a str: give a PIL picture, or a list of them"),
        ({"images": [1]}, "images[0] is a int: give PIL pictures"),
        (
            {"inputs": "<image><image>x", "images": [Image.new("RGB", (64, 64))]},
            "the prompt has 2 <image>, but 1 pictures",
        ),
        ({"inputs": "<image>x"}, "the prompt has 1 <image>, but 0 pictures"),
        ({"inputs": [5, 9], "images": [1]}, "images were given without a text"),
        ({"inputs": {"input_ids": torch.tensor([[5]])}, "input_ids": 3}, "input_ids was given twice"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: submit takes one prompt and returns one handle"),
        ({"kv_pool": 5}, "kv_pool: an engine has pages of its own"),
        ({"progress": True}, "progress: iterate over the handle instead"),
        ({"streamer": "mine"}, "streamer: iterate over the handle instead"),
        ({"deterministic": True}, "deterministic: this engine has deterministic=False for all its requests"),
        ({"priority": 1.5}, "priority=1.5: give a whole number"),
        ({"priority": True}, "priority=True: give a whole number"),
        ({"num_beams": 3}, "num_beams=3 asks for beam search"),
        ({"seed": 2**70}, "does not fit 64 bits"),
        ({"max_new_tokens": 9, "suppress_tokens": list(range(BLOCKS.config.vocab_size))}, "leave"),
        (
            {"multimodal_generation_mode": "image-only", "guidance": Guidance.five_way([0], [5], against=1.0)},
            "the request needs 5 streams at once, and the engine has max_rows=3",
        ),
        (
            {"inputs": [5] * 400, "multimodal_generation_mode": "text-only"},
            "the request can never fit: its 400 tokens alone take 13 pages of 32, and the engine has 12",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals_are_at_once_and_by_name(arguments: dict, message: str):
    made = engine(max_rows=3, pages=12)
    arguments = {"inputs": TEXT, **arguments}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        made.submit(**arguments)
    assert made.statistics().submitted == 0
    assert made.submit(TEXT, **SHORT).result() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pages": 0}, "pages=0: give a whole number of at least 1"),
        ({"pages": 2.5}, "pages=2.5: give a whole number"),
        ({"pages": True}, "pages=True: give a whole number"),
        ({"max_rows": -1}, "max_rows=-1: give a whole number"),
        ({"deterministic": "no"}, "deterministic='no': give True or False"),
    ],
)
def test_an_engine_that_cannot_be_made(options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        engine(**options)


def test_models_that_cannot():
    with pytest.raises(TypeError, match="fastdecode decodes"):
        Engine(torch.nn.Linear(2, 2))
    model = tiny_model(1)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match="deterministic=True needs steps of the C"):
        Engine(model, deterministic=True)
    with pytest.raises(ValueError, match="a prompt given as text needs a processor"):
        Engine(tiny_model(1)).submit("hello")


def test_guidance_that_does_not_fit_alone_is_refused():
    made = engine(pages=5)
    with pytest.raises(ValueError, match=r"^the request can never fit: .* 3 streams .* and the engine has 5$"):
        made.submit(
            "<image>" + TEXT, images=[Image.new("RGB", (64, 64))], **{**PICTURE, "guidance": Guidance.instruct()}
        )


def test_a_begin_of_image_in_text_begins_no_picture():
    made = engine()
    options = {"multimodal_generation_mode": "text-only", "max_new_tokens": 40, "do_sample": True, "seed": 5}
    begin = Vocabulary.of(BLOCKS).begin_image
    handle = made.submit(GOALS[1], sequence_bias=[[[begin], 50.0]], **options)
    events = list(handle)
    assert handle.tokens.count(begin) > 3
    assert not any(isinstance(event, PictureBegun) for event in events)
    assert same_document(document_of(events), handle.document())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_ends_its_requests_and_is_closed(monkeypatch: pytest.MonkeyPatch):
    made = engine()

    def dying():
        raise SystemExit(3)

    monkeypatch.setattr(made._core, "step", dying)
    made.start()
    handle = made.submit(TEXT, **SHORT)
    with pytest.raises(RequestFailed, match=r"^request 0 failed: SystemExit: 3$"):
        handle.result(timeout=60)
    with pytest.raises(RuntimeError, match=r"^this engine is closed"):
        made.submit(TEXT, **SHORT)
    assert made.statistics().pages_used == 0
    made.close()


def test_an_interrupt_while_a_request_is_taken_in_loses_none(monkeypatch: pytest.MonkeyPatch):
    expected, _ = by_generate("Draw: In column 2 a red circle.", seed=3, deterministic=True, **PICTURE)
    made = engine(deterministic=True)
    handle = made.submit("Draw: In column 2 a red circle.", seed=3, **PICTURE)
    add, calls = made._core.scheduler.add, []

    def interrupted(request):
        calls.append(request)
        if len(calls) == 1:
            raise KeyboardInterrupt
        add(request)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(made._core.scheduler, "add", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made.run()
    made.run()
    assert torch.equal(handle.result(), expected)


def test_a_close_that_was_interrupted_can_be_done_again(monkeypatch: pytest.MonkeyPatch):
    made = engine().start()
    handle = made.submit(GOALS[0], **INSTRUCTIONS)
    thread = made._thread

    class Interrupted:
        def join(self) -> None:
            raise KeyboardInterrupt

    made._thread = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        made.close()
    made._thread = thread
    made.close()
    assert handle.done
    assert not made.started
    assert not thread.is_alive()


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("name", ["close", "run", "forget_prompts", "result"])
def test_a_processor_that_asks_its_engine_to_decode_is_refused_and_does_not_hang(name: str, threaded: bool):
    made = engine()
    other = made.submit(TEXT, **{**SHORT, "max_new_tokens": 60, "min_new_tokens": 60})

    def asking(ids, scores):
        (other.result if name == "result" and not threaded else getattr(made, "run" if name == "result" else name))()
        return scores

    handle = made.submit(TEXT, logits_processor=[asking], **SHORT)
    if threaded:
        made.start()
    with pytest.raises(RequestFailed, match="from inside a processor or criterion of one of its requests"):
        handle.result(timeout=60)
    assert other.result(timeout=60) is not None
    made.close()


def test_options_in_a_mapping_count_too():
    made = engine(deterministic=True)
    inputs = dict(PROCESSOR(text=TEXT, return_tensors="pt"))
    expected, _ = by_generate(TEXT, deterministic=True, seed=3, **SHORT)
    assert torch.equal(made.submit({**inputs, "seed": 3, **SHORT}).result(), expected)
    with pytest.raises(ValueError, match="kv_pool: an engine has pages of its own"):
        made.submit({**inputs, "kv_pool": 3})


def test_an_engine_belongs_to_its_process(monkeypatch: pytest.MonkeyPatch):
    made = engine()
    handle = made.submit(TEXT, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        for call in (lambda: made.submit(TEXT, **SHORT), made.run, made.start, handle.result):
            with pytest.raises(
                RuntimeError, match=r"^this engine was made in another process: make one after the fork$"
            ):
                call()
    assert handle.result() is not None
