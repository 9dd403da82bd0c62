"""Records what a GPU would launch in one captured decode step, on a machine without a GPU.

The step is the real one: `fastdecode.generate` draws with a model of a few layers, and the function that it would
capture as a CUDA graph runs once on the CPU. Launches of Triton kernels are noted and not run. Operations of torch are
noted, and run on the CPU unless they are matrix products. Weights are zeros in memory that is never written, so a large
model takes little of it.

A step of three layers minus one of two gives the launches of a layer, hence those of any number of layers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.modeling_chameleon import ChameleonRotaryEmbedding
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

from benchmarks.gpu_devices import Device
from benchmarks.gpu_step import PROMPT, Configuration, Watch, as_on_a_gpu, draw
from benchmarks.models import SIZES, config_of, text_prompts
from fastdecode import ops
from fastdecode.decoder import Decoder
from fastdecode.decoder.quantised import matrix_of
from fastdecode.models.chameleon import attach_decoder
from fastdecode.models.vq_decoder import VQDecoder

WEIGHTS = {"bf16": torch.bfloat16, "int8": torch.int8, "float8": torch.float8_e4m3fn}
"""The weights that a Triton step reads."""

_FREE = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "detach_", "lift_fresh", "_local_scalar_dense"),
)
"""Operations of torch that launch nothing; so do all views. A captured step reads numbers of the host's memory only."""

_PRODUCTS = ("mm", "addmm", "bmm")

_ALIGNED = 512

_OF_ADDRESSES = ("apart",)
"""Numbers that depend on where tensors lie, which is by chance."""


@dataclass(frozen=True)
class Memory:
    """What a launch sees of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, tensor: Tensor) -> Memory:
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.element_size())

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.itemsize


@dataclass(frozen=True)
class Launch:
    """One launch. ``arguments``: numbers, constants and `Memory` by name; ``kernel``: None for an operation of torch,
    whose `Memory` are its inputs and then its results.

    ``signature``, ``constants``, ``attributes``, ``options``: what Triton compiles. Equal launches are equal.
    """

    name: str
    grid: int
    arguments: tuple[tuple[str, Any], ...]
    kernel: Any = None
    signature: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[Any, Any], ...] = ()
    attributes: tuple[tuple[Any, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The argument of that name."""
        for key, value in self.arguments:
            if key == name:
                return value
        raise KeyError(f"{self.name} has no argument {name!r}; it has {', '.join(key for key, _ in self.arguments)}")

    @property
    def memories(self) -> list[Memory]:
        return [value for _, value in self.arguments if isinstance(value, Memory)]


@dataclass
class Recorder(TorchDispatchMode):
    """Notes launches while it is active."""

    device: Device
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.backend = make_backend(GPUTarget("cuda", self.device.arch, 32))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in _PRODUCTS:
            result = _unmultiplied(args, kwargs)
        else:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:  # what it consists of was recorded
                return result
            result = func(*args, **kwargs)
        if not func.is_view and name not in _FREE:
            found = result if isinstance(result, (tuple, list)) else (result,)
            tensors = [t for t in (*_flat(args), *kwargs.values(), *found) if isinstance(t, Tensor)]
            memories = tuple((str(i), Memory.of(tensor)) for i, tensor in enumerate(tensors))
            self.launches.append(Launch(f"torch {name}", 0, memories))
        return result

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """In place of `JITFunction.run`."""
        binder = jit.create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialization, options = binder(*args, **kwargs)
        grid = grid(bound) if callable(grid) else grid
        parsed, signature, constants, attributes = kernel._pack_args(
            self.backend, kwargs, bound, specialization, options
        )
        given = {n: Memory.of(v) if isinstance(v, Tensor) else v for n, v in bound.items() if n not in _OF_ADDRESSES}
        self.launches.append(
            Launch(
                kernel.__name__,
                int(np.prod(grid)),
                tuple(given.items()),
                kernel,
                tuple(signature.items()),
                tuple(constants.items()),
                tuple((place, tuple(map(tuple, found))) for place, found in attributes.items()),
                tuple((name, value) for name, value in parsed.__dict__.items() if _is_plain(value)),
            )
        )


