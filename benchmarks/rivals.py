"""What a user of transformers would run: Chameleon without its image mask, drawn by ``model.generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from fastdecode.models.chameleon import Vocabulary


class UnmaskedChameleon(ChameleonForConditionalGeneration):
    """Chameleon whose forward leaves the logits of image ids alone; nothing else is changed."""

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
    """Begin of image, ``image_length`` image ids, end of image: masks made once, one addition per step."""

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
        return scores + (self.begin if at == 0 else self.inside if at <= self.length else self.end)


def draw_with_transformers(model: UnmaskedChameleon, inputs: dict[str, Tensor], scale: float, **options: Any) -> Tensor:
    """One guided picture per prompt by transformers' own loop and guidance processor, (batch, length) int64."""
    vocabulary = Vocabulary.of(model)
    batch, length = inputs["input_ids"].shape
    only = LogitsProcessorList([OnePicture(vocabulary, length)])
    unconditional = torch.full((batch, 1), vocabulary.bos)
    return model.generate(
        **inputs,
        guidance_scale=scale,
        negative_prompt_ids=unconditional,
        logits_processor=only,
        max_new_tokens=vocabulary.image_length + 2,
        **options,
    )
