"""What a classifier's checkpoint holds: the weights that learned, and of which parts they are."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ovml.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a Lightning checkpoint without executing anything in it.

    Raises:
        UserError: The file is missing, is no checkpoint, or needs pickled code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; check the path") from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a checkpoint that ovml can read safely ({reason}); give one that ovml fit wrote"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: holds no state_dict; give a checkpoint that ovml fit wrote")
    return checkpoint


def signature(part: nn.Module) -> str:
    """A part's class and plain settings.

    >>> from ovml.heads import LocalHead
    >>> signature(LocalHead(top_k=2))
    'ovml.heads.local.LocalHead(top_k=2)'
    """
    public = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
    settings = ", ".join(f"{k}={v!r}" for k, v in sorted(public.items()) if isinstance(v, (bool, int, float, str)))
    return f"{type(part).__module__}.{type(part).__qualname__}({settings})"


def check_learned(checkpoint: Mapping[str, Any], parts: Mapping[str, str], names: Collection[str]) -> None:
    """Check that a checkpoint belongs to a model.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        parts: The model's parts by name, each as its `signature`.
        names: The weights that the model wants.

    Raises:
        UserError: It was made by other parts, or lacks or adds weights.
    """
    saved = checkpoint.get("ovml", {}).get("parts")
    for part in parts if saved else ():
        if saved.get(part) != parts[part]:
            raise UserError(
                f"checkpoint: made with {part} {saved.get(part)}, this model has {parts[part]}; "
                "build it with the same part"
            )
    if "state_dict" not in checkpoint:  # a strategy that cuts the model into shards has loaded the weights itself
        return
    missing = sorted(set(names) - set(checkpoint["state_dict"]))
    unexpected = sorted(set(checkpoint["state_dict"]) - set(names))
    if missing or unexpected:
        what = (
            f"lacks {missing[0]!r} ({len(missing)} in all)"
            if missing
            else f"has {unexpected[0]!r}, which this model has not ({len(unexpected)} in all)"
        )
        raise UserError(f"checkpoint: {what}; it was made by a model of other parts or another CLIP")


def save_plain_hyperparameters(module: LightningModule, ignore: Sequence[str], instead: Mapping[str, Any]) -> None:
    """Keep of a constructor's arguments what a checkpoint can hold without pickling code.

    Modules that the command line made are kept as the class paths that it was given. To be called in the constructor.

    Args:
        module: Whose `hparams` are written.
        ignore: Arguments to leave out.
        instead: What to keep in their place.
    """
    frame: Any = inspect.currentframe()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute .* is an instance of `nn.Module`")
        module.save_hyperparameters(ignore=list(ignore), frame=frame.f_back)
    for name, value in list(module.hparams.items()):
        if not is_plain(value):
            del module.hparams[name]
    module.hparams.update(instead)
    module._hparams_initial = copy.deepcopy(module.hparams)  # type: ignore[assignment]


def is_plain(value: Any) -> bool:
    """Whether a hyperparameter can be kept without pickling code.

    >>> is_plain({"ks": [3, 5]}), is_plain(nn.Identity())
    (True, False)
    """
    if isinstance(value, Mapping):
        return all(is_plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))
