"""How a model is made, as plain data: what checkpoints and saved models hold beside weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ovml.encoders.adapters import TowerAdapter
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import Head
from ovml.metrics.calibration import Calibration
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError
from ovml.utils.parts import Part, build, class_path, describe
from ovml.vocabulary import LabelVocabulary

FORMAT = 1
"""Grows when older versions of ovml could not read what is written."""
PARTS: dict[str, type[Part]] = {"head": Head, "prompt": PromptLearner}


def model_parts(model: OpenVocabularyModel) -> dict[str, Any]:
    """Descriptions of the head, the prompt and the adapters.

    Raises:
        UserError: An argument of one of them cannot be saved.
    """
    adapters = [describe(adapter) for adapter in model.adapters]
    return {**{part: describe(getattr(model, part)) for part in PARTS}, "adapters": adapters}


def build_parts(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The constructor arguments `head`, `prompt` and `adapters` of a recipe, but for those that are given.

    Raises:
        UserError: A description cannot be built.
    """
    arguments: dict[str, Any] = {
        part: build(recipe.get(part), base, f"{where}, {part}") for part, base in PARTS.items() if part not in given
    }
    if "adapters" not in given:
        described = recipe.get("adapters") or []
        arguments["adapters"] = [build(adapter, TowerAdapter, f"{where}, adapters") for adapter in described]
    return arguments


def model_recipe(model: OpenVocabularyModel) -> dict[str, Any]:
    """All that makes a model again but its weights: what a checkpoint of `ovml fit` holds.

    A part that cannot be described is named by its class alone; it has to be given when the checkpoint is loaded.
    """
    recipe: dict[str, Any] = {"format": FORMAT, "clip": model.clip_name}
    for part in PARTS:
        recipe[part] = described_or_named(getattr(model, part))
    recipe["adapters"] = [described_or_named(adapter) for adapter in model.adapters]
    recipe["labels"] = None if model.vocabulary is None else model.vocabulary.to_dict()
    recipe["image_processor"] = asdict(model.image_processor)
    recipe["calibration"] = None if model.calibration is None else model.calibration.to_dict()
    return recipe


def described_or_named(part: Part) -> dict[str, Any]:
    """The description of a part, or its class path where an argument cannot be saved."""
    try:
        return describe(part)
    except UserError as error:
        return {"class_path": class_path(type(part)), "error": str(error)}


def signature(description: Any) -> str:
    """A description as text.

    >>> signature({"class_path": "ovml.heads.LocalHead", "init_args": {"top_k": 2}})
    'ovml.heads.LocalHead(top_k=2)'
    """
    arguments = ", ".join(f"{name}={value!r}" for name, value in description.get("init_args", {}).items())
    return f"{description.get('class_path')}({arguments})"


def apply_recipe(model: OpenVocabularyModel, recipe: Mapping[str, Any], where: str) -> None:
    """Take over what validation and training left in a recipe: the image processor and the calibration.

    Raises:
        UserError: One of them is damaged.
    """
    try:
        processor = recipe["image_processor"]
        model.image_processor = ImageProcessor(
            **{**processor, "mean": tuple(processor["mean"]), "std": tuple(processor["std"])}
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: image_processor is damaged ({error}); train or save the model again") from error
    calibration = recipe.get("calibration")
    model.calibration = None if calibration is None else Calibration.from_dict(calibration, where)


def recipe_labels(recipe: Mapping[str, Any]) -> LabelVocabulary | None:
    """The vocabulary of a recipe."""
    labels = recipe.get("labels")
    return None if labels is None else LabelVocabulary.from_any(labels)
