"""The loops that people run for Janus, Emu3 and Liquid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def draw_janus(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    mask = torch.ones_like(ids)
    found: Tensor = model.generate(
        input_ids=ids, attention_mask=mask, generation_mode="image", guidance_scale=5.0, do_sample=sample
    )
    return found


def emu3_grammar(model: Any, height: int, width: int) -> Callable[[int, Tensor], list[int]]:
    """The tokens that may come next in a picture, as Emu3's model card computes them for every row and step."""
    names = model.config.vocabulary_map
    visual = [i for name, i in names.items() if name.startswith("<|visual token")]
    begin, row_end, frame_end, end = (
        names[name] for name in ("<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>")
    )
    after = {1: [frame_end], 2: [end]}

    def allowed(number: int, tokens: Tensor) -> list[int]:
        place = tokens.shape[0] - int(torch.nonzero(tokens == begin)[0, 0])
        if place > (width + 1) * height:
            return after.get(place - (width + 1) * height, [model.config.text_config.eos_token_id])
        return [row_end] if place % (width + 1) == 0 else visual

    return allowed


def draw_emu3(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    negative = ids.flip(1)[:, -8:].clone()
    negative[:, -1] = ids[:, -1]
    options: dict[str, Any] = {"do_sample": True, "top_k": 2048} if sample else {"do_sample": False}
    found: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        guidance_scale=3.0,
        negative_prompt_ids=negative,
        negative_prompt_attention_mask=torch.ones_like(negative),
        prefix_allowed_tokens_fn=emu3_grammar(model, side, side),
        max_new_tokens=side * (side + 1) + 2,
        **options,
    )
    return found[:, ids.shape[1] :]


@torch.no_grad()
def draw_liquid(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    """Both streams in one batch, padded on the left; temperature, image tokens, top-k, top-p as in Liquid's code."""
    tokens = model.config.picture_tokens
    first, count = tokens["first"], model.config.vocab_size - tokens["first"]
    other = torch.tensor([model.config.bos_token_id, tokens["unconditional"], tokens["begin"]], device=ids.device)
    other = other.expand(len(ids), -1)
    padding = ids.shape[1] - other.shape[1]
    other = torch.nn.functional.pad(other, (padding, 0))
    fed = torch.cat([ids, other])
    mask = torch.ones_like(fed)
    mask[len(ids) :, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, drawn = DynamicCache(config=model.config), []
    for _ in range(side * side):
        logits = model(
            fed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        c, u = logits.float().chunk(2)
        scores = (u + 7.0 * (c - u))[:, first : first + count]
        token = _sampled(scores) if sample else scores.argmax(-1, keepdim=True)
        drawn.append(token + first)
        fed = torch.cat([drawn[-1]] * 2)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return torch.cat(drawn, 1)


def _sampled(scores: Tensor) -> Tensor:
    scores = scores / 0.99
    kept, order = scores.topk(min(4096, scores.shape[-1]))
    chances = torch.softmax(kept, -1)
    chances = chances.masked_fill(chances.cumsum(-1) - chances > 0.96, 0.0)
    return order.gather(1, torch.multinomial(chances, 1))
