"""`fastdecode.generate` as a custom generation loop of transformers."""

import fastdecode


def generate(inputs=None, *, model, **options):
    """What ``fastdecode.generate(model, inputs, …)`` returns; options that are None are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    return fastdecode.generate(model, inputs, **given)
