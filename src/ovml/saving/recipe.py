"""Recipes: how a model is made, as plain data. Checkpoints and saved models hold one beside the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Required, TypedDict

from ovml.encoders.adapters import TowerAdapter
from ovml.encoders.image_processor import ImageProcessor
from ovml.encoders.sources import PatchSource
from ovml.heads import Head
from ovml.metrics.calibration import Calibration
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError, error_at
from ovml.utils.parts import Description, Part, build, class_path, describe
from ovml.utils.schema import check_type
from ovml.utils.version import __version__
from ovml.vocabulary import VocabularyLists

FORMAT = 1
"""Grows when older versions of ovml cannot read what is written."""


SAVE_AGAIN = "the file is not as ovml wrote it: save, train or download the model again"


class TrainingRecipe(TypedDict, total=False):
    """How a model was trained and evaluated; see `OVMultiLabelClassifier`."""

    loss: Description
    distillation: Description
    calibrator: Description
    stages: list[Description]
    protocols: list[Description]
    distillation_weight: float
    ks: list[int]
    images: Literal["all", "labelled"]


class Recipe(TypedDict, total=False):
    """What `config.json` holds under `ovml`, and a checkpoint in more detail."""

    format: Required[int]
    version: str
    head: Required[Description]
    prompt: Required[Description]
    adapters: list[Description] | None
    patch_source: Description | None
    clip: str | None
    base_model: str | None
    labels: VocabularyLists | None
    image_processor: ImageProcessor
    calibration: dict[str, Any] | None
    training: TrainingRecipe
    stage_names: list[str]


PARTS: dict[str, type[Part]] = {"head": Head, "prompt": PromptLearner}
"""Parts of a model that have weights of their own beside the CLIP's."""


def parts_recipe(model: OpenVocabularyModel, describe_part: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
    """Describe the head, the prompt, the adapters and the source of the patches."""
    parts = {part: describe_part(getattr(model, part)) for part in PARTS}
    adapters = [describe_part(adapter) for adapter in model.adapters]
    source = model.image_encoder.patch_source
    described = None if source is None else describe_part(source)
    return {"format": FORMAT, "version": __version__, **parts, "adapters": adapters, "patch_source": described}


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
        version = str(recipe.get("version"))[:20]
        raise UserError(f"{where}: in another format (written by ovml {version}); upgrade ovml")
    with error_at(where, SAVE_AGAIN):
        check_type(recipe, Recipe, "ovml")
    return recipe


def build_parts(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Build the constructor arguments `head`, `prompt`, `adapters` and `patch_source` that are not given.

    Raises:
        UserError: A part cannot be built from its description.
    """
    arguments: dict[str, Any] = {
        part: build(recipe[part], base, f"{where}, {part}") for part, base in PARTS.items() if part not in given
    }
    if "adapters" not in given:
        described = recipe.get("adapters") or []
        arguments["adapters"] = [build(adapter, TowerAdapter, f"{where}, adapters") for adapter in described]
    if "patch_source" not in given and (source := recipe.get("patch_source")):
        arguments["patch_source"] = build(source, PatchSource, f"{where}, patch_source")
    return arguments


def apply_recipe(model: OpenVocabularyModel, recipe: Mapping[str, Any], where: str | Path) -> None:
    """Set a model's image processor and calibration to those of a checkpoint's recipe.

    Raises:
        UserError: One of them is damaged.
    """
    with error_at(where, SAVE_AGAIN):
        check_type(recipe.get("image_processor"), ImageProcessor, "ovml, image_processor")  # folders have none
        processor = ImageProcessor(**recipe["image_processor"])
    if processor.size != model.image_encoder.image_size:
        raise UserError(
            f"{where}, image_processor: size is {processor.size}, the image tower of {model.clip_name} takes "
            f"{model.image_encoder.image_size}; load the checkpoint with the CLIP that it was trained with"
        )
    model.image_processor = processor
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
    known = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.exists(name)
    return name if known else None
