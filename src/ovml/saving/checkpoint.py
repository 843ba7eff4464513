"""Checkpoints of `ovml fit`: the weights that learned, and the recipe of their model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ovml.model import OpenVocabularyModel
from ovml.saving.recipe import (
    PARTS,
    SAVE_AGAIN,
    apply_recipe,
    build_parts,
    checked_recipe,
    described_or_named,
    part_weights,
)
from ovml.utils.errors import UserError, all_lines, error_at, first_line
from ovml.utils.schema import check_type
from ovml.vocabulary import LabelVocabulary


def read_checkpoint(path: Path | str, mmap: bool = False) -> dict[str, Any]:
    """Load a Lightning checkpoint without executing anything in it.

    Args:
        path: The file.
        mmap: Read weights when they are used, for checkpoints of which only the recipe is of interest.

    Returns:
        The weights under `state_dict`, the recipe under `ovml`, and what else Lightning keeps.

    Raises:
        UserError: The file is missing, is not a checkpoint of ovml, or needs pickled code.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a checkpoint in it, or use from_pretrained")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such checkpoint; check the path")
    what, advice = "not a checkpoint that ovml can read safely", "give one that ovml fit wrote"
    checkpoint = load_safely(path, what, advice, mmap)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: holds no state_dict; give a checkpoint that ovml fit wrote")
    with error_at(path, SAVE_AGAIN):
        check_type(checkpoint["state_dict"], dict[str, torch.Tensor], "state_dict")
    checked_recipe(checkpoint.get("ovml"), path)
    return checkpoint


def load_safely(path: Path | str, what: str, advice: str, mmap: bool = False) -> Any:
    """The content of a file that `torch.save` wrote, if no code has to run for it.

    Args:
        path: The file.
        what: What an error says of another file.
        advice: What an error says to do then.
        mmap: See `read_checkpoint`.

    Raises:
        UserError: The file is missing, or another one.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except Exception as error:  # another file may raise anything
        reason = first_line(error).split(". ")[0]  # what torch says then is how to run the code in it
        raise UserError(f"{path}: {what} ({reason}); {advice}") from error


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of the last stage that a run has come to, whatever the files' times, which copying changes.

    Raises:
        UserError: The run has none yet, or none can be read.
    """
    found = {path.parent.name: path for path in sorted(run.glob("*/last.ckpt"))}
    if not found:
        raise UserError(f"{run}: this run has no checkpoint yet; let ovml fit finish an epoch first")
    if len(found) == 1:
        return next(iter(found.values()))
    stages = _stage_names(list(found.values()))
    return found[max(found, key=lambda name: stages.index(name) if name in stages else -1)]


def _stage_names(checkpoints: Sequence[Path]) -> list[str]:
    """The names of a run's stages, in order, by the first of its checkpoints that can be read."""
    for path in checkpoints:
        try:
            return list(read_checkpoint(path, mmap=True)["ovml"].get("stage_names") or [])
        except UserError:
            if path == checkpoints[-1]:
                raise
    return []


def model_arguments(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The constructor arguments of a checkpoint's model: those of its recipe, replaced by given ones.

    Raises:
        UserError: A part cannot be built, or the CLIP was made in Python and is not given.
    """
    labels = recipe.get("labels")
    with error_at(where):
        vocabulary = None if labels is None else LabelVocabulary.from_any(labels)
    arguments = {"clip": recipe.get("clip"), "labels": vocabulary, **build_parts(recipe, given, where), **given}
    if arguments["clip"] is None:
        raise UserError(f"{where}: made of a CLIPModel in Python; pass the same one as clip=")
    return arguments


def check_learned(
    checkpoint: Mapping[str, Any], model: OpenVocabularyModel, names: Collection[str], where: str | Path
) -> None:
    """Check that a checkpoint belongs to a model.

    Args:
        checkpoint: Its recipe under `ovml`, and its weights under `state_dict`, if they are not loaded yet.
        model: The model.
        names: The weights that must be in the checkpoint.
        where: What to call the checkpoint in an error.

    Raises:
        UserError: It was made by other parts, or has missing or unexpected weights.
    """
    recipe = checked_recipe(checkpoint.get("ovml"), where)
    for part in PARTS:
        saved, own = _signature(recipe[part]), _signature(described_or_named(getattr(model, part)))
        if saved != own:
            raise UserError(
                f"{where}: made with {part} {saved}, this model has {own}; build it with the same part, "
                "or load the run's folder, which has its own configuration"
            )
    if "state_dict" in checkpoint:  # a strategy that cuts the model into shards loads the weights itself
        check_names(checkpoint["state_dict"], names, where, "it was made by a model of other parts or another CLIP")


def check_names(found: Collection[str], expected: Collection[str], where: str | Path, advice: str) -> None:
    """Raise a `UserError` that names the first weight that is missing or unexpected, if there is one."""
    if missing := set(expected) - set(found):
        raise UserError(f"{where}: lacks {min(missing)!r} ({len(missing)} in all); {advice}")
    if unexpected := set(found) - set(expected):
        raise UserError(f"{where}: has {min(unexpected)!r}, which no part takes ({len(unexpected)} in all); {advice}")


def _signature(description: Mapping[str, Any]) -> str:
    """A description as text, such as `ovml.heads.LocalHead(top_k=2)`."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in description.get("init_args", {}).items())
    return f"{description.get('class_path')}({arguments})"


def load_checkpoint(path: str | Path, **given: Any) -> OpenVocabularyModel:
    """Make the model of a checkpoint, in evaluation mode.

    Args:
        path: A checkpoint that `ovml fit` or a `Trainer` wrote.
        given: Constructor arguments of `OpenVocabularyModel` that replace those of the recipe.

    Raises:
        UserError: The file is missing, unreadable, or was made by a model of other parts.
    """
    checkpoint = read_checkpoint(path)
    recipe, prefix = checkpoint["ovml"], "model."
    arguments = model_arguments(recipe, given, path)
    with error_at(path):
        model = OpenVocabularyModel(**arguments)
    processor = model.image_processor
    state = {name.removeprefix(prefix): v for name, v in checkpoint["state_dict"].items() if name.startswith(prefix)}
    expected = part_weights(model).keys() | (state.keys() & model.state_dict().keys())
    check_learned({"ovml": recipe, "state_dict": state}, model, expected, path)
    load_weights(model, state, path)
    apply_recipe(model, recipe, path)
    if "preprocessing" in given:
        model.image_processor = processor
    return model.eval()


def load_weights(module: torch.nn.Module, state: Mapping[str, Any], where: str | Path) -> None:
    """Load the weights of a checkpoint into a module.

    Raises:
        UserError: A shape does not fit.
    """
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = all_lines(error)[:300]
        raise UserError(f"{where}: weights that do not fit the model ({reason}); {SAVE_AGAIN}") from error
