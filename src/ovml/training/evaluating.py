"""What `Trainer.validate`, `test` and `predict` do with a classifier."""

from __future__ import annotations

from typing import Any

from ovml.training.scoring import ScoringModule


class EvaluationSteps(ScoringModule):
    """The evaluation's part of a LightningModule: every protocol scored by itself, metrics logged at the end."""

    def on_validation_start(self) -> None:
        """Forget label embeddings where the prompt learns: of a shard no version tells that it changed."""
        if self.stages and not self.stage.fixed_prompt:
            self._label_embeds.clear()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics of every protocol, each scored by itself."""
        if len(batch["image_id"]) == 0:  # all of its pictures were broken and left out
            return
        features = self.features(batch)
        label_embeds = self.embed_labels()
        self.evaluation.prepare(self.known_vocabulary)
        self.evaluation.update(lambda columns: self.score(features, label_embeds[columns]), batch["labels"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `val/...`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test/...`."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        self.evaluation.prepare(self.known_vocabulary)
        self.evaluation.update_empty(self.device)  # a process without images takes part in the others' sums
        metrics = self.evaluation.compute()
        if not self.trainer.sanity_checking:
            with self.evaluation.gathered():  # once for both
                if split == "val":
                    self.calibration = self.evaluation.calibrate()
                metrics |= self.evaluation.calibration_metrics(self.calibration)
        self.evaluation.reset()
        # The metrics have been summed over processes: they are the same on all of them.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        headline = "zsl/mAP" if "zsl/mAP" in metrics else "seen/mAP"
        self.log(headline, metrics[headline], prog_bar=True, logger=False, sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Scores `[B, L]` of the vocabulary with the images' ids."""
        if len(batch["image_id"]) == 0:
            return {"image_id": [], "scores": batch["pixel_values"]}
        return {"image_id": batch["image_id"], "scores": self(batch["pixel_values"])}
