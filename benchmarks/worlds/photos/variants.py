"""What is compared on photographs: options of `ovml fit` beside those of the configuration; heads without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovml.encoders.sources import SCLIP, CLIPSurgery, MaskCLIP, PatchSource
from ovml.heads import CosineHead, GaussianHead, Head, PatchSoftmaxHead, PromptFusionHead, StandardizedHead, SurgeryHead
from worlds.ablation_variants import MATCHING, UNDISTILLED, part, stages


@dataclass(frozen=True)
class Settings:
    """What hangs on the size of a CLIP.

    Attributes:
        configs: Configuration files in this folder, later ones over earlier ones.
        epochs: Epochs of the vision stage.
        prompt_epochs: Epochs of the prompt stage.
        local: `top_k` of a local stream.
        blocks: Blocks of the image tower.
        qks: Size of QKS's head.
        qks_lr: Its rate.
        context: Words of DualCoOp's contexts; the text tower must have room for them.
    """

    configs: tuple[str, ...]
    epochs: int
    prompt_epochs: int
    local: int
    blocks: int
    qks: dict[str, Any]
    qks_lr: float
    context: int


SMALL = Settings(
    ("photos.yaml",), 6, 2, 5, 6, {"num_layers": 2, "width": 192, "num_heads": 6, "hidden_dim": 768}, 1e-3, 16
)
"""For a CLIP of `pretrain_clip`: 6 blocks, 64 patches, texts of 32 tokens."""
PAPER = Settings(("photos.yaml", "photos_paper.yaml"), 20, 4, 16, 12, {}, 1e-5, 64)
"""For ViT-B/16: settings of the papers."""

RAND_AUGMENT = {"class_path": "ovml.data.RandAugment", "init_args": {"num_ops": 2, "magnitude": 5, "std": 2.6}}
CUTOUT = ["--data.crop_scale", "null", "--data.cutout", "0.5", "--data.rand_augment", json.dumps(RAND_AUGMENT)]


def variants(settings: Settings, num_seen: int) -> dict[str, list[str]]:
    """Options by name; MKT first.

    Args:
        settings: Of the CLIP.
        num_seen: Number of seen labels, by which QKS's loss is scaled.
    """
    prompt = ("PromptStage", {"epochs": settings.prompt_epochs, "warmup_epochs": settings.prompt_epochs / 4})
    ladder = {"epochs": settings.epochs, "warmup_epochs": 1, "lr": 1e-2, "num_layers": settings.blocks}
    best = [*MATCHING, *UNDISTILLED, *stages(("LadderStage", {**ladder, "num_adapters": 3}), prompt)]
    return {
        "MKT": [],
        "no distillation": UNDISTILLED,
        "distillation weight 0.1": ["--model.distillation_weight", "0.1"],
        "distillation weight 1": ["--model.distillation_weight", "1"],
        "global stream only": part("head", "GlobalHead"),
        "local stream only": part("head", "LocalHead", top_k=settings.local),
        "template 'a photo of a {}'": ["--model.prompt.template", "a photo of a {}"],
        "ranking, temperature 0.1": ["--model.loss.temperature", "0.1"],
        "ranking, temperature 0.03": ["--model.loss.temperature", "0.03"],
        "multi-matching": MATCHING,
        "multi-matching, no distillation": MATCHING + UNDISTILLED,
        "best.yaml": best,
        "RAM as published": ram(),
        "RAM, rate 0.001": ram(lr=1e-3),
        "QKS": qks(settings, num_seen),
        "DualCoOp": dualcoop(settings),
    }


def ram(**rates: float) -> list[str]:
    """RAM with the settings of ram_coco.yaml."""
    average = {"decay": 0.9997, "each_epoch": True, "copied": ["model.head.tau_global"]}
    callbacks = [{"class_path": "ovml.training.callbacks.LearnedEMA", "init_args": average}]
    return [
        *part("head", "RAMHead", local_temperature=2e-3, epsilon=0.1, knowledge=0.05),
        *part("prompt", "DeepPrompt", template="A photo of a {}.", num_layers=3, num_tokens=4),
        *part("loss", "MultiMatchingLoss"),
        *UNDISTILLED,
        *stages(("RAMStage", {"num_layers": 3, "num_tokens": 8, **rates})),
        *["--data.augmentation", "ovml.data.RAMAugmentation", "--data.batch_size", "32"],
        *["--data.eval_batch_size", "512", "--data.reshuffle", "false", "--data.drop_last", "true"],
        *["--trainer.callbacks", json.dumps(callbacks)],
    ]


def qks(settings: Settings, num_seen: int) -> list[str]:
    """QKS with the loss, templates and augmentation of qks.yaml; a smaller head for a small CLIP."""
    templates = ["there is a {} in the scene.", "this is a {} in the scene.", "a photo of a {}.", "a photo of the {}."]
    loss = {"gamma_absent": 4.0, "gamma_present": 0.0, "clip": 0.0, "detach_focus": True, "eps": 1e-5}
    stage = {"epochs": settings.epochs + settings.prompt_epochs, "lr": settings.qks_lr, "min_lr": 0.0}
    return [
        *part("head", "QKSHead", **settings.qks),
        *part("prompt", "TemplatePrompt", templates=templates),
        *part("loss", "AsymmetricLoss", **loss, factor=1000 / num_seen),
        *UNDISTILLED,
        *stages(("HeadStage", {**stage, "warmup_epochs": 0, "weight_decay": 1e-4})),
        *CUTOUT,
    ]


def dualcoop(settings: Settings) -> list[str]:
    """DualCoOp with the loss, rate and augmentation of dualcoop_coco.yaml; fewer epochs."""
    loss = {"gamma_absent": 2.0, "gamma_present": 1.0, "clip": 0.05, "detach_focus": True, "eps": 1e-6}
    return [
        *part("head", "DualCoOpHead", temperature=0.05, scale=100.0),
        *part("prompt", "DualCoOpPrompt", num_context=settings.context),
        *part("loss", "AsymmetricLoss", **loss, reduction="sum", factor=0.01),
        *stages(("CoOpStage", {"epochs": settings.epochs + settings.prompt_epochs})),
        *["--data.batch_size", "32", "--data.flip", "0", *CUTOUT],
    ]


def training_free(prompts: Sequence[str]) -> dict[str, tuple[Head, PatchSource | None]]:
    """Heads without training, and where their patches come from.

    Args:
        prompts: Texts that name several labels, for `PromptFusionHead`.
    """
    return {
        "CosineHead": (CosineHead(), None),
        "StandardizedHead": (StandardizedHead(), None),
        "StandardizedHead, columns": (StandardizedHead(columns=True), None),
        "PromptFusionHead": (PromptFusionHead(prompts), None),
        "SurgeryHead": (SurgeryHead(), None),
        "PatchSoftmaxHead": (PatchSoftmaxHead(), None),
        "PatchSoftmaxHead, MaskCLIP": (PatchSoftmaxHead(), MaskCLIP()),
        "PatchSoftmaxHead, SCLIP": (PatchSoftmaxHead(), SCLIP()),
        "PatchSoftmaxHead, CLIPSurgery": (PatchSoftmaxHead(), CLIPSurgery()),
        "GaussianHead, SCLIP": (GaussianHead(), SCLIP()),
    }
