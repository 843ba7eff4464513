"""What a classifier's checkpoint holds: the weights that learned, and of which parts they are."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ovml.encoders.checkpoints import ImageSpec
from ovml.metrics.calibration import Calibration
from ovml.training.scoring import ScoringModule
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from typing_extensions import Self

    from ovml.classifier import OVMultiLabelClassifier


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


class LearnedWeights(ScoringModule):
    """The checkpoints' part of a LightningModule: they hold what learned, and are read without running anything."""

    _learned_names: frozenset[str]

    def _find_learned_names(self) -> frozenset[str]:
        """Names of all that a checkpoint must hold: what any stage changes."""
        model = cast("OVMultiLabelClassifier", self)
        learned = {id(p) for stage in self.stages for group in stage.parameter_groups(model) for p in group["params"]}
        parts = ("head.", "loss.", "distillation.")
        names = {name for name, p in self.named_parameters() if id(p) in learned}
        own = {name for name in self.state_dict() if name.startswith(parts)}
        own |= {f"prompt.{name}" for name in self.prompt.state_dict() if not name.startswith("text_encoder.")}
        return frozenset(names | own)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what learned; the frozen CLIP is loaded by its name."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in self._learned_names}
        checkpoint["ovml"] = {
            "stage": self.stage.name if self.stages else None,
            "parts": self._signature(),
            "images": asdict(self.image_spec),
        }
        if self.calibration is not None:
            checkpoint["ovml"]["calibration"] = self.calibration.to_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a checkpoint belongs to a model made of these parts.

        Raises:
            UserError: It was made by other parts, or lacks or adds weights.
        """
        check_learned(checkpoint, self._signature(), self._learned_names)
        calibration = checkpoint.get("ovml", {}).get("calibration")
        if images := checkpoint.get("ovml", {}).get("images"):
            self.image_spec = ImageSpec(**images)
        self.calibration = None if calibration is None else Calibration.from_dict(calibration)

    def load_learned(self, path: str | Path) -> None:
        """Load learned weights from a checkpoint that `ovml fit` wrote.

        Raises:
            UserError: The file is missing, unreadable, or of a model of other parts.
        """
        checkpoint = read_checkpoint(path)
        try:
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"], strict=False)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parts: Any) -> Self:
        """Load a model from a checkpoint: what learned from the file, the frozen CLIP by its name.

        Args:
            path: A checkpoint that `ovml fit` or a `Trainer` wrote.
            parts: Constructor arguments that a checkpoint cannot hold: parts that were made in Python.

        Raises:
            UserError: The file is missing or unreadable, or was made by a model of other parts.
        """
        read_checkpoint(path)
        try:
            # The file holds what learned: that the frozen weights are not in it is as it should be.
            warnings.filterwarnings("ignore", "Found keys that are in the model state dict but not in the checkpoint")
            return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **parts)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error

    def _signature(self) -> dict[str, str]:
        return {"head": signature(self.head), "prompt": signature(self.prompt)}
