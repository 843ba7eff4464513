"""What is compared: options of `ovml fit` beside those of a world's own configuration."""

from __future__ import annotations

import json
from typing import Any


def part(kind: str, name: str, **arguments: Any) -> list[str]:
    """Options that put another part in the place of the configuration's."""
    return [f"--model.{kind}", json.dumps({"class_path": f"ovml.{name}", "init_args": arguments})]


def stages(*listed: tuple[str, dict[str, Any]]) -> list[str]:
    """Options that put other stages in the place of the configuration's."""
    parts = [{"class_path": f"ovml.{name}", "init_args": arguments} for name, arguments in listed]
    return ["--model.stages", json.dumps(parts)]


PROMPT_STAGE = ("training.PromptStage", {"epochs": 2})
VISION = {"epochs": 5, "warmup_epochs": 0.5}
SIGMOID = {"scale": 20.0, "offset": -4.0, "learned": True}  # scores normalised over labels are a few hundredths
TRANSPORT = {"local_temperature": 2e-3}  # the published 2e-4 is for 925 labels
UNDISTILLED = ["--model.distillation_weight", "0"]

GROUPS: dict[str, dict[str, list[str]]] = {
    "paper": {
        "MKT": [],
        "no distillation": UNDISTILLED,
        "distillation weight 1": ["--model.distillation_weight", "1"],
        "global stream only": part("head", "heads.GlobalHead"),
        "local stream only": part("head", "heads.LocalHead", top_k=3),
        "top-k 1": ["--model.head.top_k", "1"],
        "top-k 9": ["--model.head.top_k", "9"],
        "top-k 18": ["--model.head.top_k", "18"],
        "template 'a photo of a {}'": ["--model.prompt.template", "a photo of a {}"],
        "last two blocks": stages(("training.VisionStage", {**VISION, "num_layers": 2}), PROMPT_STAGE),
    },
    "losses": {
        "ranking, temperature 0.1": ["--model.loss.temperature", "0.1"],
        "ranking, temperature 0.03": ["--model.loss.temperature", "0.03"],
        "ranking, learned margin": part("loss", "losses.LearnedMarginRankingLoss"),
        "ranking, spread margin": part("loss", "losses.SpreadMarginRankingLoss"),
        "binary cross-entropy": part("loss", "losses.BinaryCrossEntropy", **SIGMOID),
        "asymmetric": part("loss", "losses.AsymmetricLoss", **SIGMOID),
        "ZLPR": part("loss", "losses.ZLPRLoss", **SIGMOID),
        "multi-matching": part("loss", "losses.MultiMatchingLoss", scale=20.0, learned=True),
    },
    "heads": {
        "SpatialSoftmaxHead, temperature 0.03": part("head", "heads.SpatialSoftmaxHead", scale=20.0, global_weight=0.5)
        + part("loss", "losses.RankingLoss", temperature=0.03),
        "QueryHead, temperature 0.03": part("head", "heads.QueryHead", global_weight=0.5)
        + part("loss", "losses.RankingLoss", temperature=0.03),
        "QueryHead, ZLPR": part("head", "heads.QueryHead", global_weight=0.5)
        + part("loss", "losses.ZLPRLoss", **SIGMOID),
        "OptimalTransportHead": part("head", "heads.OptimalTransportHead", **TRANSPORT)
        + part("loss", "losses.MultiMatchingLoss"),
        "OptimalTransportHead, no knowledge": part("head", "heads.OptimalTransportHead", **TRANSPORT, knowledge=0.0)
        + part("loss", "losses.MultiMatchingLoss"),
    },
    "prompts": {
        "CoOpPrompt": part("prompt", "prompts.CoOpPrompt"),
        "DualPrompt": part("prompt", "prompts.DualPrompt"),
        "EnsemblePrompt": part("prompt", "prompts.EnsemblePrompt")
        + stages(("training.VisionStage", {**VISION, "num_layers": 4})),  # it has nothing to learn
    },
    "distillation": {
        "cosine": part("distillation", "distillation.CosineDistillation"),
        "relational": part("distillation", "distillation.RelationalDistillation"),
        "patches": part("distillation", "distillation.PatchDistillation"),
    },
    "tower": {
        "LoRA": stages(("tuning.LoRAStage", {**VISION, "num_layers": 4}), PROMPT_STAGE),
        "visual prompts": stages(("tuning.VisualPromptStage", {**VISION, "num_layers": 4}), PROMPT_STAGE),
        "ladder": stages(("ladder.LadderStage", {**VISION, "num_layers": 6}), PROMPT_STAGE),
        "RAM": part("head", "heads.OptimalTransportHead", **TRANSPORT)
        + part("loss", "losses.MultiMatchingLoss")
        + part("prompt", "prompts.TemplatePrompt", templates="A photo of a {}.")
        + UNDISTILLED
        + stages(("ladder.LadderStage", {**VISION, "num_layers": 6})),
    },
    "together": {
        "multi-matching, no distillation": part("loss", "losses.MultiMatchingLoss", scale=20.0, learned=True)
        + UNDISTILLED,
        "QueryHead, multi-matching": part("head", "heads.QueryHead", global_weight=0.5)
        + part("loss", "losses.MultiMatchingLoss", scale=20.0, learned=True),
        "binary cross-entropy, no distillation": part("loss", "losses.BinaryCrossEntropy", **SIGMOID) + UNDISTILLED,
        "QueryHead, binary cross-entropy": part("head", "heads.QueryHead", global_weight=0.5)
        + part("loss", "losses.BinaryCrossEntropy", **SIGMOID),
        "QueryHead, ZLPR, no distillation": part("head", "heads.QueryHead", global_weight=0.5)
        + part("loss", "losses.ZLPRLoss", **SIGMOID)
        + UNDISTILLED,
    },
}

SHORT = (
    "MKT",
    "no distillation",
    "global stream only",
    "local stream only",
    "ranking, temperature 0.1",
    "binary cross-entropy",
    "multi-matching",
    "QueryHead, ZLPR",
    "QueryHead, binary cross-entropy",
    "RAM",
    "multi-matching, no distillation",
    "QueryHead, multi-matching",
)
"""What is compared on the emoji world."""
