"""Checkpoints of `ovml fit`: the weights that learned, and the recipe of the model that they belong to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ovml.model import OpenVocabularyModel
from ovml.saving.recipe import PARTS, apply_recipe, build_parts, described_or_named, recipe_labels, signature
from ovml.utils.errors import UserError

MODEL = "model."
"""What the names of a model's weights begin with in a checkpoint."""


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a Lightning checkpoint without executing anything in it.

    Raises:
        UserError: The file is missing, is not a checkpoint, or needs pickled code.
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


def checkpoint_recipe(checkpoint: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The recipe in a checkpoint.

    Raises:
        UserError: It has none.
    """
    recipe = checkpoint.get("ovml")
    if not isinstance(recipe, dict):
        raise UserError(f"{where}: holds no ovml recipe; give a checkpoint that ovml fit wrote")
    return recipe


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder that was written last.

    Raises:
        UserError: The run has none yet.
    """
    found = sorted(run.glob("*/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"{run}: this run has no checkpoint yet; let ovml fit finish an epoch first")
    return found[-1]


def model_arguments(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The constructor arguments of a checkpoint's model, those that are given in the place of its own.

    Raises:
        UserError: A part cannot be built, or the CLIP was made in Python and is not given.
    """
    arguments = {**build_parts(recipe, given, str(where)), "labels": recipe_labels(recipe), "clip": recipe.get("clip")}
    arguments |= given
    if arguments["clip"] is None:
        raise UserError(f"{where}: made of a CLIPModel in Python; pass the same one as clip=")
    return arguments


def check_learned(
    checkpoint: Mapping[str, Any], model: OpenVocabularyModel, names: Collection[str], where: str | Path
) -> None:
    """Check that a checkpoint belongs to a model.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        model: The model.
        names: The weights that must be in the checkpoint.
        where: What to call the checkpoint in an error.

    Raises:
        UserError: It was made by other parts, or lacks or adds weights.
    """
    saved = checkpoint_recipe(checkpoint, where)
    for part in PARTS:
        own = described_or_named(getattr(model, part))
        if signature(saved[part]) != signature(own):
            raise UserError(
                f"{where}: made with {part} {signature(saved[part])}, this model has {signature(own)}; build it with "
                "the same part"
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
        raise UserError(f"{where}: {what}; it was made by a model of other parts or another CLIP")


def load_checkpoint(path: str | Path, **given: Any) -> OpenVocabularyModel:
    """Make the model of a checkpoint, in evaluation mode: the recipe and the learned weights from the file.

    Args:
        path: A checkpoint that `ovml fit` or a `Trainer` wrote.
        given: Constructor arguments in the place of the recipe's.

    Raises:
        UserError: The file is missing, unreadable, or was made by a model of other parts.
    """
    checkpoint = read_checkpoint(path)
    recipe = checkpoint_recipe(checkpoint, path)
    model = OpenVocabularyModel(**model_arguments(recipe, given, path))
    state = {name.removeprefix(MODEL): v for name, v in checkpoint["state_dict"].items() if name.startswith(MODEL)}
    check_learned({**checkpoint, "state_dict": state}, model, state.keys() & model.state_dict().keys(), path)
    load_weights(model, state, path)
    apply_recipe(model, recipe, str(path))
    return model.eval()


def load_weights(module: torch.nn.Module, state: Mapping[str, Any], where: str | Path) -> None:
    """Load the weights of a checkpoint into a module.

    Raises:
        UserError: A shape does not fit.
    """
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
