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

ONE: dict[str, type[Part]] = {"loss": Loss, "distillation": Distillation, "calibrator": Calibrator}
SEVERAL: dict[str, type[Part]] = {"stages": Stage, "protocols": EvaluationProtocol}
PLAIN = ("distillation_weight", "ks", "images")


def training_recipe(
    objective: Objective, stages: Sequence[Stage], evaluation: OpenVocabularyEvaluation
) -> dict[str, Any]:
    """Constructor arguments of `OVMultiLabelClassifier` beside its model's, parts as descriptions."""
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
    """The arguments that a recipe describes, those that are given in their place.

    Raises:
        UserError: A part cannot be built.
    """
    arguments: dict[str, Any] = {name: recipe[name] for name in PLAIN if name in recipe}
    for name, base in ONE.items():
        if name in recipe and name not in given:
            arguments[name] = build(recipe[name], base, f"{where}, {name}")
    for name, base in SEVERAL.items():
        if name in recipe and name not in given:
            arguments[name] = [build(part, base, f"{where}, {name}") for part in recipe[name]]
    return {**arguments, **given}
