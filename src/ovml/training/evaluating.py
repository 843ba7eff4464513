"""What `Trainer.validate`, `test` and `predict` do with a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovml.metrics.protocols import Protocol
from ovml.training.scoring import ScoringModule
from ovml.vocabulary import LabelVocabulary


class EvaluationSteps(ScoringModule):
    """The evaluation's part of a LightningModule: every protocol scored by itself, metrics logged at the end."""

    protocols: list[Protocol]
    _columns: tuple[LabelVocabulary | None, dict[str, slice | list[int]]] = (None, {})

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
        for protocol, columns in self._protocols().items():
            logits = self.score(features, label_embeds[columns])
            self.evaluation.update(protocol, logits, batch["labels"][:, columns])

    def _protocols(self) -> dict[str, slice | list[int]]:
        """Columns of the vocabulary that each protocol scores; protocols without any are left out."""
        vocabulary = self.known_vocabulary
        if self._columns[0] is not vocabulary:
            found = {protocol.name: _index(protocol.columns(vocabulary)) for protocol in self.protocols}
            self._columns = vocabulary, {name: columns for name, columns in found.items() if columns}
        return self._columns[1]

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `val/...`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test/...`."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        for protocol, columns in self._protocols().items():
            # A process that was given no image takes part in the others' sums all the same.
            nothing = torch.empty(0, len(self.known_vocabulary), device=self.device)[:, columns]
            self.evaluation.update(protocol, nothing, nothing.to(torch.int8))
        metrics = self.evaluation.compute()
        if not (split == "val" and self.trainer.sanity_checking):
            metrics |= self._calibrate(fit=split == "val")
        self.evaluation.reset()
        # The metrics have been summed over processes: they are the same on all of them.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        headline = "zsl/mAP" if "zsl/mAP" in metrics else "seen/mAP"
        self.log(headline, metrics[headline], prog_bar=True, logger=False, sync_dist=True)

    def _calibrate(self, fit: bool) -> dict[str, Tensor]:
        """How good the probabilities are, over all labels; on validation data after fitting them."""
        vocabulary = self.known_vocabulary
        metric = self.evaluation.protocols["gzsl" if vocabulary.unseen else "seen"]["mAP"]  # type: ignore[index]
        with metric.sync_context():
            if fit:
                self.calibration = self.calibrator.calibrate(metric, vocabulary)
            if self.calibration is None or self.calibration.vocabulary != vocabulary:
                return {}
            found = self.calibration.evaluate(metric)
        return {f"calibration/{name}": torch.tensor(value) for name, value in found.items() if not math.isnan(value)}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Scores `[B, L]` of the vocabulary with the images' ids."""
        if len(batch["image_id"]) == 0:
            return {"image_id": [], "scores": batch["pixel_values"]}
        return {"image_id": batch["image_id"], "scores": self(batch["pixel_values"])}


def _index(columns: Sequence[int]) -> slice | list[int] | None:
    """What selects the columns: neighbours as a slice, which copies nothing."""
    if len(columns) and list(columns) == list(range(columns[0], columns[0] + len(columns))):
        return slice(columns[0], columns[0] + len(columns))
    return list(columns) or None
