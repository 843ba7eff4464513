"""What a classifier does without learning: images and label names in, scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ovml.distillation import Distillation
from ovml.encoders import ImageEncoder, ImageFeatures
from ovml.encoders.checkpoints import ImageSpec
from ovml.heads import Head
from ovml.losses import Loss
from ovml.metrics import OpenVocabularyEvaluation
from ovml.metrics.calibration import Calibration
from ovml.prompts import PromptLearner
from ovml.training.stages import Stage
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


class ScoringModule(pl.LightningModule):
    """Encodes images and labels and scores one against the other; `OVMultiLabelClassifier` makes its parts.

    Attributes:
        vocabulary: The labels that are scored where none are given.
        image_encoder: The vision tower.
        head: Scores image features against label embeddings.
        prompt: Turns label names into label embeddings.
        image_spec: How pictures are prepared: the checkpoint's way, after training the data module's.
        num_tail_layers: Blocks at the end of the vision tower that learn in some stage.
        calibration: Turns logits into probabilities; every validation of all labels fits it anew.
    """

    vocabulary: LabelVocabulary | None
    image_encoder: ImageEncoder
    image_spec: ImageSpec
    head: Head
    prompt: PromptLearner
    loss: Loss
    distillation: Distillation
    distillation_weight: float
    stages: list[Stage]
    stage: Stage
    evaluation: OpenVocabularyEvaluation
    num_tail_layers: int
    calibration: Calibration | None = None
    _label_embeds: dict[Any, Tensor]

    def forward(self, pixel_values: Tensor, labels: Sequence[str] | LabelVocabulary | None = None) -> Tensor:
        """Score normalised images `[B, 3, H, W]` against labels (default: the vocabulary); logits `[B, L]`."""
        label_embeds = self.embed_labels(labels)
        return self.score(self.image_encoder(pixel_values), label_embeds)

    def score(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """The head's logits `[B, L]`, in full precision also where the towers run in half."""
        widened = self._widened(features, label_embeds)
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = self.head(*widened)
        return logits

    def _widened(self, features: ImageFeatures, label_embeds: Tensor) -> tuple[ImageFeatures, Tensor]:
        if not torch.is_autocast_enabled(self.device.type):
            return features, label_embeds
        # In half precision different scores would round to the same number, and their order be lost.
        return ImageFeatures(*(f.float() for f in features)), label_embeds.float()

    def embed_labels(self, labels: Sequence[str] | LabelVocabulary | None = None) -> Tensor:
        """Label embeddings `[L, D]`, without a graph; computed once and kept until the prompt changes."""
        vocabulary = self.vocabulary_of(labels)
        # A parameter's version grows with every change in place (an optimizer step, a loaded state).
        key = (vocabulary, self.device, self.dtype, tuple(p._version for p in self.prompt.parameters()))
        if key not in self._label_embeds:
            # In full precision: it is done once, and what is kept serves with and without mixed precision.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                embeds = self.prompt(vocabulary)
            self._label_embeds = {**dict(list(self._label_embeds.items())[-7:]), key: embeds}
        return self._label_embeds[key]

    def vocabulary_of(self, labels: Sequence[str] | LabelVocabulary | None) -> LabelVocabulary:
        """The vocabulary that `labels` means: the model's own by default.

        Raises:
            UserError: There is none, or the names are no proper list.
        """
        labels = self.vocabulary if labels is None else labels
        if labels is None:
            raise UserError("labels: none given, and the model has no vocabulary; pass a list of label names")
        return LabelVocabulary.from_any(labels)

    @property
    def known_vocabulary(self) -> LabelVocabulary:
        """The model's vocabulary, where it must have one.

        Raises:
            UserError: It has none.
        """
        if self.vocabulary is None:
            raise UserError("labels: training and evaluation need a vocabulary; pass labels= or use a data module's")
        return self.vocabulary

    def features(self, batch: Mapping[str, Any]) -> ImageFeatures:
        """Features of a batch: kept on disk by `ovml.training.callbacks.feature_cache`, or of its pictures."""
        if "features" in batch:
            return ImageFeatures(batch["features"][:, 0], batch["features"][:, 1:])
        return self.encode_images(batch["pixel_values"])

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Features of normalised images `[B, 3, H, W]`, by the same blocks as in training."""
        features: ImageFeatures = self.image_encoder.tail(self.num_tail_layers)(
            self.image_encoder.trunk(pixel_values, self.num_tail_layers)
        )
        return features
