"""A GPU that is not there: tensors whose device is `cuda:0` and whose numbers are computed on the CPU.

torch sees CUDA tensors in every decision (autograd, autocast, branches on the device). Each operation is first run
under FakeTensorMode on fakes of its arguments, which refuses mixed devices, dtypes and operations without a shape rule,
and then on the numbers, so that whole trainings and predictions run as they would. What makes the host wait for the
device is recorded with the place in the product that asked for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, UnsupportedOperatorException
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import mllm_tailor

DEVICE = torch.device("cuda:0")
MEMORY = 24 * 2**30
SOURCE = str(Path(mllm_tailor.__file__).parent)
aten = torch.ops.aten

# What the host must know the values of: it waits until the device has computed them.
VALUES = {Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__index__, Tensor.__float__, Tensor.__bool__}
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.convolution.default}


@dataclass(frozen=True)
class Wait:
    """A wait of the host: `read` and `size` wait for values, `upload` for a copy from pageable memory."""

    kind: str
    place: str  # file:function in the product, or in a library where the product is not below
    operation: str


@dataclass
class Records:
    """What was seen."""

    waits: Counter[Wait] = field(default_factory=Counter)
    wide_products: Counter[str] = field(default_factory=Counter)  # float32 products on the device, by place
    products: int = 0
    unsupported: Counter[str] = field(default_factory=Counter)


class DeviceTensor(Tensor):
    """A tensor of the fake GPU; `numbers` is on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        gpu = FakeGpu.current
        if func in VALUES:
            gpu.wait("read", func.__name__)
            return func(args[0].numbers)
        if func is Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            target, source = args
            if not isinstance(source, DeviceTensor):
                raise TypeError("a tensor of the GPU cannot hold one of the CPU")
            with torch._C.DisableTorchFunctionSubclass():
                func(target, source)
            target.numbers = source.numbers
            return None
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FakeGpu.current.answer(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = DeviceTensor(self.numbers.detach().clone()).requires_grad_(self.requires_grad)
        made.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "numbers"}
        memo[id(self)] = made
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"


class AssignedData(TorchFunctionMode):
    """`weight.data = tensor` where the weight is on the CPU and the tensor on the device, which moves the weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__set__ and isinstance(args[1], DeviceTensor):  # type: ignore[attr-defined]
            target, source = args
            if not isinstance(target, DeviceTensor):
                moved = nn.Parameter(source, requires_grad=target.requires_grad)
                return torch.utils.swap_tensors(target, moved)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class FakeGpu(TorchDispatchMode):
    """Within it, `cuda:0` exists and `torch.cuda` answers."""

    current: FakeGpu
    checked: ClassVar[dict[Any, list[torch.dtype | None]]] = {}  # by operation and the shapes of its arguments

    def __init__(self) -> None:
        super().__init__()
        self.records = Records()
        self.fakes = FakeTensorMode(allow_non_fake_inputs=False)

    def __enter__(self) -> FakeGpu:
        FakeGpu.current = self
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(_cuda_module())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.answer(func, args, kwargs or {})

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation as a GPU would: its checks on fakes, its numbers on the CPU."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(leaf, DeviceTensor) for leaf in leaves)
        asked = next((device for device in _devices(func, args, kwargs)), None)
        to_device = asked is not None and asked.type == "cuda"
        if not on_device and not to_device:
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # attention by plain products, whose dtype the flag below keeps
        self._watch(func, args, kwargs, leaves, on_device=on_device, asked=asked)
        expected = self._checked(func, args, kwargs, asked)
        numbers = tree_map(_numbers, (args, kwargs))
        out = func(*numbers[0], **numbers[1])
        if asked is not None and not to_device:
            return out.clone() if out is numbers[0][0] else out
        for wanted, real in zip(expected, tree_leaves(out), strict=False):
            assert wanted is None or wanted == real.dtype, f"{func}: {wanted} on a GPU, {real.dtype} here"
        if func in READS:
            return out
        if func is aten._to_copy.default and out is numbers[0][0]:
            out = out.clone()
        result = tree_map(lambda leaf: DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return _same_object(func, args, kwargs, result)

    def take(self) -> Records:
        """What was seen since the last call."""
        records, self.records = self.records, Records()
        return records

    def wait(self, kind: str, operation: str) -> None:
        """Record that the host waits here."""
        self.records.waits[Wait(kind, _place(), operation)] += 1

    def _watch(self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor], *, on_device: bool, asked: Any) -> None:
        name = str(func).removeprefix("aten.")
        blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
        if func in READS or (on_device and asked is not None and asked.type == "cpu"):
            self.wait("read", name)
        elif func in SIZED_BY_VALUES:
            self.wait("size", name)
        elif func in INDEXED:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.wait("size", f"{name} by a mask")
                elif index is not None and not isinstance(index, DeviceTensor):
                    self.wait("upload", f"{name} by an index on the CPU")
        elif func is aten._to_copy.default and not on_device:
            if blocking or not getattr(args[0], "pinned", False):
                self.wait("upload", name)
        elif func is aten.copy_.default and (isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor)):
            self.wait("upload" if isinstance(args[0], DeviceTensor) else "read", name)
        if func in PRODUCTS:
            self.records.products += 1
            if all(leaf.dtype == torch.float32 for leaf in leaves):
                self.records.wide_products[_place()] += 1

    def _checked(self, func: Any, args: Any, kwargs: Any, asked: torch.device | None) -> list[torch.dtype | None]:
        """The dtypes that FakeTensorMode finds for the results; empty for what depends on values.

        Operations of the same kind, shapes and dtypes are checked once.
        """
        if func in READS or func in SIZED_BY_VALUES or (func in INDEXED and _masked(args[1])):
            return []
        signature = (func, *map(_signature, tree_leaves((args, kwargs))))
        if signature not in self.checked:
            with self.fakes:
                fake_args, fake_kwargs = tree_map(self._fake, (args, kwargs))
                try:
                    made = tree_leaves(func(*fake_args, **fake_kwargs))
                except UnsupportedOperatorException:
                    self.records.unsupported[str(func)] += 1
                    made = []
            for fake in made if asked is None or asked.type == "cuda" else ():
                assert not isinstance(fake, Tensor) or fake.device.type == "cuda" or not fake.ndim, (
                    f"{func}: {fake.device}"
                )
            self.checked[signature] = [getattr(fake, "dtype", None) for fake in made]
        return self.checked[signature]

    def _fake(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        device = DEVICE if isinstance(leaf, DeviceTensor) else leaf.device
        shape = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
        return FakeTensor(self.fakes, shape, device)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return isinstance(leaf, DeviceTensor), leaf.shape, leaf.stride(), leaf.dtype
    return type(leaf) if isinstance(leaf, float) else leaf


def to_gpu(module: nn.Module) -> None:
    """Move a module, its shared weights and packed layers' scales included."""
    moved: dict[int, Any] = {}

    def move(tensor: Tensor) -> Any:
        if isinstance(tensor, DeviceTensor):
            return tensor
        if id(tensor) not in moved:
            made = DeviceTensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            for name, value in tensor.__dict__.items():
                setattr(made, name, _moved_state(value) if name == "quant_state" else value)
            moved[id(tensor)] = made
        return moved[id(tensor)]

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = move(weight)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)
        if hasattr(part, "quant_state") and hasattr(part, "weight"):
            part.quant_state = getattr(part.weight, "quant_state", None)


