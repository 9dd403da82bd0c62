"""One case of benchmarks/bench_large.py, in a process of its own: `python large_case.py CASE FOLDER TOKENS`.

Prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.bench_decode import Clock
from benchmarks.models import text_prompts
from benchmarks.rivals import UnmaskedChameleon, unmasked
from fastdecode.models.families import vocabulary_of

SCALE, PROMPT = 3.0, 16


def memory() -> dict[str, int]:
    """Bytes: VmHWM (the peak so far, with mapped pages of files), RssAnon and RssFile (now) of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    lines = re.findall(r"^(VmHWM|RssAnon|RssFile):\s+(\d+) kB", text, re.MULTILINE)
    return {key: 1024 * int(kb) for key, kb in lines}


class Sampler(threading.Thread):
    """Notes the largest RssAnon: memory that cannot be given back to its file. It looks every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.02)

    def look(self) -> int:
        self.peak = max(self.peak, memory()["RssAnon"])
        return self.peak


@torch.no_grad()
def draw(model: UnmaskedChameleon, prompt: Tensor, tokens: int) -> tuple[list[int], list[float]]:
    """Image tokens by transformers, and the time after each: both streams as a batch of 2 with a `DynamicCache`."""
    vocabulary = vocabulary_of(model)
    length = len(prompt) + 1
    ids = torch.full((2, length), vocabulary.pad or 0)
    ids[0, :-1], ids[1, -2], ids[:, -1] = prompt, vocabulary.bos or 0, vocabulary.begin_image
    mask = torch.ones_like(ids)
    mask[1, :-2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    images = torch.tensor(list(vocabulary.image_ids))
    cache, drawn, times = DynamicCache(config=model.config), [], []
    for _ in range(tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        full, other = out.logits[:, -1, images].float()
        chosen = images[torch.multinomial((other + SCALE * (full - other)).softmax(0), 1)]
        drawn.append(int(chosen))
        times.append(time.perf_counter())
        ids = chosen.expand(2, 1)
        mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
        positions = positions[:, -1:] + 1
    return drawn, times


def run(case: str, folder: str, tokens: int) -> dict[str, Any]:
    before, sampler, start = memory(), Sampler(), time.perf_counter()
    if case == "transformers":
        model: Any = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    else:
        model, _ = fastdecode.load(folder, dtype=torch.bfloat16, weights=None if case == "bf16" else case)
    loaded, after, own = time.perf_counter() - start, memory(), sampler.look()
    prompts = text_prompts(model, 1, PROMPT)
    torch.manual_seed(0)
    start = time.perf_counter()
    if case == "transformers":
        drawn, times = draw(unmasked(model), prompts[0], tokens)
    else:
        clock = Clock(tokens + 1)
        ids = fastdecode.generate(
            model,
            prompts,
            multimodal_generation_mode="image-only",
            guidance=SCALE,
            seed=0,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            stopping_criteria=[clock],
        )
        drawn, times = ids[0, PROMPT + 1 :][:tokens].tolist(), clock.times[2 : tokens + 2]
    per_token = (times[-1] - times[0]) / (len(times) - 1)
    vocabulary = vocabulary_of(model)
    whole = vocabulary.image_length
    end = memory()
    return {
        "case": case,
        "seconds to load": loaded,
        "seconds per token": per_token,
        "seconds of the picture": times[-1] - start + per_token * (whole - len(drawn)),
        "extrapolated": len(drawn) < whole,
        "tokens": len(drawn),
        "picture tokens": whole,
        "image tokens only": set(drawn) <= set(vocabulary.image_ids),
        "peak of loading": after["VmHWM"],
        "peak": end["VmHWM"],
        "own peak of loading": own,
        "own peak": sampler.look(),
        "bytes before": before,
        "bytes after loading": after,
        "bytes at the end": end,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
