"""`enable`: a model whose ``generate`` is fastdecode's, also after it was copied or pickled."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from torch import nn
from transformers import GenerationMixin

from fastdecode.generation.api import check_model, generate
from fastdecode.generation.unsupported import Unsupported
from fastdecode.models.families import text_vocabulary_of
from fastdecode.wording import kind_of

_POSITIONAL = tuple(
    name
    for name, parameter in inspect.signature(GenerationMixin.generate).parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
)[1:]
"""The names of the arguments that transformers' ``generate`` takes by position, after the model."""

_BEFORE = "_generate_before_fastdecode"


class EnabledGenerate:
    """``model.generate`` of an enabled model: `generate` with the model in front.

    An object of the module, where a bound method would be pickled by its name, and so come back as the class's own
    ``generate``. A deep or pickled copy refers to the copied model.
    """

    def __init__(self, model: Any) -> None:
        self.__self__ = model

    __func__ = staticmethod(generate)
    __doc__ = generate.__doc__
    __name__ = "generate"

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(generate)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(_POSITIONAL):
            raise TypeError(f"generate() takes {len(_POSITIONAL)} positional arguments, and {len(args)} were given")
        named = dict(zip(_POSITIONAL, args, strict=False))
        double = sorted(named.keys() & kwargs.keys())
        if double:
            raise TypeError(f"generate() got multiple values for argument {double[0]!r}")
        return generate(self.__self__, **named, **kwargs)


def enable(model: Any) -> Any:
    """Make ``model.generate`` call `generate`. Returns ``model``. `disable` undoes it.

    Copies of the model (``copy.deepcopy``, pickle, ``torch.save``) are enabled too. TypeError for a model of another
    class than fastdecode decodes.
    """
    with contextlib.suppress(Unsupported):  # then every call is handed to transformers
        text_vocabulary_of(check_model(model))
    before = model.__dict__.get("generate")
    if before is not None and not isinstance(before, EnabledGenerate):
        model.__dict__[_BEFORE] = before
    model.generate = EnabledGenerate(model)
    return model


def disable(model: Any) -> Any:
    """Restore the ``generate`` that the model had before `enable`. Returns ``model``. TypeError for what is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {kind_of(model)}: give the model that was enabled")
    if isinstance(model.__dict__.get("generate"), EnabledGenerate):
        del model.__dict__["generate"]
        if _BEFORE in model.__dict__:
            model.generate = model.__dict__.pop(_BEFORE)
    return model
