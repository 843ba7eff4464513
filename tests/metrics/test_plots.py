"""Figures of an evaluation, against scikit-learn."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve

from ovml import LabelVocabulary, OVMultiLabelClassifier, UserError, VisionStage
from ovml.data import DemoDataModule
from ovml.metrics import MultilabelMeanAveragePrecision, ScoreCounts
from ovml.metrics.plots.curves import BARS, evaluation_figures, labels_figure, protocol_scores
from ovml.training.callbacks import EvaluationPlots

FIGURES = {"labels", "labels_zsl", "precision_recall", "scores"}


def drawn(generator, *shape):
    return torch.randint(-1, 2, shape, generator=generator).to(torch.int8)


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 3e4]), st.sampled_from([16, 100]))
def test_curve_points_are_those_of_sklearn_at_the_edges(seed, scale, bins):
    generator = torch.Generator().manual_seed(seed)
    counts = ScoreCounts(bins)
    batches = []
    for _ in range(int(torch.randint(1, 6, (), generator=generator))):
        spread, centre = torch.rand(2, generator=generator).tolist()
        scores = (torch.randn(7, 5, generator=generator) * 10 ** (4 * spread - 2) + 5 * centre) * scale
        batches.append((scores, drawn(generator, 7, 5)))
        counts.update(*batches[-1])
    scores, targets = (torch.cat(parts).flatten() for parts in zip(*batches, strict=True))
    known = targets >= 0
    scores, present = scores[known].double().numpy(), (targets[known] == 1).numpy()
    assert counts.counts.sum(axis=(0, 2)).tolist() == [(~present).sum(), present.sum()]
    if not present.any():
        return
    precision, recall, thresholds = counts.precision_recall()
    expected = precision_recall_curve(present, scores)
    # The point of an edge is that of the lowest score that is not below it.
    at = np.searchsorted(expected[2], thresholds)
    np.testing.assert_allclose(precision, np.append(expected[0][at], 1))
    np.testing.assert_allclose(recall, np.append(expected[1][at], 0))
    assert len(thresholds) >= min(4, len(np.unique(scores)), bins // 8) or scores.std() < 0.2 * np.ptp(scores)


@given(st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=40), st.integers(1, 40))
def test_every_score_is_in_its_bin(values, batch_size):
    scores = torch.tensor(values)
    counts = ScoreCounts(bins=16)
    for batch in scores.split(batch_size):
        counts.update(batch, torch.ones(len(batch)))
    edges, exact = counts.edges, scores.double().numpy()
    expected = [((edges[i] <= exact) & (exact < edges[i + 1])).sum() for i in range(16)]
    assert counts.counts[0, 1].tolist() == [int(n) for n in expected]
    assert counts.counts.sum() == len(values)


def test_average_precision_of_fine_bins_is_nearly_sklearns():
    torch.manual_seed(0)
    scores, targets = torch.randn(2000), torch.rand(2000) < 0.2
    scores += targets
    counts = ScoreCounts()
    counts.update(scores, targets.long())
    assert counts.average_precision() == pytest.approx(average_precision_score(targets, scores), abs=2e-3)


def test_scores_that_are_not_finite_and_unknown_targets_are_left_out():
    counts = ScoreCounts(bins=8)
    counts.update(torch.tensor([1.0, float("nan"), float("inf"), 3.0, 2.0]), torch.tensor([1, 1, 0, -1, 0]))
    assert counts.counts.sum(axis=(0, 2)).tolist() == [1, 1]
    assert ScoreCounts().average_precision() == 0


@pytest.mark.parametrize("known", [1.0, 0.02])
def test_counts_of_a_metric_are_those_of_its_batches(known):
    torch.manual_seed(0)
    metric, counts, expected = MultilabelMeanAveragePrecision(), ScoreCounts(groups=2), ScoreCounts(groups=2)
    groups = torch.tensor([0] * 30 + [1] * 20)
    for size in (9, 30, 1):
        scores, targets = torch.randn(size, 50), torch.randint(0, 2, (size, 50))
        targets[torch.rand(size, 50) >= known] = -1
        metric.update(scores, targets)
        expected.update(scores, targets, groups)
    counts.update_pieces(metric.pieces(), groups)
    assert counts.counts.sum() == expected.counts.sum() > 0
    np.testing.assert_array_equal(counts.counts.sum(axis=2), expected.counts.sum(axis=2))


def bars(figure):
    """Label and length of every bar."""
    for axes in figure.axes:
        names = [text.get_text() for text in axes.get_yticklabels()]
        yield from zip(names, [bar.get_width() for bar in axes.containers[0]], strict=True)


@pytest.mark.parametrize("num_labels", [12, 60])
def test_bars_are_sklearns_average_precision(num_labels):
    torch.manual_seed(1)
    vocabulary = LabelVocabulary(tuple(f"s{i}" for i in range(num_labels - 5)), tuple(f"u{i}" for i in range(5)))
    scores, targets = torch.rand(40, num_labels), torch.randint(0, 2, (40, num_labels))
    targets[:, 3] = 0
    figures = evaluation_figures(scores, targets, vocabulary)
    expected = {
        name: 100 * average_precision_score(targets[:, i], scores[:, i])
        for i, name in enumerate(vocabulary.names)
        if i != 3
    }
    ranked = sorted(expected, key=expected.get, reverse=True)
    shown = ranked if len(ranked) <= 2 * BARS else ranked[:BARS] + ranked[-BARS:]
    assert [name for name, _ in bars(figures["labels"])] == shown
    for name, value in [*bars(figures["labels"]), *bars(figures["labels_zsl"])]:
        assert value == pytest.approx(expected[name], abs=1e-3)
    assert "1 labels without" in figures["labels"].get_suptitle()


def test_the_curve_drawn_is_the_one_counted():
    torch.manual_seed(2)
    scores, targets = torch.randn(50, 6).round(decimals=1), torch.randint(0, 2, (50, 6))
    figures = evaluation_figures(scores, targets, LabelVocabulary(("a", "b", "c"), ("d", "e", "f")))
    curves = {line.get_label().split(":")[0]: line for line in figures["precision_recall"].axes[0].lines}
    for name, columns in (("GZSL", slice(None)), ("ZSL", slice(3, None))):
        x, y = curves[name].get_data()
        precision, recall, _ = precision_recall_curve(targets[:, columns].flatten(), scores[:, columns].flatten())
        assert set(zip(x[:-1].round(6), y[:-1].round(6), strict=True)) <= set(
            zip(recall.round(6), precision.round(6), strict=True)
        )


@pytest.mark.parametrize("unseen", [(), ("long " * 30, "$x^2$", "一")])
def test_figures_of_nothing_present_and_of_odd_names(unseen, tmp_path):
    vocabulary = LabelVocabulary(("a",), unseen)
    size = (4, len(vocabulary))
    for targets in (torch.zeros(size), torch.full(size, -1.0), torch.ones(size)):
        figures = evaluation_figures(torch.rand(size), targets, vocabulary)
        assert set(figures) == (FIGURES if unseen else FIGURES - {"labels_zsl"})
        for figure in figures.values():
            figure.canvas.draw()


def test_long_names_leave_room_for_the_bars():
    figure = labels_figure(torch.rand(60), ["wide name " * 9] * 60, [False] * 30 + [True] * 30)
    figure.canvas.draw()
    assert all(axes.get_position().width > 0.15 for axes in figure.axes)


def test_shapes_that_do_not_fit_are_named():
    vocabulary = LabelVocabulary(("a", "b"), ("c",))
    with pytest.raises(UserError, match=r"\[N, 3\]"):
        evaluation_figures(torch.rand(4, 2), torch.zeros(4, 2), vocabulary)
    with pytest.raises(UserError, match="zsl_scores"):
        evaluation_figures(torch.rand(4, 3), torch.zeros(4, 3), vocabulary, torch.rand(4, 3))


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    return DemoDataModule(8, 10, cache_dir=str(tmp_path_factory.mktemp("data")), clip=tiny, batch_size=4)


@pytest.fixture
def model(tiny, data):
    return OVMultiLabelClassifier(tiny, data.vocabulary, stages=[VisionStage(epochs=2, warmup_epochs=0)])


def trainer(**options):
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **{**plain, **options})


def test_a_test_writes_figures_and_changes_no_number(model, data, tmp_path):
    plots = EvaluationPlots(str(tmp_path), row="vision")
    drawn = trainer(callbacks=[plots]).test(model, datamodule=data, verbose=False)
    plain = trainer().test(model, datamodule=data, verbose=False)
    assert drawn == plain
    files = sorted((tmp_path / "vision").iterdir())
    assert [file.name for file in files] == sorted(f"{name}.png" for name in FIGURES)
    for file in files:
        with Image.open(file) as image:
            assert 400 < image.width < 1600
            assert 200 < image.height < 1000
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_what_the_callback_counts_is_what_the_model_scores(model, data, tmp_path):
    found = {}

    class Keep(EvaluationPlots):
        def on_test_epoch_end(self, trainer, pl_module):
            super().on_test_epoch_end(trainer, pl_module)
            found.update(protocol_scores(pl_module.evaluation))

    trainer(callbacks=[Keep(str(tmp_path))]).test(model, datamodule=data, verbose=False)
    model.eval()
    with torch.no_grad():
        batches = [(model(b["pixel_values"]), b["labels"]) for b in data.test_dataloader()]
    scores, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = ScoreCounts(groups=2)
    groups = torch.tensor([0] * len(data.vocabulary.seen) + [1] * len(data.vocabulary.unseen))
    expected.update(scores, targets, groups)
    counts = found["gzsl"].counts.counts
    assert counts.sum(axis=2).tolist() == expected.counts.sum(axis=2).tolist()
    for label, value in enumerate(found["gzsl"].per_label.tolist()):
        present = targets[:, label] == 1
        if present.any():
            assert value == pytest.approx(average_precision_score(present, scores[:, label]), abs=1e-4)
        else:
            assert np.isnan(value)


def test_a_fit_adds_figures_to_tensorboard_at_each_validation(model, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path / "log"))
    options = {"max_epochs": 2, "logger": logger, "log_every_n_steps": 1}
    trainer(callbacks=[EvaluationPlots(str(tmp_path / "plots"))], **options).fit(model, datamodule=data)
    events = EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {f"val/{name}" for name in FIGURES}
    assert [event.step for event in events.Images("val/scores")] == [2, 4]
    assert not (tmp_path / "plots").exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"ovml\[plots\]"):
        EvaluationPlots()
