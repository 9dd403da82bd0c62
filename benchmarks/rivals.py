"""The alternatives in transformers: ``model.generate`` of a Chameleon without its image mask; and the best loop that
one can write with its layers: a static cache, both streams in a batch, one compiled step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ChameleonForConditionalGeneration, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from fastdecode.bench.sample_rivals import Torch
from fastdecode.models.families import vocabulary_of
from fastdecode.vocabulary import Vocabulary


class UnmaskedChameleon(ChameleonForConditionalGeneration):
    """Chameleon whose forward does not mask the logits of image tokens; nothing else is changed."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = outputs.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else outputs.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=outputs.past_key_values)


def unmasked(model: ChameleonForConditionalGeneration) -> UnmaskedChameleon:
    """The same weights (shared, not copied) as an `UnmaskedChameleon`."""
    with torch.device("meta"):
        other = UnmaskedChameleon(model.config)
    other.model, other.lm_head, other.generation_config = model.model, model.lm_head, model.generation_config
    return other.eval()


class OnePicture(LogitsProcessor):
    """Allows begin of image, ``image_length`` image tokens, end of image: masks made once, one addition per step."""

    def __init__(self, vocabulary: Vocabulary, prompt_length: int) -> None:
        self.start = prompt_length
        self.length = vocabulary.image_length
        masks = torch.full((3, vocabulary.size), -torch.inf)
        masks[0, vocabulary.begin_image] = 0
        masks[1, list(vocabulary.image_ids)] = 0
        masks[2, vocabulary.end_image] = 0
        self.begin, self.inside, self.end = masks

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = input_ids.shape[1] - self.start
        if self.begin.device != scores.device:
            self.begin, self.inside, self.end = (m.to(scores.device) for m in (self.begin, self.inside, self.end))
        return scores + (self.begin if at == 0 else self.inside if at <= self.length else self.end)


def draw_with_transformers(model: UnmaskedChameleon, inputs: dict[str, Tensor], scale: float, **options: Any) -> Tensor:
    """One guided picture per prompt by transformers' own loop and guidance processor, (batch, length) int64."""
    vocabulary = vocabulary_of(model)
    batch, length = inputs["input_ids"].shape
    only = LogitsProcessorList([OnePicture(vocabulary, length)])
    unconditional = torch.full((batch, 1), vocabulary.bos, device=inputs["input_ids"].device)
    return model.generate(
        **inputs,
        guidance_scale=scale,
        negative_prompt_ids=unconditional,
        logits_processor=only,
        max_new_tokens=vocabulary.image_length + 2,
        **options,
    )


class StaticChameleon:
    """One guided picture per prompt: transformers' layers over a static cache just as long as the picture needs, the
    streams of all prompts in one batch, the image ids' rows of the head, and the draw by hand (`Torch`), all of a step
    in one function that ``compiler`` compiles. Nothing is masked, sorted or copied to the host that need not be.

    ``prompts`` (batch, length) int64, without padding; rows of the batch are the full and the unconditional stream of
    every prompt, the latter padded on the left.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        prompts: Tensor,
        scale: float,
        options: dict[str, Any],
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        vocabulary, device = vocabulary_of(model), prompts.device
        self.model, self.first = model.model, min(vocabulary.image_ids)
        self.image_length = vocabulary.image_length
        count, length = prompts.shape[0], prompts.shape[1] + 1
        self.length, self.slots = length, length + vocabulary.image_length
        streams = torch.full((count, 2, length), vocabulary.pad or 0, device=device)
        streams[:, 0, :-1], streams[:, 1, -2], streams[:, :, -1] = prompts, vocabulary.bos or 0, vocabulary.begin_image
        self.streams = streams.view(2 * count, length)
        self.padding = torch.tensor([0, length - 2], device=device).repeat(count)
        self.head = model.lm_head.weight[self.first : max(vocabulary.image_ids) + 1]
        size = len(self.head)
        self.draw = Torch(size, (0, size), (scale, 1 - scale), options)
        self.cache = StaticCache(config=model.config, max_cache_len=self.slots)
        self.places = torch.arange(self.slots, device=device)
        for kept in (self.head, self.padding, self.places):  # otherwise a graph would copy them at every step
            torch._dynamo.mark_static_address(kept)
        self.compiled = compiler(self._step)

    def _hidden(self, ids: Tensor, places: Tensor) -> Tensor:
        """(rows, n, hidden) of ``ids`` (rows, n) at ``places`` (n,) of the cache."""
        there = (self.places <= places[:, None]) & (self.places >= self.padding[:, None, None])
        itself = self.places == places[:, None]  # so that padding attends to itself and is not NaN
        found: Tensor = self.model(
            input_ids=ids,
            attention_mask=(there | itself)[:, None],
            position_ids=(places - self.padding[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return found

    def _draw(self, hidden: Tensor) -> Tensor:
        """(rows, 1) int64: the token that the rows of a prompt sampled together, for each row."""
        drawn = self.draw(F.linear(hidden, self.head))
        return (drawn + self.first).repeat_interleave(2)[:, None]

    def _step(self, ids: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        return self._draw(self._hidden(ids, place)[:, -1]), place + 1

    @torch.no_grad()
    def prefill(self) -> tuple[Tensor, Tensor]:
        """The first sampled tokens (rows, 1), and their position in the cache (1,)."""
        self.cache.reset()
        hidden = self._hidden(self.streams, self.places[: self.length])
        return self._draw(hidden[:, -1]), self.places[self.length : self.length + 1]

    @torch.no_grad()
    def run(self, steps: int) -> Tensor:
        """(batch, steps) image tokens: one from prefill, the others from compiled steps without reads by the host."""
        ids, place = self.prefill()
        drawn = [ids]
        for _ in range(steps - 1):
            torch.compiler.cudagraph_mark_step_begin()
            ids, place = (t.clone() for t in self.compiled(ids, place))
            drawn.append(ids)
        return torch.cat(drawn, 1)[::2]
