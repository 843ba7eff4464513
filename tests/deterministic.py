"""What torch refuses on a GPU under `torch.use_deterministic_algorithms(True)`, refused here on the CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

REFUSED = {
    *("histc", "median", "nanmedian", "kthvalue", "put_", "put", "_ctc_loss_backward", "grid_sampler_2d_backward"),
    *(
        "grid_sampler_3d_backward",
        "nll_loss2d_forward",
        "adaptive_max_pool2d_backward",
        "_adaptive_avg_pool2d_backward",
    ),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "_embedding_bag_dense_backward"),
    *(f"upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"_upsample_{kind}2d_aa_backward" for kind in ("bilinear", "bicubic")),
}
"""Names of aten's operations; the documentation of `torch.use_deterministic_algorithms` lists them."""


def is_refused(name, args, kwargs):
    """Whether a GPU refuses an operation."""
    if name in ("cumsum", "cumsum_"):
        return args[0].is_floating_point() or args[0].is_complex()
    if name == "bincount":
        return (len(args) > 1 and args[1] is not None) or kwargs.get("weights") is not None
    return name in REFUSED


class AsOnAGPU(TorchDispatchMode):
    """Counts operations by name; raises a RuntimeError for those that have no deterministic form on a GPU."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        self.counts[name] = self.counts.get(name, 0) + 1
        if torch.are_deterministic_algorithms_enabled() and is_refused(name, args, kwargs):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return func(*args, **kwargs)
