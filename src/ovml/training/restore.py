"""Loading a classifier from a checkpoint or a saved model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from ovml.model import OpenVocabularyModel
from ovml.saving.checkpoint import check_names, model_arguments, read_checkpoint
from ovml.saving.folder import CONFIG, SAVE_AGAIN, WEIGHTS, read_model
from ovml.saving.load import find_model, saved_recipe
from ovml.training.fit import StagedModule
from ovml.training.objective import Objective
from ovml.training.recipe import training_arguments

HUB_OPTIONS = {"revision", "token", "cache_dir", "force_download", "local_files_only"}
"""Options of a download, as `huggingface_hub` names them."""

Classifier = TypeVar("Classifier", bound=StagedModule)


def load_classifier(make: Callable[..., Classifier], name: str, options: dict[str, Any]) -> Classifier:
    """Load a classifier from whatever a name stands for.

    Args:
        make: `OVMultiLabelClassifier` or a subclass.
        name: See `OVMultiLabelClassifier.from_pretrained`.
        options: Constructor arguments in the place of the saved ones, and options of the Hub.

    Raises:
        UserError: There is no such model, or it is not complete, or one of its parts cannot be made here.
    """
    hub = {option: options.pop(option) for option in HUB_OPTIONS & set(options)}
    place = find_model(name, hub)
    if place.is_file():
        return restore_checkpoint(make, place, options)
    if (recipe := saved_recipe(place)) is None:
        return make(str(place) if place.is_dir() else name, **{"stages": [], **options})
    own, rest = split_arguments(options)
    model, weights = read_model(place, recipe, own)
    classifier = make(model, **training_arguments(recipe.get("training", {}), rest, str(place / CONFIG)))
    _load_objective(classifier.objective, weights, rest, place / WEIGHTS)
    return classifier


def restore_checkpoint(make: Callable[..., Classifier], path: str | Path, arguments: Mapping[str, Any]) -> Classifier:
    """Load a classifier from a checkpoint: what learned is in the file, the frozen CLIP is loaded by its name.

    Args:
        make: `OVMultiLabelClassifier` or a subclass.
        path: The checkpoint.
        arguments: Constructor arguments in the place of the saved ones.

    Raises:
        UserError: The file is missing or unreadable, or was made by a model of other parts.
    """
    checkpoint = read_checkpoint(path)
    recipe = checkpoint["ovml"]
    own, rest = split_arguments(arguments)
    model = OpenVocabularyModel(**model_arguments(recipe, own, path))
    processor = model.image_processor
    classifier = make(model, **training_arguments(recipe.get("training", {}), rest, str(path)))
    classifier.load_learned(path, checkpoint)
    if "preprocessing" in own:  # replaces the checkpoint's
        model.image_processor = processor
    return classifier


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of the model, and the others."""
    rest = dict(arguments)
    own = {name: rest.pop(name) for name in signature(OpenVocabularyModel).parameters if name in rest}
    return own, rest


def _load_objective(objective: Objective, weights: Mapping[str, Any], given: Mapping[str, Any], file: Path) -> None:
    """Load the weights of the loss and the distillation, but for those that were given."""
    own = {name for name in objective.state_dict() if name.partition(".")[0] not in given}
    saved = {name: value for name, value in weights.items() if name.partition(".")[0] not in given}
    check_names(saved, own, file, SAVE_AGAIN)
    objective.load_state_dict(saved, strict=False)
