"""Writes docs/options.md: what becomes of every option of transformers' ``generate``.

    python -m tools.option_table [--check]

`LINES` says it of every `GenerationConfig` field and argument of ``generate`` that any of the tried versions of
transformers has; the page lists those of the installed one. tests/tools/test_option_table.py compares every line with
transformers, and fails when there is a field that `LINES` does not know.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import GenerationConfig, GenerationMixin

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

HONOURED, HANDED, NOTHING = "honoured", "handed to transformers", "no effect"


@dataclass(frozen=True)
class Line:
    """What becomes of one option.

    example   options of a call that show it, with greedy decoding; names in capitals stand for objects of the test
    note      what a reader must know
    changes   whether the example gives another result than the call without the option
    shown     what `explain` says of a call that has it, where greedy tokens cannot show it
    """

    outcome: str
    example: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    changes: bool = True
    shown: str = ""


def _sampled(shown: str, **example: Any) -> Line:
    """An option of sampling. The example keeps one token, so that transformers' random numbers do not matter."""
    return Line(HONOURED, {"do_sample": True, "top_k": 1, **example}, "when sampling", False, shown)


def _beams(note: str = "only beam search reads it", **example: Any) -> Line:
    return Line(NOTHING, example, note)


_ASSISTED = "only assisted decoding reads it"

