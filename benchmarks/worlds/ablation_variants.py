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


def tower(name: str, **arguments: Any) -> list[str]:
    """Options that put another vision stage in the place of the configuration's."""
    return stages((name, {**VISION, **arguments}), PROMPT_STAGE)


def transport(**arguments: Any) -> list[str]:
    """Options of optimal transport with the loss that its logits are made for."""
    return part("head", "heads.OptimalTransportHead", **arguments) + part("loss", "losses.MultiMatchingLoss")


def ram(head: dict[str, float], lr: float, num_tokens: int = 0) -> list[str]:
    """Options of RAM whole, in one stage."""
    return (
        transport(**head)
        + part("prompt", "prompts.TemplatePrompt", templates="A photo of a {}.")
        + UNDISTILLED
        + stages(("ladder.LadderStage", {**VISION, "num_layers": 6, "lr": lr, "num_tokens": num_tokens}))
    )


PROMPT_STAGE = ("training.PromptStage", {"epochs": 2})
VISION = {"epochs": 5, "warmup_epochs": 0.5}
FAST = tower("training.VisionStage", num_layers=4, lr=3e-3)
LADDER = tower("ladder.LadderStage", num_layers=6, lr=1e-2)
SIGMOID = {"scale": 20.0, "offset": -4.0, "learned": True}  # scores normalised over labels are a few hundredths
CROSS_ENTROPY = part("loss", "losses.BinaryCrossEntropy", **SIGMOID)
ZLPR = part("loss", "losses.ZLPRLoss", **SIGMOID)
MATCHING = part("loss", "losses.MultiMatchingLoss", scale=20.0, learned=True)
SPATIAL = part("head", "heads.SpatialSoftmaxHead", global_weight=0.5)
QUERY = part("head", "heads.QueryHead", global_weight=0.5)
MAPS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TRANSPORT = {"local_temperature": 2e-3}  # the published 2e-4 is for 925 labels
WARM = {"temperature": 0.05, "local_temperature": 4e-4}  # both logits as large as the other losses' scale makes them
SHARP = {"cost_scale": 31.0, "epsilon": 0.01, "knowledge": 0.005}  # 31 is ovml-demo's own scale, as in RAM's code
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
        "last two blocks": tower("training.VisionStage", num_layers=2),
    },
    "losses": {
        "ranking, temperature 0.1": ["--model.loss.temperature", "0.1"],
        "ranking, temperature 0.03": ["--model.loss.temperature", "0.03"],
        "ranking, learned margin": part("loss", "losses.LearnedMarginRankingLoss"),
        "ranking, spread margin": part("loss", "losses.SpreadMarginRankingLoss"),
        "binary cross-entropy": CROSS_ENTROPY,
        "asymmetric": part("loss", "losses.AsymmetricLoss", **SIGMOID),
        "ZLPR": ZLPR,
        "multi-matching": MATCHING,
    },
    "heads": {
        "SpatialSoftmaxHead, temperature 0.03": SPATIAL + part("loss", "losses.RankingLoss", temperature=0.03),
        "QueryHead, temperature 0.03": QUERY + part("loss", "losses.RankingLoss", temperature=0.03),
        "QueryHead, ZLPR": QUERY + ZLPR,
        "OptimalTransportHead": transport(**TRANSPORT),
        "OptimalTransportHead, no knowledge": transport(**TRANSPORT, knowledge=0.0),
        "OptimalTransportHead, temperature 0.05": transport(**WARM),
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
        "LoRA": tower("tuning.LoRAStage", num_layers=4, lr=1e-2),
        "LoRA, all maps": tower("tuning.LoRAStage", num_layers=4, lr=1e-2, targets=MAPS),
        "visual prompts": tower("tuning.VisualPromptStage", num_layers=4, lr=1e-2),
        "ladder": LADDER,
        "RAM": ram(TRANSPORT, lr=1e-3),
        "RAM, temperature 0.05": ram(WARM, lr=1e-2),
    },
    "together": {
        "multi-matching, no distillation": MATCHING + UNDISTILLED,
        "multi-matching, rate 0.003": MATCHING + FAST,
        "SpatialSoftmaxHead, multi-matching": SPATIAL + MATCHING,
        "SpatialSoftmaxHead, multi-matching, no distillation": SPATIAL + MATCHING + UNDISTILLED,
        "SpatialSoftmaxHead, multi-matching, rate 0.003": SPATIAL + MATCHING + FAST,
        "SpatialSoftmaxHead, binary cross-entropy": SPATIAL + CROSS_ENTROPY,
        "QueryHead, multi-matching": QUERY + MATCHING,
        "ladder, multi-matching": MATCHING + LADDER,
        "ladder, SpatialSoftmaxHead, multi-matching": SPATIAL + MATCHING + LADDER,
        "binary cross-entropy, no distillation": CROSS_ENTROPY + UNDISTILLED,
        "QueryHead, binary cross-entropy": QUERY + CROSS_ENTROPY,
        "QueryHead, ZLPR, no distillation": QUERY + ZLPR + UNDISTILLED,
    },
    "rates": {
        "MKT, rate 0.003": FAST,
        "MKT, rate 0.01": tower("training.VisionStage", num_layers=4, lr=1e-2),
        "LoRA, rate 0.001": tower("tuning.LoRAStage", num_layers=4),
        "visual prompts, rate 0.001": tower("tuning.VisualPromptStage", num_layers=4),
        "visual prompts, rate 0.1": tower("tuning.VisualPromptStage", num_layers=4, lr=1e-1),
        "ladder, rate 0.001": tower("ladder.LadderStage", num_layers=6),
        "RAM, tokens": ram(WARM, lr=1e-2, num_tokens=8),
        "RAM, tokens, epsilon 0.01": ram({**WARM, **SHARP}, lr=1e-2, num_tokens=8),
    },
}
