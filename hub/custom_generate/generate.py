"""`fastdecode.generate` as a custom generation loop of transformers."""

import fastdecode
from fastdecode.models.loading import add_decoder


def generate(inputs=None, *, model, **options):
    """What ``fastdecode.generate(model, inputs, …)`` returns; options that are None are left out.

    A Chameleon that will draw gets the VQ decoder of its checkpoint, which transformers drops.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("multimodal_generation_mode", "text-only") != "text-only":
        add_decoder(model)
    return fastdecode.generate(model, inputs, **given)
