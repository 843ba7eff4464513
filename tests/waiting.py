"""Counts the calls that would wait for a GPU, and operations, on the CPU."""

import traceback
from collections import Counter

import torch
from devices import DEVICE, PretendedDevice, is_there
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "unique", "bincount", "equal"),
    *("allclose", "is_nonzero", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
}
"""Functions whose result, or its shape, is known to the host when they return."""


class Waiting(PretendedDevice):
    """A pretended device that counts what would wait for it; `found` has the lines of ovml that do."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if waits(func, args, kwargs or {}):
            stack = traceback.extract_stack()[:-1]
            frames = [f for f in stack if "/ovml/" in f.filename or "/lightning/" in f.filename] or stack
            if frames[-1].name == "batch_to" and func.__name__ == "to":  # waits on a CPU alone, says Lightning
                return super().__torch_function__(func, types, args, kwargs)
            self.found[f"{frames[-1].filename.rpartition('/')[2]}: {frames[-1].line}"] += 1
        return super().__torch_function__(func, types, args, kwargs)


def waits(func, args, kwargs):
    name, own = getattr(func, "__name__", ""), args[0] if args else None
    if name == "tensor":
        return torch.device(kwargs.get("device") or "cpu") == DEVICE
    if not isinstance(own, Tensor):
        return False
    if name in ("__getitem__", "__setitem__"):
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
    if name == "to":
        target = next((arg for arg in args[1:] if isinstance(arg, str | torch.device)), kwargs.get("device"))
        moves = target is not None and (torch.device(target) == DEVICE) != is_there(own)
        return moves and not kwargs.get("non_blocking")
    return name in READING and is_there(own)


class Operations(TorchDispatchMode):
    """Counts operations by name, and conversions of the weights that are given."""

    def __init__(self, weights=()):
        super().__init__()
        self.names = Counter()
        self.converted = 0
        self._weights = {w.data_ptr() for w in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.name()] += 1
        if func.name() == "aten::_to_copy" and args[0].data_ptr() in self._weights:
            self.converted += 1
        return func(*args, **(kwargs or {}))
