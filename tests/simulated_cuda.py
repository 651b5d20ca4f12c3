"""A CUDA device that is none: tensors "on" it live on the CPU, and whatever a real one would refuse raises.

Most mistakes that show on a GPU only are about where tensors are: two devices in one operation, `.numpy()` of what is
not in host memory, a generator of the CPU for random numbers of the GPU. Inside `simulated_cuda()` a tensor moved to
`cuda` becomes a `CudaTensor`, which holds an ordinary one and says of itself that it is on `cuda:0`; each operation is
really computed, so that values, `.item()` and gradients are right, and each checks where its arguments are. Kernels,
memory and time are not simulated.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

CUDA = torch.device("cuda", 0)

aten = torch.ops.aten

# Operations that take tensors of two devices on a real GPU too: copies, and indices in host memory.
_CROSSING = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

# What makes the CPU wait for the GPU, since it needs a number from there.
_WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal}

_transfers: Counter[str] = Counter()

_FACTORIES = {
    torch.arange, torch.empty, torch.empty_like, torch.eye, torch.full, torch.full_like, torch.linspace, torch.logspace,
    torch.ones, torch.ones_like, torch.rand, torch.rand_like, torch.randint, torch.randn, torch.randn_like,
    torch.randperm, torch.tensor, torch.as_tensor, torch.zeros, torch.zeros_like, Tensor.new_tensor, Tensor.new_empty,
    Tensor.new_full, Tensor.new_ones, Tensor.new_zeros,
}  # fmt: skip


class WrongDeviceError(AssertionError):
    """What a real GPU would have refused."""


class CudaTensor(Tensor):
    """An ordinary tensor that says it is on `cuda:0`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "CudaTensor":
        # Its C++ side stays on the CPU, since autograd has one thread per real device.
        made = Tensor._make_wrapper_subclass(
            cls,  # pyright: ignore[reportArgumentType]
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            requires_grad=False,
        )
        made.held = held
        return made  # pyright: ignore[reportReturnType]

    def __init__(self, held: Tensor) -> None: ...

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    @property
    def is_cpu(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return False

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"CudaTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "CudaTensor":
        copied = CudaTensor(self.held.detach().clone())
        copied.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied  # pyright: ignore[reportReturnType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        _refuse_mixed(func, args, kwargs)
        if func.overloadpacket in _WAITING:
            _transfers[func.overloadpacket.__name__] += 1
        plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
        result = tree_map(_on_cuda, func(*plain_args, **plain_kwargs))
        return return_and_correct_aliasing(func, args, kwargs, result)


def _refuse_mixed(func: Any, args: Any, kwargs: Any) -> None:
    if func.overloadpacket in _CROSSING:
        # The values that are put somewhere have to be where that is.
        given = [args[0], *([] if len(args) < 3 else [args[2]])] if "index_put" in str(func) else []
    else:
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    plain = [value for value in given if not isinstance(value, CudaTensor) and value.dim() > 0]
    if plain and len(plain) < len(given):
        shapes = ", ".join(str(tuple(value.shape)) for value in plain)
        raise WrongDeviceError(f"{func}: expected all tensors on one device, but of {shapes} are on the CPU")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, CudaTensor) else value


def _on_cuda(value: Any) -> Any:
    return CudaTensor(value) if type(value) is Tensor else value


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        return CudaTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return _held(gradients[0])


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, tensor: CudaTensor) -> Tensor:
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        # A number of either device may have been added to one of the other, and so the gradient is on either.
        return CudaTensor(_held(gradients[0]))


class _Mode(TorchFunctionMode):
    """Sees every call before C++ does, which would look for a driver as soon as it reads `cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.transfers = _transfers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._moved(func, args, kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], CudaTensor):
            raise WrongDeviceError("a tensor on cuda:0 cannot be a numpy array: move it to host memory first")
        if func is Tensor.tolist and isinstance(args[0], CudaTensor):
            self.transfers["tolist"] += 1
            return args[0].held.tolist()
        if func is Tensor.pin_memory:
            return args[0]
        if func in _FACTORIES:
            return self._made(func, args, kwargs)
        return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a factory makes, where its `device` or, without one, the tensor it is like says."""
        device = kwargs.pop("device", None)
        like = args[0] if args and isinstance(args[0], Tensor) else None
        cuda = isinstance(like, CudaTensor) if device is None else torch.device(device).type == "cuda"
        generator = kwargs.get("generator")
        if cuda and generator is not None:
            raise WrongDeviceError(f"{func}: a generator of the CPU cannot make random numbers on cuda:0")
        made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        return CudaTensor(made.detach()).requires_grad_(made.requires_grad) if cuda else made

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, rest = args[0], list(args[1:])
        kwargs.pop("non_blocking", None)
        device: Any = CUDA if func is Tensor.cuda else torch.device("cpu") if func is Tensor.cpu else None
        if func is Tensor.to:
            device = kwargs.pop("device", None)
            if rest and isinstance(rest[0], Tensor):
                like = rest.pop(0)
                device = like.device
                kwargs.setdefault("dtype", like.dtype)
            elif rest and isinstance(rest[0], str | torch.device | int):
                device = rest.pop(0)
            # Positionally: dtype, non_blocking, copy.
            for name, value in zip(("dtype", "non_blocking", "copy"), rest, strict=False):
                kwargs[name] = value
            kwargs.pop("non_blocking", None)
            kwargs = {name: value for name, value in kwargs.items() if value is not None}
        else:
            kwargs = {}
        here = isinstance(tensor, CudaTensor)
        there = here if device is None else torch.device(device).type == "cuda"
        if there and not here:
            self.transfers["to cuda"] += 1
            tensor = _ToCuda.apply(tensor)
        elif here and not there:
            self.transfers["to host"] += 1
            tensor = _ToHost.apply(tensor)
        assert isinstance(tensor, Tensor)
        return Tensor.to(tensor, **kwargs) if kwargs else tensor


@contextlib.contextmanager
def simulated_cuda() -> Iterator[Counter[str]]:
    """Within, there is a CUDA device; yields how many tensors were moved, and numbers read from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "simulated")
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (100 << 30, 140 << 30))
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
            patch.setattr(torch.cuda, name, lambda *_: None)
        for name in ("memory_allocated", "max_memory_allocated"):
            patch.setattr(torch.cuda, name, lambda *_: 0)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        # Mixed precision of the CPU casts less than that of a GPU, but it does cast.
        autocast = torch.autocast

        def on_the_cpu(device_type: str, *rest: Any, **given: Any) -> torch.autocast:
            return autocast("cpu" if device_type == "cuda" else device_type, *rest, **given)

        patch.setattr(torch, "autocast", on_the_cpu)
        # Optimizers ask it for a stream.
        patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        mode = _Mode()
        _transfers.clear()
        try:
            with mode:
                yield mode.transfers
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
