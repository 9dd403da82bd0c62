"""docs/options.md is up to date, and every line of it is true: each is compared with transformers."""

from typing import Any

import pytest
import torch
import transformers
from heard import Heard
from models_for_tests import tiny_tokenizer
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteriaList,
)

import fastdecode
from fastdecode.generation import api
from tools import option_table
from tools.option_table import ARGUMENTS, FIELDS, HANDED, HONOURED, NOTHING, Line

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
PROMPT = torch.tensor([[12, 30, 41, 33]])


def text_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=52, max_position_embeddings=64, **SIZES)).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, 1.0 if weights.ndim == 1 else 0.0, 0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    return model


MODEL, ASSISTANT = text_model(83), text_model(1)  # of seed 83: it repeats tokens, and one of the prompt
BASE: dict[str, Any] = {"input_ids": PROMPT, "max_new_tokens": 8, "do_sample": False}
TOKENS = MODEL.generate(**BASE)[0, PROMPT.shape[1] :].tolist()


def objects() -> dict[str, Any]:
    """What the names in examples stand for, made anew for every call."""
    tokenizer = tiny_tokenizer()
    return {
        "FIRST": TOKENS[0],
        "SECOND": TOKENS[1],
        "THIRD": TOKENS[2],
        "ONE": PROMPT[:, :1],
        "TWO": torch.tensor([[12, 30, 41], [17, 13, 14]]),
        "LEFT": torch.tensor([[1, 1, 1], [0, 1, 1]]),
        "COMPILE": CompileConfig(backend="eager"),
        "CONSTRAINT": object(),
        "STOP": tokenizer.decode([TOKENS[2]]),
        "TOKENIZER": tokenizer,
        "CONFIG": GenerationConfig(max_new_tokens=3, do_sample=False),
        "PROCESSORS": LogitsProcessorList([lambda ids, scores: scores.roll(1, -1)]),
        "CRITERIA": StoppingCriteriaList([lambda ids, scores: torch.tensor([ids.shape[1] >= 6] * len(ids))]),
        "PREFIXES": lambda row, ids: [5, 6, 7 + len(ids) % 3],
        "ASSISTANT": ASSISTANT,
        "NEGATIVE": torch.tensor([[9, 20, 21]]),
        "MASK": torch.tensor([[0, 1, 1]]),
        "LOOP": lambda model, input_ids, **options: input_ids[:, :1],
        "STREAMER": Heard(),
        "POSITIONS": torch.tensor([[0, 7, 9, 20]]),
        "EMBEDS": MODEL.get_input_embeddings()(PROMPT.flip(1)).detach(),
        "CACHE": DynamicCache(),
    }


def filled(value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [filled(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def called(generate, line: Line | None) -> tuple[Any, dict[str, Any]]:
    """What a call with the example of ``line`` returns or raises, and its options."""
    names = objects()
    options = BASE | {name: filled(value, names) for name, value in (line.example if line else {}).items()}
    if isinstance(options.get("generation_config"), GenerationConfig):
        del options["max_new_tokens"], options["do_sample"]
    if options["input_ids"] is None:
        del options["input_ids"]
    try:
        return generate(**options), options
    except Exception as error:
        return error, options


def parts(result: Any) -> list[Any]:
    """The tensors of a result, flat; or the class of an error."""
    if isinstance(result, Exception):
        return [type(result)]
    if isinstance(result, torch.Tensor):
        return [result]
    return [result.sequences, *(result.get("scores") or ()), *(result.get("logits") or ()), result.keys()]


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(parts(one), parts(other), strict=False))
    return len(parts(one)) == len(parts(other)) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-3)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and list(a) == list(b)
        if not isinstance(a, type)
        else a is b
        for a, b in pairs
    )


HERE = [("field", name, FIELDS[name]) for name in option_table.fields() if name in FIELDS]
HERE += [("argument", name, line) for name, line in ARGUMENTS.items() if option_table.known_here(name)]


@pytest.mark.parametrize(("kind", "name", "line"), HERE, ids=[f"{kind}-{name}" for kind, name, _ in HERE])
def test_every_line_is_what_happens(kind: str, name: str, line: Line, monkeypatch):
    handed: list[str] = []
    monkeypatch.setattr(api, "say_once", handed.append)
    expected, theirs = called(MODEL.generate, line)
    found, ours = called(lambda **options: fastdecode.generate(MODEL, **options), line)
    assert same(found, expected), (found, expected)
    assert bool(handed) == (line.outcome == HANDED), handed
    plain, _ = called(MODEL.generate, None)
    if line.outcome == NOTHING:
        assert same(expected, plain)
    elif not isinstance(expected, Exception):
        assert same(expected, plain) != line.changes, "the example shows nothing"
    if "streamer" in ours:
        assert ours["streamer"].puts == theirs["streamer"].puts
    if line.outcome == HANDED:
        with pytest.raises(ValueError, match=r"which fastdecode|not supported by fastdecode"):
            called_or_raised(line, fallback="error")
        if name not in ("inputs_embeds",):
            with pytest.raises(ValueError, match=r"which fastdecode|not supported by fastdecode|image-only"):
                called_or_raised(line, multimodal_generation_mode="image-only")
    if line.shown:
        explained, _ = called(lambda **options: fastdecode.explain(MODEL, **options), line)
        assert line.shown in str(explained)


def called_or_raised(line: Line, **more: Any) -> None:
    result, _ = called(lambda **options: fastdecode.generate(MODEL, **options, **more), line)
    if isinstance(result, Exception):
        raise result


def test_every_option_has_a_line():
    """A new version of transformers with a new option fails here: try what it does, and add a line."""
    assert set(option_table.fields()) <= set(FIELDS)
    assert set(option_table.arguments()) <= set(ARGUMENTS)
    assert {line.outcome for line in [*FIELDS.values(), *ARGUMENTS.values()]} == {HONOURED, HANDED, NOTHING}


def test_what_a_line_must_have():
    """An honoured option shows in its example or in what explain says."""
    assert len(set(TOKENS[:3])) == 3
    for name, line in {**FIELDS, **ARGUMENTS}.items():
        assert line.changes or line.outcome != HONOURED or line.shown or name == "streamer", name


def test_the_page_is_up_to_date():
    page = option_table.PAGE.read_text()
    if f"in transformers {transformers.__version__}." not in page:
        pytest.skip("the page is of another version of transformers")
    assert page == option_table.page(), "run python -m tools.option_table"


def test_check_tells_a_stale_page(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["option_table", "--check"])
    monkeypatch.setattr(option_table, "PAGE", tmp_path / "options.md")
    assert option_table.main() == 1
    (tmp_path / "options.md").write_text(option_table.page())
    assert option_table.main() == 0
    (tmp_path / "options.md").write_text(option_table.page() + "more")
    assert option_table.main() == 1
