"""What `Trainer.fit` does with a classifier: one stage of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ovml.encoders import ImageFeatures, ImageTail
from ovml.encoders.execution import check_compiler
from ovml.training.distributed import image_share, shard
from ovml.training.optim import WarmupCosineLR
from ovml.training.precision import warn_of_slow_precision
from ovml.training.scoring import ScoringModule
from ovml.training.stages import Stage
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier


class TrainingSteps(ScoringModule):
    """The training's part of a LightningModule: what learns in a stage, its loss, its optimizer."""

    teacher: ImageTail
    _seen_vocabulary: LabelVocabulary | None

    def setup(self, stage: str) -> None:
        """See that `compile` works and the precision pays, and take over how the data module prepares pictures.

        Raises:
            UserError: `compile` cannot work here, or the data module's `resize` does not go with its checkpoint.
        """
        self._label_embeds.clear()
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            self.image_spec = getattr(data, "image_spec", self.image_spec)
        device = self.trainer.strategy.root_device
        if self.image_encoder.execution.compile:
            check_compiler(device)
        if self.trainer.is_global_zero:
            warn_of_slow_precision(str(self.trainer.precision), device.type)

    def start_stage(self, stage: Stage) -> None:
        """Make this stage's parameters, and no others, learn."""
        self.stage = stage
        self.requires_grad_(False)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        self._groups = []  # by name: a strategy may replace the parameters by shards of one dimension
        for group in stage.parameter_groups(cast("OVMultiLabelClassifier", self)):
            for parameter in group["params"]:
                parameter.requires_grad_(True)
            self._groups.append({**group, "params": [names[id(parameter)] for parameter in group["params"]]})
        if not any(parameter.requires_grad for parameter in self.image_encoder.parameters()):
            self.image_encoder.eval()  # an earlier stage's dropout ends with it

    def configure_model(self) -> None:
        """Cut the parameters into shards where Lightning's `ModelParallelStrategy` asks for it."""
        if self.device_mesh is not None:
            # The text tower stays whole within a step: it is small, and not all processes may run it equally often.
            blocks = [*self.image_encoder.vision_model.encoder.layers, *self.teacher.layers]
            entries = ("training_step", "validation_step", "test_step", "predict_step")
            shard(self, blocks, self.device_mesh["data_parallel"], entries)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and half-cosine, stepped per batch."""
        parameters = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in self.named_parameters()}
        groups = [{**group, "params": [parameters[name] for name in group["params"]]} for group in self._groups]
        optimizer = torch.optim.AdamW(groups, lr=self.stage.lr)
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or self.stage.epochs
        warmup = min(self.stage.warmup_epochs / epochs, 1) * total
        schedule = WarmupCosineLR(optimizer, total_steps=total, warmup_steps=warmup, min_lr=self.stage.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Mean loss of a batch's images; those without a present seen label are left out.

        Of several processes each counts as much as it has such images, so that the mean of their gradients is the
        gradient of the mean over all images.
        """
        seen = self.known_vocabulary.seen_slice
        targets = batch["labels"][:, seen]
        kept = (targets == 1).any(dim=1)
        images, together = int(kept.sum()), self.trainer.world_size > 1
        share = image_share(images, self.device) if together else 1
        if not images:
            if not together:
                return None  # the step is skipped
            kept[0] = True  # all processes run the same modules, whose parameters they may share
        student, teacher = self._student_and_teacher(batch, kept)
        label_embeds, targets = self._scored_labels(targets[kept])
        logits = self._training_logits(student, label_embeds, targets, teacher)
        if not images:
            return self._zero_loss(torch.stack(logits))
        loss: Tensor = torch.stack([self.loss(some, targets) for some in logits]).sum()
        self.log("train/classification", loss, batch_size=images)
        if teacher is not None and self.distillation_weight:
            distillation = self.distillation(student, teacher)
            self.log("train/distillation", distillation, batch_size=images)
            loss = loss + self.distillation_weight * distillation
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        return loss * share

    def _training_logits(
        self, student: ImageFeatures, label_embeds: Tensor, targets: Tensor, teacher: ImageFeatures | None
    ) -> tuple[Tensor, ...]:
        widened = self._widened(student, label_embeds)
        if teacher is not None:
            teacher, _ = self._widened(teacher, label_embeds)
        with torch.autocast(self.device.type, enabled=False):
            return self.head.training_logits(*widened, targets, teacher)

    def _scored_labels(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the seen labels that this step ranks, and their columns of the targets `[B, S]`."""
        number = self.stage.labels_per_step
        if number is None or number >= targets.shape[1]:
            seen = self.known_vocabulary.seen_slice
            return self.embed_labels()[seen] if self.stage.fixed_prompt else self.prompt(self._seen_vocabulary), targets
        present = (targets == 1).any(dim=0)
        # A random order with the batch's present labels first.
        order = (torch.rand(len(present)).to(present.device) + present).argsort(descending=True)
        columns = order[: max(number, int(present.sum()))].sort().values
        if self.stage.fixed_prompt:
            return self.embed_labels()[columns], targets[:, columns]
        return self.prompt.embed(tuple(self.known_vocabulary.texts[i] for i in columns.tolist())), targets[:, columns]

    def _student_and_teacher(
        self, batch: Mapping[str, Any], kept: Tensor
    ) -> tuple[ImageFeatures, ImageFeatures | None]:
        if "features" in batch:
            return ImageFeatures(*(part[kept] for part in self.features(batch))), None
        with torch.no_grad():
            hidden_states = self.image_encoder.trunk(batch["pixel_values"][kept], self.num_tail_layers)
        student = self.image_encoder.tail(self.num_tail_layers)(hidden_states)
        if not (self.stage.distil and (self.distillation_weight or self.head.uses_teacher)):
            return student, None
        with torch.no_grad():
            return student, self.teacher(hidden_states)

    def _zero_loss(self, logits: Tensor) -> Tensor:
        """A loss of 0 that all learning parameters take part in."""
        parts = [*self.loss.parameters(), *self.distillation.parameters()]
        return torch.stack([logits.sum(), *(p.sum() for p in parts if p.requires_grad)]).sum() * 0
