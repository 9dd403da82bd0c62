"""`best_of`: makes several documents of a prompt, lets a function of the caller score them, and returns the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, cast

from torch import Tensor

from fastdecode.engine.callbacks import name_of
from fastdecode.generation.api import decode_call, prepare_call
from fastdecode.generation.generate_options import GenerateOptions
from fastdecode.generation.option_kinds import check_whole
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.validation import check_config, set_option
from fastdecode.models.documents import Document, to_documents
from fastdecode.ops.scalars import shown
from fastdecode.wording import kind_of

Rerank = Callable[[list[Document]], Sequence[float]]

REFUSED = {
    "num_return_sequences": "n is their number",
    "streamer": "best_of returns whole documents; fastdecode.stream tells one as it comes",
}


OF_A_KIND = ("guidance", "image", "text")
"""The options that documents of one prompt may differ in."""


@dataclass(frozen=True, eq=False)
class Best:
    """What `best_of` returns for a prompt.

    document    the best of ``documents``: a list of str and PIL.Image
    tokens      (length,) int64: its row of ``sequences``
    score       its score, the first of the highest ``scores``
    scores      n floats, one for each document
    documents   all n documents, in the order in which they were made
    sequences   (n, length) int64: what `fastdecode.generate` returns, the prompt included
    kind        the place in ``kinds`` of what the best was made with; 0 without ``kinds``
    kinds       n numbers: the same of all documents
    """

    document: Document
    tokens: Tensor
    score: float
    scores: tuple[float, ...]
    documents: tuple[Document, ...]
    sequences: Tensor
    kind: int
    kinds: tuple[int, ...]


def best_of(
    model: Any,
    processor: Any,
    n: int,
    rerank: Rerank | Sequence[Rerank],
    *,
    kinds: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[Best]:
    """Make ``n`` documents of each prompt in one batch, and return the best of each prompt.

        model      one that `fastdecode.generate` takes
        processor  its processor, or its tokenizer, as for `fastdecode.to_documents`
        n          documents of each prompt
        rerank     a function of the n documents of a prompt, which returns n finite numbers: the higher, the better. Of
                   equal ones the first document is taken. Or a list of such functions, one for each prompt
        kinds      dicts of options in which the documents of a prompt differ: guidance, image and text. Document i is
                   made with the options and those of ``kinds[i % len(kinds)]``, which go first. None: all alike
        options    the inputs and options of `fastdecode.generate`; ``do_sample=True`` is the default here
        returns    a `Best` for each prompt

    The n sequences share the pages of their prompt. With a ``seed`` they are those of ``generate`` with
    ``num_return_sequences=n``: the first is what the seed gives alone. With ``kinds``, document i is number i of what
    ``generate`` returns with the options of its kind.

    Raises what `fastdecode.generate` raises, before anything is decoded; ValueError if nothing is sampled for two
    documents of a prompt that are of one kind, so that they would be equal, and for scores that are not n finite
    numbers. What ``rerank`` raises is raised.
    """
    check_whole("n", n, 1)
    if n is None:
        raise ValueError("n=None: give a whole number of at least 1")
    _check_kinds(kinds, n)
    for name, why in REFUSED.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} is not an option of best_of: {why}")
    several = isinstance(rerank, (list, tuple))
    functions = list(cast(Sequence[Rerank], rerank)) if several else [cast(Rerank, rerank)]
    for place, function in enumerate(functions):
        if not callable(function) or isinstance(function, type):
            name = f"rerank[{place}]" if several else "rerank"
            raise ValueError(f"{name} is {shown(function)}: give a function of a list of documents that returns scores")
    config = options.get("generation_config")
    check_config(config)
    given = {name: options.pop(name) for name in GenerateOptions.__dataclass_fields__ if name in options}
    greedy = (
        f"n={n} documents of a prompt would all be equal, since the likeliest token is always taken: leave "
        "do_sample=False and temperature=0 out, or give n=1"
    )
    sampled = options.get("do_sample", getattr(config, "do_sample", None))
    if sampled is None:
        set_option(options, "do_sample", True)
    elif n > 1 and not sampled:
        raise ValueError(greedy)
    set_option(options, "num_return_sequences", int(n))
    inputs = options.pop("inputs", None)
    if kinds is None:
        call = prepare_call(model, inputs, options, given)
        if n > 1 and not call.samples:
            raise ValueError(greedy)
    else:
        call = _mixed([_of_kind(i, model, inputs, options, {**given, **kind}) for i, kind in enumerate(kinds)], n)
    prompts = len(call.sequences) // n
    if several and len(functions) != prompts:
        raise ValueError(
            f"rerank has {len(functions)} functions for {prompts} prompts: give one function for all, or one for each"
        )
    out: Any = decode_call(call, None, bool(GenerateOptions.found(model, config, given).progress))
    sequences: Tensor = getattr(out, "sequences", out)
    documents = to_documents(model, processor, sequences, start=call.prompts.shape[1])
    found = []
    for prompt in range(prompts):
        own = slice(prompt * n, (prompt + 1) * n)
        function = functions[prompt if several else 0]
        found.append(_best(documents[own], sequences[own], function, len(kinds or [{}])))
    return found


def _check_kinds(kinds: Any, n: int) -> None:
    if kinds is None:
        return
    if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, Mapping) for kind in kinds):
        raise ValueError(
            f"kinds={shown(kinds)}: give a list of dicts, such as [dict(guidance=3.0), dict(guidance=5.0)]"
        )
    if not 1 <= len(kinds) <= n:
        raise ValueError(f"kinds has {len(kinds)} kinds for n={n} documents: give at least one, and at most n")
    for place, kind in enumerate(kinds):
        for name in kind:
            if name not in OF_A_KIND:
                raise ValueError(
                    f"kinds[{place}] has {shown(name)}: documents of one prompt can differ in {', '.join(OF_A_KIND)}; "
                    "give other options to best_of"
                )


def _of_kind(place: int, model: Any, inputs: Any, options: dict[str, Any], given: dict[str, Any]) -> Prepared:
    """The call with the options of a kind. What is wrong with it names the kind."""
    try:
        return prepare_call(model, inputs, options, given)
    except ValueError as error:
        raise ValueError(f"with kinds[{place}]: {error}") from error
    except TypeError as error:
        raise TypeError(f"with kinds[{place}]: {error}") from error


def _mixed(calls: Sequence[Prepared], n: int) -> Prepared:
    """One call, whose sequence i of a prompt is that of the call ``i % len(calls)``."""
    for place, call in enumerate(calls):
        if n - place > len(calls) and not call.samples:
            raise ValueError(
                f"the documents of kinds[{place}] would all be equal, since the likeliest token is always taken: "
                "leave its do_sample=False and temperature=0 out, or give no more documents than kinds"
            )
    kinds = len(calls)
    sequences = [calls[i % n % kinds].sequences[i] for i in range(len(calls[0].sequences))]
    return replace(calls[0], sequences=sequences)


def _best(documents: list[Document], sequences: Tensor, rerank: Rerank, kinds: int) -> Best:
    of = tuple(i % kinds for i in range(len(documents)))
    scores = _scores(rerank, rerank([list(document) for document in documents]), len(documents))
    best = scores.index(max(scores))
    return Best(documents[best], sequences[best], scores[best], scores, tuple(documents), sequences, of[best], of)


def _scores(rerank: Rerank, given: Any, n: int) -> tuple[float, ...]:
    """What ``rerank`` has returned, as floats. ``ValueError`` unless they are ``n`` finite numbers."""
    name = f"rerank function {name_of(rerank)}"
    right = f"it must return {n} finite numbers, one for each document"
    values = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ValueError(f"the {name} returned {shown(given)}, {kind_of(given)}: {right}")
    if len(values) != n:
        raise ValueError(f"the {name} returned {len(values)} scores for {n} documents: {right}")
    for place, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"the {name} returned {shown(value)} as score {place}: {right}")
    return tuple(float(value) for value in values)
