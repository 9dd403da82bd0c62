"""The result of ``fastdecode.explain``: the settings that are in effect for a call."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fastdecode import ops
from fastdecode.decoder import BaseDecoder, Decoder, support
from fastdecode.decoder.quantised import of_small
from fastdecode.generation.prepared import Prepared
from fastdecode.generation.stream_names import describe_contrasts, describe_schedules, describe_streams
from fastdecode.grammar import BLOCK, IMAGE_SET, TEXT, TEXT_SET
from fastdecode.models.families import family_of
from fastdecode.ops.backends import BACKENDS, BY_NAME, choose_backend, core, unavailable

PAINTED = "can be painted"


@dataclass(frozen=True)
class Explanation:
    """Facts about a prepared call: ``str()`` for people, `to_dict` for programs. ``vq_decoder``: whether the tokens of
    pictures can become pictures.
    """

    mode: str
    sequences: int
    streams: list[list[str]]
    where: str
    allowed: dict[str, int]
    text: dict[str, Any]
    image: dict[str, Any]
    token_rules: str
    sampling_backend: str
    why_not_faster: list[str]
    decoder: str
    memory: str
    unfused_processors: list[str]
    stopping_criteria: list[str]
    can_draw: bool
    vq_decoder: str
    limits: list[int]
    without_effect: list[str]
    decoded_by: str = "fastdecode"
    schedules: list[str] = field(default_factory=list)
    contrasts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, prepared: Prepared, decoder: BaseDecoder, compiled: bool = False) -> Explanation:
        """The explanation of a `Prepared` call that ``decoder`` would decode. It decodes nothing. ``compiled``: the
        model went through `torch.compile`.
        """
        model, grammar, vocabulary = prepared.model, prepared.grammar, prepared.vocabulary
        device = decoder.device.type
        backend, reasons = _backend(device)
        if prepared.processors.unfused:
            reasons.append("logits are mixed in PyTorch, because other logits processors run on them")
        elif prepared.recorder.wanted:
            reasons.append("logits are mixed in PyTorch, because they are to be returned")
        elif prepared.normalise and prepared.text.repetition_penalty != 1:
            reasons.append("logits are mixed in PyTorch, because transformers penalises mixed log-probabilities")
        steps, slower = _steps(decoder)
        reasons += slower
        if compiled and decoder.forward_reason is None:
            steps += " (torch.compile has no part in it)"
        streams = []
        for s in prepared.sequences:
            streams.append(describe_streams(s))
        painted = _painted(model) if vocabulary.has_pictures else "none: a model of text"
        mixes = any(len(g.guidance.streams) > 1 for g in prepared.sequences)
        everywhere = any(g.guidance.everywhere for g in prepared.sequences)
        return cls(
            mode=grammar.mode,
            sequences=len(prepared.sequences),
            streams=streams,
            where="off" if not mixes else "every token" if everywhere else "inside pictures",
            allowed={
                "text": grammar.sets.count(max(grammar.set_of[TEXT], TEXT_SET)),
                "picture": grammar.sets.count(grammar.set_of[BLOCK] if grammar.draws else IMAGE_SET),
            },
            text=asdict(prepared.text),
            image=asdict(prepared.image),
            token_rules=str(prepared.processors.rules),
            sampling_backend=backend,
            why_not_faster=reasons,
            decoder=f"ragged batch over the model's own {decoder.layer_count} layers, {device}, "
            f"{str(model.dtype).removeprefix('torch.')}{_small_weights(model)}, {steps}",
            memory=_memory(prepared, decoder, [len(planned) for planned in streams]),
            unfused_processors=[type(p).__name__ for p in prepared.processors.unfused],
            stopping_criteria=[type(c).__name__ for c in prepared.stopping],
            can_draw=painted == PAINTED,
            vq_decoder=painted,
            limits=[g.limit for g in prepared.sequences],
            without_effect=[f"{name}, because {reason}" for name, reason in prepared.without_effect.items()],
            schedules=describe_schedules(s.guidance for s in prepared.sequences),
            contrasts=describe_contrasts(s.guidance for s in prepared.sequences),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"mode              {self.mode}",
            f"sequences         {self.sequences}, of at most {', '.join(map(str, sorted(set(self.limits))))} tokens",
            f"guidance          {self.where}",
        ]
        for i, streams in enumerate(self.streams):
            begins = [f"  sequence {i}      ", *[" " * 18] * (len(streams) - 1)]
            lines += [begin + stream for begin, stream in zip(begins, streams, strict=True)]
        lines += [f"schedule          {schedule}" for schedule in self.schedules]
        lines += [f"guided tokens     {contrast}" for contrast in self.contrasts]
        written, drawn = self.mode != "image-only", self.mode != "text-only"
        allowed = [f"{self.allowed['text']} tokens in text"] if written else []
        allowed += [f"{self.allowed['picture']} tokens in a picture"] if drawn else []
        lines.append(f"allowed           {', '.join(allowed)}")
        if written:
            lines.append(f"text sampling     {_sampling(self.text)}")
        if drawn:
            lines.append(f"picture sampling  {_sampling(self.image)}")
        lines += [f"without effect    {what}" for what in self.without_effect]
        if self.token_rules:
            lines.append(f"token rules       {self.token_rules}")
        lines.append(f"sampling backend  {self.sampling_backend}")
        lines += [f"  not faster because {reason}" for reason in self.why_not_faster]
        lines.append(f"decoder           {self.decoder}")
        lines.append(f"keys and values   {self.memory}")
        if self.unfused_processors:
            lines.append(f"also runs         {', '.join(self.unfused_processors)}")
        if self.stopping_criteria:
            lines.append(f"also stops on     {', '.join(self.stopping_criteria)}")
        lines.append(f"pictures          {self.vq_decoder}")
        return "\n".join(lines)


def _painted(model: Any) -> str:
    """Whether the image tokens of ``model`` can become pictures, or why not."""
    family = family_of(model)
    if family.paint is None:
        return f"cannot be painted: the family {family.name} has no paint"
    missing = family.missing(model)
    return f"cannot be painted: {len(missing)} weights are missing ({missing[0]}, …)" if missing else PAINTED


def _steps(decoder: BaseDecoder) -> tuple[str, list[str]]:
    """How ``decoder`` runs a step, and why it is not faster."""
    if not isinstance(decoder, Decoder):
        return f"each step a call of the model's own forward, because {decoder.forward_reason}", []
    if decoder.uses_cpu_step:
        steps = f"each step one call of the C++ library ({core().cpu_isa()})"
        prompts = ", prompts too" if decoder.prefills_in_steps else ""
        return steps + prompts + (" (deterministic)" if decoder.deterministic else ""), []
    if decoder.uses_triton_step:
        steps = "each step made of Triton kernels"
        if decoder.captured is not None:
            return f"{steps}, captured as a CUDA graph", []
        return steps, [f"steps are not captured: {decoder.uncaptured_reason}"]
    on_cpu = decoder.device.type == "cpu"
    slower = (support.unsupported_reason if on_cpu else support.unsupported_by_triton)(decoder.model)
    return "steps of PyTorch operations", [f"the layers cannot be run as one: {slower}"]


def _small_weights(model: Any) -> str:
    """What to say of weights of 8 and 4 bits, if the model has some."""
    kinds = small_kinds(model)
    return f" with weights of {', '.join(kinds)}" if kinds else ""


def small_kinds(model: Any) -> list[str]:
    """The kinds of weights of 8 and 4 bits that the model has, such as "int8"."""
    weights = [p for p in model.parameters() if of_small(p)]
    kinds = {"int8" if p.small.type == "int8x16" else p.small.type for p in weights if isinstance(p, ops.SmallTensor)}
    return sorted(kinds | {f"{type(p).__name__} of torchao" for p in weights if not isinstance(p, ops.SmallTensor)})


def _memory(prepared: Prepared, decoder: BaseDecoder, streams: list[int]) -> str:
    """The pages that ``streams`` of every sequence take at their maximum length if they share none."""
    pool = prepared.pool if prepared.pool is not None else decoder.new_pool()
    pages = sum(n * -(-g.limit // pool.page_slots) for n, g in zip(streams, prepared.sequences, strict=True))
    size = f"at most {pages} pages of {pool.page_slots} tokens, {pages * pool.page_bytes / 1e6:.1f} MB"
    return size if pool.limit is None else f"{size}; kv_pool has {pool.limit}, {pool.free} of them free"


def _sampling(values: dict[str, Any]) -> str:
    if values["temperature"] == 0:
        penalty = values["repetition_penalty"]
        return "greedy" + (f", repetition_penalty {penalty:g}" if penalty != 1 else "")
    neutral = {
        "temperature": None,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    return ", ".join(f"{key} {value:g}" for key, value in values.items() if value != neutral[key])


def _backend(device: str) -> tuple[str, list[str]]:
    """The sampling backend of a call on ``device``, and why no faster one is used. On a CPU that is "cpu"."""
    name = choose_backend(None, device)
    if name == device == "cpu":
        return name, []
    faster = [other for other in BACKENDS[BACKENDS.index(name) + 1 :] if other not in BY_NAME]
    reasons = {other: unavailable(other) for other in faster}
    return name, [f"the backend {other} cannot run: {why}" for other, why in reasons.items() if why is not None]
