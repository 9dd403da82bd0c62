"""ctranslate2 with int8 weights as one more rival: its steps, as `bench_llamacpp.Side` has them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def convert(model: Any, folder: Path) -> None:
    """Write a Llama of transformers with int8 weights into ``folder``, which is made. Its tokens are ``t0``,
    ``t1``, and so on. ``ImportError`` without ctranslate2.
    """
    from ctranslate2.converters.transformers import LlamaLoader

    loader = LlamaLoader()
    spec = loader.get_model_spec(copy.deepcopy(model).float())  # it takes the model to pieces
    spec.register_vocabulary([f"t{i}" for i in range(model.config.vocab_size)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t0", "t1", "t2"
    spec.config.layer_norm_epsilon = model.config.rms_norm_eps
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir()
    spec.save(str(folder))


class CTranslate2Steps:
    """Its greedy steps. It samples its own tokens: those given only say how many. It rounds activations to int8."""

    def __init__(self, folder: Path, threads: int) -> None:
        import ctranslate2

        self.name = f"ctranslate2 {ctranslate2.__version__}"
        self.generator = ctranslate2.Generator(str(folder), compute_type="int8", intra_threads=threads)
        self.prompts: list[list[str]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = [[f"t{token}" for token in prompt] for prompt in prompts]

    def logits(self, tokens: Sequence[int], folder: Path) -> Tensor:
        whole = [[*prompt, f"t{token}"] for prompt, token in zip(self.prompts, tokens, strict=True)]
        return torch.from_numpy(np.array(self.generator.forward_batch(whole))[:, -1])

    def steps(self, tokens: Sequence[Sequence[int]]) -> list[float]:
        ends: list[float] = []

        def note(step: Any) -> bool:
            if step.batch_id == len(self.prompts) - 1:
                ends.append(time.perf_counter())
            return False

        self.generator.generate_batch(
            self.prompts,
            end_token=[],
            min_length=len(tokens) + 1,
            max_length=len(tokens) + 1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        if len(ends) != len(tokens) + 1:
            raise RuntimeError(f"{self.name} made {len(ends)} tokens, not {len(tokens) + 1}")
        return [after - before for before, after in pairwise(ends)]