FIELDS: dict[str, Line] = {
    "assistant_confidence_threshold": Line(NOTHING, {"assistant_confidence_threshold": 0.9}, _ASSISTED),
    "assistant_early_exit": Line(HANDED, {"assistant_early_exit": 1}, changes=False),
    "assistant_ensemble_weight": Line(NOTHING, {"assistant_ensemble_weight": 0.5}, _ASSISTED),
    "assistant_lookbehind": Line(NOTHING, {"assistant_lookbehind": 3}, _ASSISTED),
    "bad_words_ids": Line(HONOURED, {"bad_words_ids": [["FIRST"], ["SECOND", "THIRD"]]}),
    "begin_suppress_tokens": Line(HONOURED, {"begin_suppress_tokens": ["FIRST"]}),
    "bos_token_id": Line(HONOURED, {"input_ids": None, "bos_token_id": 7}, "the first token of a call without prompt"),
    "cache_config": Line(
        NOTHING, {"cache_config": {"nbits": 4}}, "only with cache_implementation, which is handed over"
    ),
    "cache_implementation": Line(
        HANDED, {"cache_implementation": "static"}, "'dynamic', which is transformers' default, is honoured", False
    ),
    "compile_config": Line(HANDED, {"compile_config": "COMPILE"}, changes=False),
    "constraints": Line(
        HANDED, {"constraints": ["CONSTRAINT"], "num_beams": 2}, "transformers has it in a remote repository"
    ),
    "continuous_batching_config": Line(NOTHING, {}, "only `generate_batch` reads it"),
    "decoder_start_token_id": Line(NOTHING, {"decoder_start_token_id": 5}, "for models with an encoder"),
    "disable_compile": Line(NOTHING, {"disable_compile": True}),
    "diversity_penalty": _beams(diversity_penalty=0.5),
    "do_sample": Line(
        HONOURED,
        {"do_sample": True, "top_k": 1},
        "with random numbers of fastdecode's own: the same distribution, other tokens than transformers; see seed",
        False,
        "top_k 1",
    ),
    "dola_layers": Line(HANDED, {"dola_layers": "low"}, "transformers has it in a remote repository"),
    "early_stopping": _beams(early_stopping=True),
    "encoder_no_repeat_ngram_size": Line(HONOURED, {"encoder_no_repeat_ngram_size": 1}),
    "encoder_repetition_penalty": Line(HONOURED, {"encoder_repetition_penalty": 30.0}),
    "eos_token_id": Line(HONOURED, {"eos_token_id": "SECOND"}),
    "epsilon_cutoff": _sampled("EpsilonLogitsWarper", epsilon_cutoff=0.2),
    "eta_cutoff": _sampled("EtaLogitsWarper", eta_cutoff=0.2),
    "exponential_decay_length_penalty": Line(
        HONOURED, {"exponential_decay_length_penalty": (2, 30.0), "eos_token_id": 3}
    ),
    "force_words_ids": Line(
        HANDED, {"force_words_ids": [[5]], "num_beams": 2}, "transformers has it in a remote repository"
    ),
    "forced_bos_token_id": Line(
        HONOURED, {"input_ids": "ONE", "forced_bos_token_id": 9}, "after a prompt of one token, as in transformers"
    ),
    "forced_eos_token_id": Line(HONOURED, {"forced_eos_token_id": 9}),
    "guidance_scale": Line(
        HONOURED,
        {"guidance_scale": 8.0},
        "of text here; of pictures in modes that draw. Janus ignores it in text, as its own `generate` does",
    ),
    "is_assistant": Line(HANDED, {"is_assistant": True}, "transformers sets it itself, on assistant models"),
    "length_penalty": _beams(length_penalty=2.0),
    "low_memory": Line(NOTHING, {"low_memory": True}),
    "max_cache_len": Line(NOTHING, {"max_cache_len": 100}, "only static caches read it"),
    "max_length": Line(HONOURED, {"max_length": 9, "max_new_tokens": None}),
    "max_matching_ngram_size": Line(NOTHING, {"max_matching_ngram_size": 2}, "only prompt lookup decoding reads it"),
    "max_new_tokens": Line(HONOURED, {"max_new_tokens": 3}, "never beyond the context of the checkpoint"),
    "max_time": Line(HONOURED, {"max_time": 1000.0}, changes=False, shown="MaxTimeCriteria"),
    "min_length": Line(HONOURED, {"min_length": 13, "eos_token_id": "SECOND"}),
    "min_new_tokens": Line(HONOURED, {"min_new_tokens": 6, "eos_token_id": "SECOND"}),
    "min_p": _sampled("min_p 0.3", min_p=0.3),
    "no_repeat_ngram_size": Line(HONOURED, {"no_repeat_ngram_size": 1}),
    "num_assistant_tokens": Line(NOTHING, {"num_assistant_tokens": 3}, _ASSISTED),
    "num_assistant_tokens_schedule": Line(NOTHING, {"num_assistant_tokens_schedule": "heuristic"}, _ASSISTED),
    "num_beam_groups": Line(
        HANDED,
        {"num_beam_groups": 2, "num_beams": 2, "diversity_penalty": 0.5},
        "with num_beams, without which it has no effect",
    ),
    "num_beams": Line(HANDED, {"num_beams": 4}),
    "num_return_sequences": Line(HONOURED, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}),
    "output_attentions": Line(HANDED, {"output_attentions": True, "return_dict_in_generate": True}),
    "output_hidden_states": Line(HANDED, {"output_hidden_states": True, "return_dict_in_generate": True}),
    "output_logits": Line(
        HONOURED,
        {"output_logits": True, "return_dict_in_generate": True},
        "those of image tokens are the model's own, where transformers' Chameleon has the smallest number",
    ),
    "output_scores": Line(HONOURED, {"output_scores": True, "return_dict_in_generate": True}),
    "pad_token_id": Line(HONOURED, {"pad_token_id": 11, "input_ids": "TWO", "eos_token_id": "SECOND"}),
    "penalty_alpha": Line(HANDED, {"penalty_alpha": 0.6, "top_k": 4}, "transformers has it in a remote repository"),
    "prefill_chunk_size": Line(HANDED, {"prefill_chunk_size": 2}, changes=False),
    "prompt_lookup_num_tokens": Line(HANDED, {"prompt_lookup_num_tokens": 2}, changes=False),
    "remove_invalid_values": Line(
        HONOURED, {"remove_invalid_values": True}, changes=False, shown="InfNanRemoveLogitsProcessor"
    ),
    "renormalize_logits": Line(HONOURED, {"renormalize_logits": True}, changes=False, shown="LogitNormalization"),
    "repetition_penalty": Line(HONOURED, {"repetition_penalty": 50.0}),
    "return_dict_in_generate": Line(
        HONOURED, {"return_dict_in_generate": True}, "with the cache, unless use_cache=False"
    ),
    "sequence_bias": Line(HONOURED, {"sequence_bias": [[["FIRST"], -50.0], [[8, 9], 3.0]]}),
    "speculation_type": Line(NOTHING, {"speculation_type": "dflash"}, _ASSISTED),
    "stop_strings": Line(HONOURED, {"stop_strings": "STOP", "tokenizer": "TOKENIZER"}, "with tokenizer=…"),
    "suppress_tokens": Line(HONOURED, {"suppress_tokens": ["FIRST"]}),
    "target_lookbehind": Line(NOTHING, {"target_lookbehind": 3}, _ASSISTED),
    "temperature": _sampled("temperature 0.5", temperature=0.5),
    "token_healing": Line(HANDED, {"token_healing": True, "tokenizer": "TOKENIZER"}),
    "top_h": _sampled("TopH", top_h=0.5),
    "top_k": _sampled("top_k 1"),
    "top_p": _sampled("top_p 0.5", top_p=0.5),
    "transformers_version": Line(NOTHING, {}, "which version wrote the file"),
    "typical_p": _sampled("TypicalLogitsWarper", typical_p=0.5),
    "use_cache": Line(NOTHING, {"use_cache": False}, "keys and values are always kept; with False none are returned"),
    "use_mtp": Line(HANDED, {"use_mtp": True}, "for models with layers that predict several tokens"),
    "watermarking_config": Line(HANDED, {"watermarking_config": {"bias": 9.0, "seeding_scheme": "lefthash"}}),
}

