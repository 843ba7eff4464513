"""Recipes: how a model is made, as plain data. Checkpoints and saved models hold one beside the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ovml.encoders.adapters import TowerAdapter
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import Head
from ovml.metrics.calibration import Calibration
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError
from ovml.utils.parts import Part, build, class_path, describe
from ovml.utils.version import __version__

FORMAT = 1
"""Grows when older versions of ovml cannot read what is written."""
PARTS: dict[str, type[Part]] = {"head": Head, "prompt": PromptLearner}
"""Parts of a model that have weights of their own beside the CLIP's."""


def parts_recipe(model: OpenVocabularyModel, describe_part: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
    """Describe the head, the prompt and the adapters."""
    parts = {part: describe_part(getattr(model, part)) for part in PARTS}
    adapters = [describe_part(adapter) for adapter in model.adapters]
    return {"format": FORMAT, "version": __version__, **parts, "adapters": adapters}


def model_recipe(model: OpenVocabularyModel) -> dict[str, Any]:
    """Describe all of a model but its weights, for a checkpoint.

    A part that cannot be described is named by its class; it has to be given when the checkpoint is loaded.
    """
    return {
        **parts_recipe(model, described_or_named),
        "clip": model.clip_name,
        "labels": None if model.vocabulary is None else model.vocabulary.to_dict(),
        "image_processor": asdict(model.image_processor),
        "calibration": None if model.calibration is None else model.calibration.to_dict(),
    }


def described_or_named(part: Part) -> dict[str, Any]:
    """The description of a part, or its class path and the error where an argument cannot be saved."""
    try:
        return describe(part)
    except UserError as error:
        return {"class_path": class_path(type(part)), "error": str(error)}


def checked_recipe(recipe: Any, where: str | Path) -> dict[str, Any]:
    """Return a recipe after checking that this version of ovml can read it.

    Raises:
        UserError: It is no recipe, or a newer version wrote it.
    """
    if not isinstance(recipe, dict) or not PARTS.keys() <= recipe.keys():
        raise UserError(f"{where}: holds no ovml recipe; give a checkpoint or a model that ovml wrote")
    if recipe.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{where}: in another format (written by ovml {recipe.get('version')}); upgrade ovml")
    return recipe


def build_parts(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Build the constructor arguments `head`, `prompt` and `adapters` that are not given.

    Raises:
        UserError: A part cannot be built from its description.
    """
    arguments: dict[str, Any] = {
        part: build(recipe[part], base, f"{where}, {part}") for part, base in PARTS.items() if part not in given
    }
    if "adapters" not in given:
        described = recipe.get("adapters") or []
        arguments["adapters"] = [build(adapter, TowerAdapter, f"{where}, adapters") for adapter in described]
    return arguments


def apply_recipe(model: OpenVocabularyModel, recipe: Mapping[str, Any], where: str | Path) -> None:
    """Set a model's image processor and calibration to those of a checkpoint's recipe.

    Raises:
        UserError: One of them is damaged.
    """
    try:
        model.image_processor = ImageProcessor(**recipe["image_processor"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: image_processor is damaged ({error}); train or save the model again") from error
    calibration = recipe.get("calibration")
    model.calibration = None if calibration is None else Calibration.from_dict(calibration, str(where))


def part_weights(model: OpenVocabularyModel) -> dict[str, Tensor]:
    """The weights of the head and the prompt, such as `head.weight`, without the prompt's text tower."""
    states = {part: getattr(model, part).state_dict() for part in PARTS}
    weights = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    return {name: value for name, value in weights.items() if not name.startswith("prompt.text_encoder.")}


def base_model(model: OpenVocabularyModel) -> str | None:
    """The Hub name of the CLIP that the model began as, where it is known."""
    name = model.base_model or model.clip_name
    known = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if known else None
