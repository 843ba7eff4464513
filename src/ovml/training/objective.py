"""The loss of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ovml.distillation import Distillation
from ovml.encoders import Features, ImageFeatures, ImageTail, widened
from ovml.heads import TeacherFeatures
from ovml.losses import Loss
from ovml.model import OpenVocabularyModel
from ovml.training.distributed import embed_over_processes, image_share, world_size
from ovml.training.stages import Stage
from ovml.training.step_rows import StepRows, drawn_labels
from ovml.utils.errors import UserError, check_not_negative
from ovml.utils.tensors import full_precision

ROWS = "step_rows"
"""Key of a batch's `StepRows`."""


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

    A stage may keep the other images too (`Stage.keep_unlabelled`).

    Args:
        loss: Compares logits with targets.
        distillation: Compares the features of the adapted and the original image tower.
        distillation_weight: Factor of the distillation loss in stages that distil; 0 turns it off.
    """

    def __init__(self, loss: Loss, distillation: Distillation, distillation_weight: float = 1.0) -> None:
        super().__init__()
        check_not_negative("model", distillation_weight=distillation_weight)
        self.loss = loss
        self.distillation = distillation
        self.distillation_weight = distillation_weight
        self.forget_counts()

    def forget_counts(self) -> None:
        """Start counting the images that taught something."""
        self._seen = self._taught = 0

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
            batch: `pixel_values [B, 3, H, W]` or `features [B, 1+P, D]`, and `labels [B, L]`; perhaps what was counted
                before, under `ROWS`.
            stage: The stage that learns.

        Returns:
            `None` if no image has a present seen label and there is no other process.
        """
        targets = batch["labels"][:, model.vocabulary_of(None).seen_slice]
        rows = batch[ROWS] if ROWS in batch else StepRows(targets, stage)
        self._seen += rows.size
        self._taught += rows.taught
        if not rows.images and world_size() == 1:
            return None
        share = image_share(rows.images, targets.device)
        if not rows.images:
            rows.kept = torch.tensor([0])
        of_student, of_original = self._features(model, teacher, batch, rows, stage)
        label_embeds, targets, columns = scored_labels(model, rows.select(targets), stage, rows.columns)
        student, original = of_student.for_labels(label_embeds), None
        if of_original is not None:
            original = original_features(model, of_original, label_embeds, columns)
        logits = self._logits(model, student, label_embeds, targets, original)
        if not rows.images:
            share()
            return StepLoss(self._zero(*logits, *student), {}, 0)
        terms = {"classification": torch.stack([self.loss(some, targets) for some in logits]).sum()}
        total = terms["classification"]
        if original is not None and self.distillation_weight:
            terms["distillation"] = self.distillation(student, ImageFeatures(*original[:2]))
            total = total + self.distillation_weight * terms["distillation"]
        return StepLoss(total * share(), {**terms, "loss": total}, rows.images)

    def term_names(self, stage: Stage) -> list[str]:
        """Names of the terms of a stage's steps; see `StepLoss`."""
        distils = stage.distil and self.distillation_weight
        return ["loss", "classification", *(["distillation"] if distils else [])]

    def check_taught(self, stage: str, strategy: Any, device: torch.device) -> None:
        """Check that images taught something since `forget_counts`; warn if most did not.

        Args:
            stage: Name of the stage.
            strategy: Lightning's, which adds up over all processes.
            device: Device on which the processes exchange numbers.

        Raises:
            UserError: No image had a present seen label.
        """
        counts = torch.tensor([self._seen, self._taught], device=device)
        seen, taught = strategy.reduce(counts, reduce_op="sum").tolist()
        if seen and not taught:
            raise UserError(
                f"stage {stage!r}: none of {seen:,} training images has a present seen label, so nothing was learned; "
                "check the labels of the data"
            )
        if taught < seen / 2:
            rank_zero_warn(
                f"stage {stage!r}: {seen - taught:,} of {seen:,} training images have no present seen label and taught "
                "nothing"
            )

    def _features(
        self, model: OpenVocabularyModel, teacher: ImageTail, batch: Mapping[str, Any], rows: StepRows, stage: Stage
    ) -> tuple[Features, Features | None]:
        """Features of the adapted and, where they are needed, of the original tower; one pass through the trunk."""
        if "features" in batch:
            return batch_features(model, {"features": rows.select(batch["features"])}), None
        tail_layers = len(teacher.layers)
        with torch.no_grad():
            pixel_values = model.normalized(rows.select(batch["pixel_values"]))
            hidden_states = model.image_encoder.trunk(pixel_values, tail_layers)
        student: Features = model.image_encoder.tail(tail_layers)(hidden_states)
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
        original: TeacherFeatures | None,
    ) -> tuple[Tensor, ...]:
        dtype = model.head.dtype
        student, label_embeds = widened(student, dtype), full_precision(model.with_background(label_embeds), dtype)
        original = None if original is None else TeacherFeatures(*(full_precision(x, dtype) for x in original))
        with torch.autocast(label_embeds.device.type, enabled=False):
            logits = model.head.training_logits(student, label_embeds, targets, original)
        return tuple(full_precision(some[:, : targets.shape[1]]) for some in logits)

    def _zero(self, *outputs: Tensor) -> Tensor:
        """A loss of 0 in which all learning parameters take part: those behind the outputs, and the objective's own."""
        own = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.stack([tensor.float().sum() for tensor in (*outputs, *own)]).sum() * 0


def batch_features(model: OpenVocabularyModel, batch: Mapping[str, Any]) -> Features:
    """Features of a batch: kept ones (see `FeatureCache`), or those of its images."""
    if "features" in batch:
        return ImageFeatures(batch["features"][:, 0], batch["features"][:, 1:])
    return model.encode_images(batch["pixel_values"])


@torch.no_grad()
def original_features(
    model: OpenVocabularyModel, features: Features, label_embeds: Tensor, columns: Tensor | slice
) -> TeacherFeatures:
    """What the original CLIP makes of a step's images and labels.

    Args:
        model: The model that learns; its prompt says what the original reads.
        features: Of the original image tower.
        label_embeds: What the student reads.
        columns: Of the labels that the step ranks, in the vocabulary.
    """
    prompt, embeds = model.prompt.original, label_embeds.detach()
    if prompt is not model.prompt:
        embeds = model.embed_labels(prompt=prompt)[columns]
    return TeacherFeatures(*features.for_labels(embeds), embeds)


def scored_labels(
    model: OpenVocabularyModel, targets: Tensor, stage: Stage, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | slice]:
    """The seen labels that a step ranks.

    Args:
        model: The model that learns.
        targets: `[B, S]`.
        stage: The stage that learns.
        drawn: The labels, on the CPU, if they were drawn already.

    Returns:
        Embeddings `[C, D]`, targets `[B, C]`, and the labels' places among all.
    """
    vocabulary = model.vocabulary_of(None)
    texts = vocabulary.texts[vocabulary.seen_slice]
    if drawn is None and stage.labels_per_step is not None and stage.labels_per_step < targets.shape[1]:
        drawn = drawn_labels((targets == 1).cpu(), stage.labels_per_step, stage.keeps_present)
    if drawn is None:
        places: Tensor | slice = vocabulary.seen_slice
        if stage.fixed_prompt:
            return model.embed_labels()[places], targets, places
        embed = model.prompt.embed
        return embed_over_processes(embed, texts) if model.prompt.embeds_apart else embed(texts), targets, places
    columns = drawn.to(targets.device, non_blocking=True)
    embeds = model.embed_labels()[columns] if stage.fixed_prompt else model.prompt.embed_some(texts, drawn)
    return embeds, targets[:, columns], columns
