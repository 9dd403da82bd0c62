"""Makes the tokenizer and processor of ``blocks``: byte-level BPE, and Chameleon's own names for the markers.

Ids: ``<s>`` ``<pad>`` ``</s>`` ``<unk>``, the 256 image ids by their Chameleon names, the image markers, then text.
Any text can be encoded (bytes are the alphabet); every word of the world is one id.
"""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ChameleonProcessor, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from tools.blocks import world
from tools.blocks.configuration import IMAGE_TOKENS, VQ

BEGIN_IMAGE, END_IMAGE, SEPARATOR, PLACEHOLDER = (
    "<racm3:break>",
    "<eoss>",
    "<reserved08706>",
    "<image>",
)


def image_token_name(code: int) -> str:
    """Chameleon spells the code's digits with letters, A for 0: 17 is ``IMGIMGBHZ``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def sentences(count: int = 4000, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    text = []
    for _ in range(count):
        goal = world.random_goal(rng)
        text += [goal.sentence, *(step.sentence for step in goal.steps)]
        text += [world.drawing_prompt(world.random_scene(rng)), world.random_edit(rng)[1]]
    return [*text, *(["Describe the picture."] * count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    images = [image_token_name(code) for code in range(VQ.num_embeddings)]
    special = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *images,
        END_IMAGE,
        BEGIN_IMAGE,
        SEPARATOR,
        PLACEHOLDER,
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        min_frequency=20,
        special_tokens=special,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        sep_token=SEPARATOR,
        extra_special_tokens={
            "image_token": PLACEHOLDER,
            "boi_token": BEGIN_IMAGE,
            "eoi_token": END_IMAGE,
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_processor() -> ChameleonProcessor:
    image_processor = ChameleonImageProcessorPil(
        size={"shortest_edge": VQ.resolution},
        crop_size={"height": VQ.resolution, "width": VQ.resolution},
        rescale_factor=2 / 255,
        image_mean=[1.0, 1.0, 1.0],
        image_std=[1.0, 1.0, 1.0],
    )
    return ChameleonProcessor(image_processor, make_tokenizer(), image_seq_length=IMAGE_TOKENS)
