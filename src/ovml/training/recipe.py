"""How a classifier is trained and evaluated, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ovml.distillation import Distillation
from ovml.losses import Loss
from ovml.metrics.calibrators import Calibrator
from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.metrics.protocols import EvaluationProtocol, default_protocols
from ovml.saving.recipe import described_or_named
from ovml.training.objective import Objective
from ovml.training.stages import Stage
from ovml.utils.parts import Part, build

PARTS: dict[str, type[Part]] = {"loss": Loss, "distillation": Distillation, "calibrator": Calibrator}
LISTS: dict[str, type[Part]] = {"stages": Stage, "protocols": EvaluationProtocol}
PLAIN = ("distillation_weight", "ks", "images")


def training_recipe(
    objective: Objective, stages: Sequence[Stage], evaluation: OpenVocabularyEvaluation
) -> dict[str, Any]:
    """Constructor arguments of `OVMultiLabelClassifier` that are not its model's, parts as descriptions."""
    return {
        "loss": described_or_named(objective.loss),
        "distillation": described_or_named(objective.distillation),
        "distillation_weight": objective.distillation_weight,
        "stages": [described_or_named(stage) for stage in stages],
        "ks": list(evaluation.ks),
        "images": evaluation.images,
        "protocols": [described_or_named(p) for p in evaluation.protocols[len(default_protocols()) :]],
        "calibrator": described_or_named(evaluation.calibrator),
    }


def training_arguments(recipe: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Constructor arguments from `training_recipe`, replaced by those that are given.

    Args:
        recipe: What `training_recipe` returned, or some of it.
        given: Arguments that take precedence; their descriptions are not built.
        where: What to call the recipe in an error.

    Raises:
        UserError: A part cannot be built.
    """
    arguments = dict(given)
    for name in (name for name in recipe if name not in given):
        if name in PARTS:
            arguments[name] = build(recipe[name], PARTS[name], f"{where}, {name}")
        elif name in LISTS:
            arguments[name] = [build(part, LISTS[name], f"{where}, {name}") for part in recipe[name]]
        elif name in PLAIN:
            arguments[name] = recipe[name]
    return arguments
