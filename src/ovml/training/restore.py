"""Loading a classifier from a checkpoint or a saved model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch

from ovml.heads import CosineHead
from ovml.model import OpenVocabularyModel
from ovml.saving.checkpoint import check_names, model_arguments, read_checkpoint
from ovml.saving.folder import CONFIG, WEIGHTS, read_model
from ovml.saving.load import find_model, saved_recipe
from ovml.saving.recipe import SAVE_AGAIN
from ovml.training.fit import StagedModule
from ovml.training.objective import Objective
from ovml.training.recipe import training_arguments
from ovml.utils.errors import UserError, error_at

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
    if os.path.isfile(place):
        return restore_checkpoint(make, place, options)
    if (recipe := saved_recipe(place)) is None:
        zero_shot = {} if options.get("stages") else {"head": CosineHead()}  # as load_model; stages train MKT's head
        return make(str(place) if os.path.isdir(place) else name, **{"stages": [], **zero_shot, **options})
    own, rest = split_arguments(options)
    model, weights = read_model(place, recipe, own)
    training = training_arguments(recipe.get("training", {}), rest, str(place / CONFIG))
    with error_at(place / CONFIG):
        classifier = make(model, **training)
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
    arguments = model_arguments(recipe, own, path)
    rest = training_arguments(recipe.get("training", {}), rest, str(path))
    with error_at(path):
        model = OpenVocabularyModel(**arguments)
        classifier = make(model, **rest)
    processor = model.image_processor
    classifier.load_learned(path, checkpoint)
    if "preprocessing" in own:  # replaces the checkpoint's
        model.image_processor = processor
    return classifier


def check_lightning_options(map_location: Any, hparams_file: Any, strict: Any, weights_only: Any) -> None:
    """Check the options of Lightning's `load_from_checkpoint`.

    Raises:
        UserError: One asks for what ovml does not do.
    """
    on_device = map_location is None or isinstance(map_location, (str, int, torch.device))
    for option, fits, advice in (
        ("map_location", on_device, "give a device, such as 'cpu'"),
        ("hparams_file", hparams_file is None, "pass constructor arguments by their names"),
        ("strict", strict in (None, True), "frozen weights need not be in the checkpoint, the others must"),
        ("weights_only", weights_only in (None, True), "nothing in a checkpoint is executed"),
    ):
        if not fits:
            raise UserError(f"load_from_checkpoint: leave {option} out; {advice}")


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