def _moved_state(state: Any) -> Any:
    """bitsandbytes' scales of a packed weight."""
    for name, value in vars(state).items():
        if isinstance(value, Tensor) and not isinstance(value, DeviceTensor):
            setattr(state, name, DeviceTensor(value))
        elif name == "state2" and value is not None:
            _moved_state(value)
    return state


def _devices(func: Any, args: Any, kwargs: Any) -> Iterator[torch.device]:
    if kwargs.get("device") is not None:
        yield torch.device(kwargs["device"])
    yield from (argument for argument in args if isinstance(argument, torch.device))


def _numbers(leaf: Any) -> Any:
    if isinstance(leaf, DeviceTensor):
        return leaf.numbers
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _masked(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _same_object(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """The argument itself where the operation wrote into it."""
    schema = func._schema
    written = [
        (args[number] if number < len(args) else kwargs.get(argument.name))
        for number, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if not written:
        return result
    for target in tree_leaves(written):
        if isinstance(target, DeviceTensor) and target.shape != target.numbers.shape:
            raise NotImplementedError(f"{func} changes a shape in place")
    returned = [value.alias_info is not None and value.alias_info.is_write for value in schema.returns]
    if len(returned) == 1 and returned[0]:
        return written[0]
    if returned and all(returned):
        return tuple(written)
    return result


def _place() -> str:
    """The innermost function of the product on the stack, or of a library where the product is not on it."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(SOURCE):
            own = f"{name[len(SOURCE) + 1 :]}:{frame.f_code.co_name}"
            return f"{own} > {library}" if library else own
        if not library and "/torch/" not in name and name != __file__:
            library = f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return library or "backward"


@contextlib.contextmanager
def _cuda_module() -> Iterator[None]:
    """`torch.cuda` of a machine with one GPU of 24 GiB."""

    def pin(tensor: Tensor, device: Any = None) -> Tensor:
        copy = tensor.clone()
        copy.pinned = True  # type: ignore[attr-defined]
        return copy

    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_name": lambda device=None: "no GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "device": lambda device=None: contextlib.nullcontext(),
        "device_of": lambda device=None: contextlib.nullcontext(),
    }
    before = {name: getattr(torch.cuda, name) for name in answers}
    generator = torch.Generator
    torch.Generator = lambda device=None: generator()  # type: ignore[assignment,misc]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a CPU tensor cannot become one of the GPU
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # type: ignore[no-untyped-call]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor moves to the device by an operation of its own
    inference = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    # Wrapped tensors have version counters, which inference mode leaves out: it becomes no_grad.
    torch.inference_mode.__enter__ = _enter_no_grad  # type: ignore[method-assign]
    torch.inference_mode.__exit__ = _exit_no_grad  # type: ignore[method-assign]
    pinned = Tensor.pin_memory
    for name, value in answers.items():
        setattr(torch.cuda, name, value)
    Tensor.pin_memory = pin  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.cuda, name, value)
        Tensor.pin_memory = pinned  # type: ignore[method-assign]
        torch.Generator = generator  # type: ignore[misc]
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = inference  # type: ignore[method-assign]


def _enter_no_grad(mode: Any) -> None:
    mode.without = torch.no_grad()
    mode.without.__enter__()


def _exit_no_grad(mode: Any, *error: Any) -> None:
    mode.without.__exit__(*error)
