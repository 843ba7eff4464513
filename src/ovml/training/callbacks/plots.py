"""A Lightning callback that draws the figures of an evaluation."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.metrics.plots.curves import draw_figures, protocol_scores
from ovml.metrics.plots.files import Figure, new_figure, save_png
from ovml.metrics.tables import ROW_TITLES


class EvaluationPlots(Callback):
    """Draws precision and recall, scores, and the best and the worst labels of every evaluation.

    `Trainer.test` and `Trainer.validate` write PNG files; during `Trainer.fit` each validation adds figures to
    TensorBoard. The scores that the metrics keep are counted in bins piece by piece, so little memory is needed.

    Args:
        folder: Folder of the PNG files.
        row: What is evaluated, such as a stage's name: a folder inside `folder`, and part of the titles.
        bins: Of the scores, in curves and histograms.

    Raises:
        UserError: matplotlib is not installed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[EvaluationPlots("plots")], logger=False)
    """

    def __init__(self, folder: str = "plots", row: str = "", bins: int = 1000) -> None:
        new_figure(1, 1)  # fails now, not after the evaluation, where matplotlib is missing
        self.folder = Path(folder)
        self.row = row
        self.bins = bins

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        self._draw(trainer, pl_module, "test")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files; during a fit, add to TensorBoard."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def _draw(self, trainer: pl.Trainer, model: pl.LightningModule, split: str) -> None:
        evaluation: OpenVocabularyEvaluation = model.evaluation  # type: ignore[assignment]
        if evaluation.vocabulary is None:
            return
        evaluation.update_empty(model.device)  # a process without images takes part in gathering
        parts = protocol_scores(evaluation, self.bins, draws=trainer.is_global_zero)
        if not parts:
            return
        figures = draw_figures(parts, ROW_TITLES.get(self.row, self.row))
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
