"""A Lightning callback that draws what an evaluation found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.plots.curves import draw_figures, label_groups, protocol_columns
from ovml.metrics.plots.files import new_figure, save_png
from ovml.metrics.score_counts import ScoreCounts
from ovml.metrics.tables import ROW_TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ovml.classifier import OVMultiLabelClassifier


class EvaluationPlots(Callback):
    """Draws precision and recall, scores, and the best and the worst labels of every evaluation.

    `Trainer.test` and `Trainer.validate` write PNG files; during `Trainer.fit` each validation adds them to
    TensorBoard. What is drawn is what the model's own metrics counted, sorted into bins piece by piece, so that beside
    the metrics next to no memory is needed.

    Args:
        folder: Where PNG files are written.
        row: What is evaluated, such as a stage's name: the files' folder inside `folder`, and part of the titles.
        bins: Of the scores, in curves and histograms.

    Raises:
        UserError: matplotlib is not installed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[EvaluationPlots("plots")], logger=False)
    """

    def __init__(self, folder: str = "plots", row: str = "", bins: int = 1000) -> None:
        new_figure(1, 1)  # says now, and not after the evaluation, that matplotlib is missing
        self.folder = Path(folder)
        self.row = row
        self.bins = bins

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        self._draw(trainer, cast("OVMultiLabelClassifier", pl_module), "test")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files; during a fit, add to TensorBoard."""
        if not trainer.sanity_checking:
            self._draw(trainer, cast("OVMultiLabelClassifier", pl_module), "val")

    def _draw(self, trainer: pl.Trainer, model: OVMultiLabelClassifier, split: str) -> None:
        # All processes take part in gathering, one draws.
        found = self._count(model, trainer.is_global_zero)
        if found is None or model.vocabulary is None:
            return
        figures = draw_figures(*found, model.vocabulary, ROW_TITLES.get(self.row, self.row))
        if trainer.state.fn == "fit":
            self._log(trainer, split, figures)
            return
        for name, figure in figures.items():
            save_png(figure, self.folder / self.row / f"{name}.png")

    @staticmethod
    def _log(trainer: pl.Trainer, split: str, figures: dict[str, Figure]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, figure in figures.items():
                    logger.experiment.add_figure(f"{split}/{name}", figure, global_step=trainer.global_step)

    def _count(
        self, model: OVMultiLabelClassifier, draws: bool
    ) -> tuple[dict[str, ScoreCounts], dict[str, Tensor]] | None:
        """What the model's metrics hold, by protocol, before the model resets them; None where nothing is drawn."""
        vocabulary = model.vocabulary
        if vocabulary is None:
            return None
        counts, per_label = {}, {}
        for protocol in ("zsl", "gzsl") if vocabulary.unseen else ("seen",):
            columns = range(len(vocabulary))[protocol_columns(vocabulary)[protocol]]
            # A process that was given no image has something to gather all the same.
            nothing = torch.empty(0, len(columns), device=model.device)
            model.evaluation.update(protocol, nothing, nothing.to(torch.int8))
            metric = model.evaluation.protocols[protocol]["mAP"]  # type: ignore[index]
            with metric.sync_context():
                if draws:
                    counts[protocol] = ScoreCounts(self.bins, groups=2)
                    count_metric(metric, counts[protocol], label_groups(vocabulary, protocol))
                    per_label[protocol] = metric.per_label()
        return (counts, per_label) if draws else None


def count_metric(metric: MultilabelMeanAveragePrecision, counts: ScoreCounts, groups: Tensor) -> None:
    """Count the scores that a metric keeps, one piece of them after the other.

    Args:
        metric: Of any number of updates.
        counts: Updated.
        groups: The group of each label, `[L]`.
    """
    for scores, marks, labels in metric.pieces():
        counts.update(scores, marks, groups if labels is None else groups.to(labels.device)[labels])
