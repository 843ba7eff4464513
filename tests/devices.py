"""A device that is not the CPU, pretended, and collective functions that refuse CPU tensors as NCCL does."""

from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cpu", 0)
"""Stands for a GPU; the CPU is `torch.device("cpu")`, without an index."""
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_to_all_single")
BETWEEN_DEVICES = (
    "to",
    "copy_",
    "__getitem__",
    "__setitem__",
    "__set__",
    "type_as",
    "_has_compatible_shallow_copy_type",
)
"""Functions that take tensors of both; the CPU's may index the device's."""


def is_there(tensor):
    """Whether a tensor is on the pretended device. Parameters always are."""
    return isinstance(tensor, nn.Parameter) or getattr(tensor, "_is_there", False)


class PretendedDevice(TorchFunctionMode):
    """Follows tensors that are moved to `DEVICE` or made there, and what is computed from them.

    Raises:
        RuntimeError: Tensors of both are computed together.
        TypeError: NumPy is to read a tensor on the device.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == Tensor.backward:
            with self:  # which follows what backward functions written in Python make
                return _engine_run_backward(args, (torch.ones_like(args[0]),), False, False, (), True, True)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(map(is_there, tensors))
        if func == Tensor.device.__get__:
            return DEVICE if there else func(*args, **kwargs)
        if there and name == "numpy":
            raise TypeError("cannot convert a tensor of the device to numpy; use Tensor.cpu() first")
        large = [tensor for tensor in tensors if tensor.dim() > 0]
        if name not in BETWEEN_DEVICES and len({is_there(tensor) for tensor in large}) > 1:
            raise RuntimeError(f"{name}: tensors on two devices")
        device = kwargs.get("device", "cpu" if name == "cpu" else None)
        if name == "to":
            device = next((arg for arg in args[1:] if isinstance(arg, str | torch.device)), device)
        moved = there if device is None else torch.device(device) == DEVICE

        def marked(value):
            if isinstance(value, Tensor) and is_there(value) != moved and not isinstance(value, nn.Parameter):
                value = value.clone() if any(value is tensor for tensor in tensors) and name in ("to", "cpu") else value
                value._is_there = moved
            return value

        return tree_map(marked, func(*args, **kwargs))


@contextmanager
def pretended_nccl():
    """Collective functions that take tensors on the pretended device only; yields the names of those called."""
    called = []

    def checked(name, function):
        def call(*args, **kwargs):
            called.append(name)
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and not is_there(tensor):
                    raise RuntimeError(f"{name}: No backend type associated with device type cpu")
            with torch._C.DisableTorchFunction():
                return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch, PretendedDevice():
        for name in COLLECTIVES:
            patch.setattr(distributed, name, checked(name, getattr(distributed, name)))
        yield called


class OnDevice(DDPStrategy):
    """DDP with gloo, on the pretended device."""

    @property
    def root_device(self):
        return DEVICE