def _is_plain(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _unmultiplied(args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Room for a product of torch. A CPU would take long, and cannot multiply bfloat16 into float32."""
    a, b = [t for t in args if isinstance(t, Tensor)][-2:]
    chosen = [options.get("out_dtype"), *(value for value in args if isinstance(value, torch.dtype)), a.dtype]
    dtype = next(d for d in chosen if d is not None)
    return torch.zeros(*a.shape[:-1], b.shape[-1], dtype=dtype)


class _Recorded(Exception):
    """Ends `fastdecode.generate` after the step."""


@contextmanager
def _pretending(recorder: Recorder) -> Iterator[None]:
    """The step's Python chooses what it would on the device: tensors of a CPU go to Triton's kernels."""
    device = recorder.device
    properties = SimpleNamespace(multi_processor_count=device.multiprocessors, name=device.name)
    with ExitStack() as stack:
        for target, value in {
            "fastdecode.ops.backends._default": "triton",
            "fastdecode.ops.backends._interpreted": lambda: True,
            "fastdecode.ops.tracing._len_torch_dispatch_stack": lambda: 0,
            "fastdecode.triton_kernels.dependent._has_it": lambda which: device.arch >= 90,
            "torch.cuda.get_device_capability": lambda *which: divmod(device.arch, 10),
            "torch.cuda.get_device_properties": lambda *which: properties,
        }.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(patch.object(torch.Tensor, "is_cuda", True))
        stack.enter_context(
            patch.object(jit.JITFunction, "run", lambda self, *args, **options: recorder.run(self, *args, **options))
        )
        yield


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages are not there until they are written, aligned as a GPU's memory is."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(*shape)


def _model(name: str, layers: int) -> ChameleonForConditionalGeneration:
    """As `random_model`, of so many layers, all matrices zero."""
    config = config_of(name)
    config.num_hidden_layers = layers
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config).to(SIZES[name].dtype)
        decoder = VQDecoder(config.vq_config)
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = torch.nn.Parameter(_zeros(weight.shape, weight.dtype), requires_grad=False)
                if weight.ndim == 1 and key == "weight":
                    module._parameters[key].fill_(1.0)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = _zeros(buffer.shape, buffer.dtype)
    model.model.rotary_emb = ChameleonRotaryEmbedding(config)
    attach_decoder(model, {key: torch.zeros(value.shape) for key, value in decoder.state_dict().items()})
    return model.eval()


def _bytes_of(dtype: torch.dtype) -> Callable[[Any], ops.Matrix]:
    """`matrix_of` of modules whose weights were quantised by torchao."""

    def smaller(module: Any) -> ops.Matrix:
        bias, weight = matrix_of(module).bias, module.weight
        return ops.Matrix(_zeros(weight.shape, dtype), bias, torch.ones(len(weight)))

    return smaller


def record(model: str, rows: int, weights: str, device: Device, layers: int, tokens: int = PROMPT) -> list[Launch]:
    """The launches of a captured step inside a picture, of a model of `benchmarks.models.SIZES` cut to ``layers``.

    An even number of rows is that of guided sequences, of two rows each. ``tokens``: in each prompt; a captured page
    table has room for twice as many and two pages.
    """
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y"):
        raise RuntimeError("TRITON_INTERPRET is set, so kernels are not compiled; unset it to record launches")
    recorder = Recorder(device)

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        with _pretending(recorder), recorder:
            step()
        raise _Recorded

    made = _model(model, layers)
    streams = 1 if rows % 2 else 2
    configuration = Configuration(rows // streams, streams)
    with ExitStack() as stack:
        stack.enter_context(patch("fastdecode.decoder.decoder.unsupported_reason", lambda model: "not recorded"))
        stack.enter_context(as_on_a_gpu(capture))
        stack.enter_context(patch.object(Decoder, "_fill", lambda self, work: None))  # prompts stay unread
        if weights != "bf16":
            stack.enter_context(patch("fastdecode.decoder.triton_step.matrix_of", _bytes_of(WEIGHTS[weights])))
        try:
            draw(made, configuration, Watch("cpu"), text_prompts(made, configuration.sequences, tokens))
        except _Recorded:
            return recorder.launches
    raise RuntimeError(f"fastdecode.generate captured no step of {model} with {rows} rows, so nothing was recorded")


@dataclass(frozen=True)
class Step:
    """How often each launch occurs: in a layer inside the model, and in a whole step of ``layers`` layers."""

    layer: Counter[Launch]
    whole: Counter[Launch]
    layers: int


def step_of(model: str, rows: int, weights: str, device: Device, tokens: int = PROMPT) -> Step:
    """By a step of two layers, and what a third one adds."""
    two, three = (Counter(record(model, rows, weights, device, layers, tokens)) for layers in (2, 3))
    layer, layers = three - two, SIZES[model].layers
    if not layer or two - three:
        raise RuntimeError(
            f"a third layer of {model} does not only add launches to a step of two, so launches cannot be scaled to "
            f"{layers} layers: {three.total()} with three, {two.total()} with two"
        )
    return Step(layer, two + Counter({launch: count * (layers - 2) for launch, count in layer.items()}), layers)


def compiled(launch: Launch, arch: int) -> Any:
    """What Triton makes of a launch's kernel for ``arch``, as a launch on such a device would compile it."""
    source = triton.compiler.ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {place: [list(item) for item in found] for place, found in launch.attributes},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
