"""The loss of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ovml.distillation import Distillation
from ovml.encoders import ImageFeatures, ImageTail, widened
from ovml.encoders.execution import widen
from ovml.losses import Loss
from ovml.model import OpenVocabularyModel
from ovml.training.distributed import image_share, world_size
from ovml.training.stages import Stage


class StepLoss(NamedTuple):
    """The loss of one step.

    Attributes:
        total: What the process minimizes.
        terms: Means over the process's images, by name: `loss`, `classification` and perhaps `distillation`.
        images: Number of images that the terms are means over.
    """

    total: Tensor
    terms: dict[str, Tensor]
    images: int


class Objective(nn.Module):
    """Classification loss plus weighted distillation loss, over a batch's images with a present seen label.

    Args:
        loss: Compares logits with targets.
        distillation: Compares the features of the adapted and the original image tower.
        distillation_weight: Factor of the distillation loss in stages that distil; 0 turns it off.
    """

    def __init__(self, loss: Loss, distillation: Distillation, distillation_weight: float = 1.0) -> None:
        super().__init__()
        self.loss = loss
        self.distillation = distillation
        self.distillation_weight = distillation_weight

    def forward(
        self, model: OpenVocabularyModel, teacher: ImageTail, batch: Mapping[str, Any], stage: Stage
    ) -> StepLoss | None:
        """Compute the loss of a batch.

        With several processes each loss is weighted by the process's number of images, so that the mean of the
        gradients is the gradient of the mean over all images. A process without images runs the same modules on one
        image and returns 0, because DDP and FSDP wait for it.

        Args:
            model: The model that learns.
            teacher: The end of the original image tower.
            batch: `pixel_values [B, 3, H, W]` or `features [B, 1+P, D]`, and `labels [B, L]`.
            stage: The stage that learns.

        Returns:
            `None` if no image has a present seen label and there is no other process.
        """
        targets = batch["labels"][:, model.vocabulary_of(None).seen_slice]
        kept = (targets == 1).any(dim=1)
        images = int(kept.sum())
        share = image_share(images, targets.device)
        if not images:
            if world_size() == 1:
                return None
            kept[0] = True
        student, original = self._features(model, teacher, batch, kept, stage)
        label_embeds, targets = scored_labels(model, targets[kept], stage)
        logits = self._logits(model, student, label_embeds, targets, original)
        if not images:
            return StepLoss(self._zero(*logits, *student), {}, 0)
        terms = {"classification": torch.stack([self.loss(some, targets) for some in logits]).sum()}
        total = terms["classification"]
        if original is not None and self.distillation_weight:
            terms["distillation"] = self.distillation(student, original)
            total = total + self.distillation_weight * terms["distillation"]
        return StepLoss(total * share, {**terms, "loss": total}, images)

    def _features(
        self, model: OpenVocabularyModel, teacher: ImageTail, batch: Mapping[str, Any], kept: Tensor, stage: Stage
    ) -> tuple[ImageFeatures, ImageFeatures | None]:
        """Features of the adapted and, where they are needed, of the original tower; one pass through the trunk."""
        if "features" in batch:
            return batch_features(model, {"features": batch["features"][kept]}), None
        tail_layers = len(teacher.layers)
        with torch.no_grad():
            hidden_states = model.image_encoder.trunk(batch["pixel_values"][kept], tail_layers)
        student: ImageFeatures = model.image_encoder.tail(tail_layers)(hidden_states)
        if not (stage.distil and (self.distillation_weight or model.head.uses_teacher)):
            return student, None
        with torch.no_grad():
            return student, teacher(hidden_states)

    @staticmethod
    def _logits(
        model: OpenVocabularyModel,
        student: ImageFeatures,
        label_embeds: Tensor,
        targets: Tensor,
        original: ImageFeatures | None,
    ) -> tuple[Tensor, ...]:
        student, label_embeds = widened(student), widen(label_embeds)
        original = None if original is None else widened(original)
        with torch.autocast(label_embeds.device.type, enabled=False):
            return model.head.training_logits(student, label_embeds, targets, original)

    def _zero(self, *outputs: Tensor) -> Tensor:
        """A loss of 0 in which all learning parameters take part: those behind the outputs, and the objective's own."""
        own = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.stack([tensor.float().sum() for tensor in (*outputs, *own)]).sum() * 0


def batch_features(model: OpenVocabularyModel, batch: Mapping[str, Any]) -> ImageFeatures:
    """Features of a batch: kept ones (see `FeatureCache`), or those of its images."""
    if "features" in batch:
        return ImageFeatures(batch["features"][:, 0], batch["features"][:, 1:])
    return model.encode_images(batch["pixel_values"])


def scored_labels(model: OpenVocabularyModel, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Embeddings of the seen labels that a step ranks, and their columns of the targets `[B, S]`."""
    vocabulary = model.vocabulary_of(None)
    columns: Tensor | slice = vocabulary.seen_slice
    texts = vocabulary.texts[vocabulary.seen_slice]
    if stage.labels_per_step is not None and stage.labels_per_step < targets.shape[1]:
        present = (targets == 1).any(dim=0)
        # A random order with the batch's present labels first.
        order = (torch.rand(len(present)).to(present.device) + present).argsort(descending=True)
        columns = order[: max(stage.labels_per_step, int(present.sum()))].sort().values
        texts, targets = tuple(texts[i] for i in columns.tolist()), targets[:, columns]
    return (model.embed_labels()[columns] if stage.fixed_prompt else model.prompt.embed(texts)), targets