ARGUMENTS: dict[str, Line] = {
    "inputs": Line(HONOURED, {"inputs": "TWO", "input_ids": None}, "tokens"),
    "generation_config": Line(
        HONOURED, {"generation_config": "CONFIG"}, "fastdecode's own options may be attributes of it, except kv_pool"
    ),
    "logits_processor": Line(HONOURED, {"logits_processor": "PROCESSORS"}),
    "stopping_criteria": Line(HONOURED, {"stopping_criteria": "CRITERIA"}),
    "prefix_allowed_tokens_fn": Line(HONOURED, {"prefix_allowed_tokens_fn": "PREFIXES"}),
    "synced_gpus": Line(HANDED, {"synced_gpus": True}),
    "assistant_model": Line(HANDED, {"assistant_model": "ASSISTANT"}, changes=False),
    "streamer": Line(HONOURED, {"streamer": "STREAMER"}, "a TextStreamer gets no image tokens", False),
    "negative_prompt_ids": Line(
        HONOURED,
        {"negative_prompt_ids": "NEGATIVE", "guidance_scale": 8.0},
        "with guidance_scale; without it handed to transformers, where it has no effect",
    ),
    "negative_prompt_attention_mask": Line(
        HONOURED,
        {"negative_prompt_ids": "NEGATIVE", "negative_prompt_attention_mask": "MASK", "guidance_scale": 8.0},
        "with negative_prompt_ids",
    ),
    "custom_generate": Line(HANDED, {"custom_generate": "LOOP"}),
    "trust_remote_code": Line(NOTHING, {"trust_remote_code": True}, "only for custom_generate by name"),
    "tokenizer": Line(HONOURED, {"stop_strings": "STOP", "tokenizer": "TOKENIZER"}, "with stop_strings"),
    "assistant_tokenizer": Line(
        HANDED, {"assistant_model": "ASSISTANT"}, "with assistant_model, without which transformers ignores it", False
    ),
    "input_ids": Line(HONOURED, {"input_ids": "TWO"}, "none at all: text begins with the beginning of sequence"),
    "attention_mask": Line(
        HONOURED,
        {"input_ids": "TWO", "attention_mask": "LEFT"},
        "padding on the left; text with padding on the right is handed to transformers, and in modes that draw the "
        "padding is removed",
    ),
    "position_ids": Line(
        HANDED, {"position_ids": "POSITIONS"}, "those that transformers would make itself are honoured"
    ),
    "inputs_embeds": Line(HANDED, {"inputs_embeds": "EMBEDS", "input_ids": None}),
    "past_key_values": Line(HANDED, {"past_key_values": "CACHE"}, "also an empty one, which is filled", False),
    "cache": Line(HANDED, {"cache": "CACHE"}, "the name of past_key_values since transformers 5.24", False),
    "logits_to_keep": Line(NOTHING, {"logits_to_keep": 1}),
}
"""Arguments of ``generate``, and the keyword arguments that it takes for a model's forward."""


def fields() -> list[str]:
    """The public `GenerationConfig` fields of the installed transformers."""
    return sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def arguments() -> list[str]:
    """The named arguments of ``generate`` in the installed transformers."""
    return [name for name in inspect.signature(GenerationMixin.generate).parameters if name not in ("self", "kwargs")]


def known_here(name: str) -> bool:
    """Whether the installed transformers has the argument ``name``, if only some versions do."""
    from fastdecode.generation.returned_cache import FIELD

    return name != "cache" or FIELD == "cache"


def _rows(names: Iterable[str], lines: dict[str, Line]) -> list[str]:
    rows = ["| option | text | modes that draw | |", "|---|---|---|---|"]
    for name in names:
        line = lines[name]
        drawing = "refused" if line.outcome == HANDED else line.outcome
        rows.append(f"| `{name}` | {line.outcome} | {drawing} | {line.note} |")
    return rows


def page() -> str:
    """The page for the installed transformers."""
    return "\n".join(
        [
            "# Options of transformers",
            "",
            f"What becomes of every option of `generate` in transformers {transformers.__version__}. This page is made",
            "by `python -m tools.option_table`; a test compares every line with transformers.",
            "",
            "- **honoured**: fastdecode does what transformers does.",
            "- **handed to transformers**: transformers' own loop decodes a call of text with this option. It is said",
            '  once in the log, and `fastdecode.explain` tells it. `fallback="error"` refuses such a call. So do modes',
            "  that draw, `Engine.submit`, `custom_generate=fastdecode.custom_generate`, and calls that also have an",
            "  option which only fastdecode has.",
            "- **no effect**: transformers and fastdecode both do what they do without it, unless another option of",
            "  the call makes use of it.",
            "",
            "Any other argument of a model's forward is handed to transformers too.",
            "",
            "## Fields of GenerationConfig",
            "",
            *_rows(fields(), FIELDS),
            "",
            "## Arguments of generate",
            "",
            *_rows([name for name in ARGUMENTS if known_here(name)], ARGUMENTS),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.option_table", description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text() != page():
            print(f"{PAGE.name} is out of date: python -m tools.option_table", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
