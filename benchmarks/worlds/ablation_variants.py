"""What is compared: options of `ovml fit` beside those of a world's own configuration. A group answers one question."""

from __future__ import annotations

import json
from typing import Any


def part(kind: str, name: str, **arguments: Any) -> list[str]:
    """Options that put another part in the place of the configuration's."""
    return [f"--model.{kind}", json.dumps({"class_path": name, "init_args": arguments})]


def stages(*listed: tuple[str, dict[str, Any]]) -> list[str]:
    """Options that put other stages in the place of the configuration's."""
    parts = [{"class_path": name, "init_args": arguments} for name, arguments in listed]
    return ["--model.stages", json.dumps(parts)]


def tower(name: str, **arguments: Any) -> list[str]:
    """Options that put another vision stage in the place of the configuration's."""
    return stages((name, {**VISION, **arguments}), PROMPT_STAGE)


def ram(lr: float, temperature_lr: float) -> list[str]:
    """Options of RAM as published, with the tower's own preprocessing and the world's images.

    The stage has as many epochs as the other variants' two, and the published ratio of warm-up to epochs.
    """
    published = {"epochs": 7, "warmup_epochs": 3.5, "schedule_epochs": 70, "min_lr": lr / 50, "warmup_lr": lr / 10}
    average = {"class_path": "LearnedEMA", "init_args": {}}
    average["init_args"] = {"decay": 0.9997, "each_epoch": True, "copied": ["model.head.tau_global"]}
    return (
        part("head", "RAMHead", local_temperature=2e-3, epsilon=0.1, knowledge=0.05)
        + part("prompt", "DeepPrompt", template="There is a {} in the scene", num_layers=3, num_tokens=4)
        + part("loss", "MultiMatchingLoss")
        + UNDISTILLED
        + ["--trainer.callbacks+", json.dumps(average)]
        + stages(
            (
                "RAMStage",
                {
                    **published,
                    **{"lr": lr, "temperature_lr": temperature_lr, "token_lr": lr * 200},
                    **{"momentum": 0.9, "weight_decay": 1e-4, "num_layers": 3, "num_tokens": 8},
                },
            )
        )
    )


def dualcoop(context: int) -> list[str]:
    """Options of DualCoOp as published, with seven epochs instead of fifty."""
    rates = {"epochs": 7, "lr": 2e-3, "warmup_epochs": 1, "warmup_lr": 1e-5, "momentum": 0.9, "weight_decay": 5e-4}
    loss = {"gamma_absent": 2.0, "gamma_present": 1.0, "clip": 0.05, "detach_focus": True, "eps": 1e-6}
    return (
        part("head", "DualCoOpHead", temperature=0.05, scale=100.0)
        + part("prompt", "DualCoOpPrompt", num_context=context)
        + part("loss", "AsymmetricLoss", **loss, reduction="sum", factor=0.01)
        + UNDISTILLED
        + stages(("CoOpStage", rates))
    )


PROMPT_STAGE = ("PromptStage", {"epochs": 2})
VISION = {"epochs": 5, "warmup_epochs": 0.5}
LADDER = tower("LadderStage", num_layers=6, lr=1e-2)
SIGMOID = {"scale": 20.0, "offset": -4.0, "learned": True}  # scores normalised over labels are a few hundredths
MATCHING = part("loss", "MultiMatchingLoss", scale=20.0, learned=True)
SPATIAL = part("head", "SpatialSoftmaxHead", global_weight=0.5)
MAPS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TRANSPORT = part("head", "OptimalTransportHead", temperature=0.05, local_temperature=4e-4)
UNDISTILLED = ["--model.distillation_weight", "0"]

GROUPS: dict[str, dict[str, list[str]]] = {
    "paper": {  # does the paper's order hold, and are both streams needed?
        "MKT": [],
        "no distillation": UNDISTILLED,
        "distillation weight 1": ["--model.distillation_weight", "1"],
        "global stream only": part("head", "GlobalHead"),
        "local stream only": part("head", "LocalHead", top_k=3),
    },
    "losses": {  # which loss?
        "ranking, temperature 0.1": ["--model.loss.temperature", "0.1"],
        "ranking, learned margin": part("loss", "LearnedMarginRankingLoss"),
        "binary cross-entropy": part("loss", "BinaryCrossEntropy", **SIGMOID),
        "asymmetric": part("loss", "AsymmetricLoss", **SIGMOID),
        "ZLPR": part("loss", "ZLPRLoss", **SIGMOID),
        "multi-matching": MATCHING,
    },
    "heads": {  # which head, with the loss that suits most?
        "SpatialSoftmaxHead, multi-matching": SPATIAL + MATCHING,
        "QueryHead, multi-matching": part("head", "QueryHead", global_weight=0.5) + MATCHING,
        "OptimalTransportHead, its loss": TRANSPORT + part("loss", "MultiMatchingLoss"),
        "MLDecoderHead, asymmetric": part("head", "MLDecoderHead", decoder_dim=256, hidden_dim=512)
        + part("loss", "AsymmetricLoss"),
    },
    "prompts": {  # does another prompt help?
        "CoOpPrompt": part("prompt", "CoOpPrompt"),
        "EnsemblePrompt": part("prompt", "EnsemblePrompt")
        + stages(("VisionStage", {**VISION, "num_layers": 4})),  # it has nothing to learn
    },
    "distillation": {  # which distillation?
        "cosine": part("distillation", "CosineDistillation"),
        "patches": part("distillation", "PatchDistillation"),
    },
    "tower": {  # what of the tower should learn?
        "last two blocks": tower("VisionStage", num_layers=2),
        "multi-matching, rate 0.003": MATCHING + tower("VisionStage", num_layers=4, lr=3e-3),
        "LoRA, all maps": tower("LoRAStage", num_layers=4, lr=1e-2, targets=MAPS),
        "ladder": LADDER,
        "ladder, multi-matching": LADDER + MATCHING,
        "ladder, SpatialSoftmaxHead, multi-matching": LADDER + SPATIAL + MATCHING,
    },
    "sources": {  # do other patches help a head that learns?
        "SCLIP": part("patch_source", "SCLIP"),
        "MaskCLIP": part("patch_source", "MaskCLIP"),
    },
    "published": {  # the field's methods as published
        "RAM": ram(5e-6, 5e-5),
        "RAM, rates times 100": ram(5e-4, 5e-3),
        "DualCoOp": dualcoop(64),
        "DualCoOp, 16 vectors": dualcoop(16),
    },
}
