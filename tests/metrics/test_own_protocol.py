"""A protocol that a researcher writes outside the package gets metrics, k, a title, table rows and figures."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch.utils.data import DataLoader

from ovml import LabelVocabulary, OVMultiLabelClassifier
from ovml.heads import GlobalHead
from ovml.metrics import EvaluationProtocol
from ovml.metrics.plots.curves import evaluation_figures
from ovml.metrics.tables import results_table
from ovml.training.callbacks import EvaluationPlots

VOCABULARY = LabelVocabulary(("cat", "black dog", "red car", "sky"), ("black cat", "sea", "red sky"))
COLORED = [6, 1, 2, 4]


class ColoredLabels(EvaluationProtocol):
    name = "colored_labels"

    def columns(self, vocabulary):
        """In an order of its own."""
        colored = [i for i, name in enumerate(vocabulary) if name.split()[0] in ("black", "red")]
        return [colored[-1], *colored[:-1]]


class FirstLabel(EvaluationProtocol):
    name = "first"
    title = "1st label"

    def columns(self, vocabulary):
        return range(1)


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory):
    """The model, what it measured, its scores of the colored labels, their targets, and the folder of the figures."""
    torch.manual_seed(0)
    protocols = [ColoredLabels(), FirstLabel()]
    model = OVMultiLabelClassifier(tiny, VOCABULARY, head=GlobalHead(), stages=[], ks=[2, 3], protocols=protocols)
    labels = torch.randint(0, 2, (12, len(VOCABULARY)), dtype=torch.int8)
    labels[0], labels[1] = 0, 1
    rows = [{"pixel_values": torch.randn(3, 48, 48), "labels": y, "image_id": str(i)} for i, y in enumerate(labels)]
    folder = tmp_path_factory.mktemp("plots")
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", callbacks=[EvaluationPlots(str(folder))], **options)
    (found,) = trainer.test(model, DataLoader(rows, 5), verbose=False)
    with torch.no_grad():
        names = [VOCABULARY.names[i] for i in COLORED]
        scores = model(torch.stack([row["pixel_values"] for row in rows]), names)
    return (
        model,
        {name.removeprefix("test/"): value for name, value in found.items()},
        scores,
        labels[:, COLORED],
        folder,
    )


def test_its_labels_are_scored_among_themselves_with_each_k_that_they_allow(evaluated):
    _, found, scores, targets, _ = evaluated
    measured = {name.removeprefix("colored_labels/") for name in found if name.startswith("colored_labels/")}
    assert measured == {"mAP", *(f"{name}@{k}" for name in ("P", "R", "F1") for k in (2, 3))}
    assert {name for name in found if name.startswith("first/")} == {"first/mAP"}
    expected = average_precision_score(targets.numpy(), scores.double().numpy(), average="macro")
    assert found["colored_labels/mAP"] == pytest.approx(expected, abs=1e-6)
    hits = targets.gather(1, scores.topk(3).indices).sum()
    assert found["colored_labels/P@3"] == pytest.approx(float(hits) / 36, abs=1e-6)


def test_its_title_heads_its_rows_of_the_table(evaluated):
    model, found, *_ = evaluated
    assert model.evaluation.titles == {
        "zsl": "ZSL",
        "gzsl": "GZSL",
        "seen": "seen",
        "colored_labels": "colored labels",
        "first": "1st label",
    }
    table = results_table({"a": found, "b": found}, "test", model.evaluation.titles, {"a": "model A"})
    labels, rows, mean_ap, *_ = (list(column.cells) for column in table.columns)
    assert labels == ["ZSL", "", "GZSL", "", "colored labels", "", "1st label", ""]
    assert rows == ["model A", "b"] * 4
    assert mean_ap[4] == f"{100 * found['colored_labels/mAP']:.1f}"


def test_it_has_figures_of_its_own_in_each_evaluation(evaluated):
    *_, folder = evaluated
    assert {file.stem for file in folder.iterdir()} == {
        "precision_recall",
        "scores",
        "labels",
        "labels_zsl",
        "labels_colored_labels",
        "labels_first",
    }


def test_figures_show_its_labels_and_its_curve():
    torch.manual_seed(0)
    scores, targets = torch.rand(60, 7).round(decimals=1), torch.randint(0, 2, (60, 7))
    figures = evaluation_figures(scores, targets, VOCABULARY, title="test", protocols=[ColoredLabels(), FirstLabel()])
    figure = figures["labels_colored_labels"]
    shown = {
        text.get_text(): bar for text, bar in zip(figure.axes[0].get_yticklabels(), figure.axes[0].patches, strict=True)
    }
    assert set(shown) == {VOCABULARY.names[i] for i in COLORED}
    for i in COLORED:
        expected = 100 * average_precision_score(targets[:, i], scores[:, i])
        assert shown[VOCABULARY.names[i]].get_width() == pytest.approx(expected, abs=1e-3)
    seen, unseen = (shown[name].get_facecolor() for name in ("red car", "red sky"))
    assert seen == shown["black dog"].get_facecolor() != unseen == shown["black cat"].get_facecolor()
    assert "(colored labels, test)" in figure.get_suptitle()
    curves = {line.get_label().split(":")[0]: line for line in figures["precision_recall"].axes[0].lines}
    assert {"ZSL", "GZSL", "colored labels", "1st label"} <= set(curves)
    assert len({curves[title].get_color() for title in ("ZSL", "GZSL", "colored labels", "1st label")}) == 4
    x, y = curves["colored labels"].get_data()
    precision, recall, _ = precision_recall_curve(targets[:, COLORED].flatten(), scores[:, COLORED].flatten())
    points = set(zip(np.round(recall, 6), np.round(precision, 6), strict=True))
    assert set(zip(x[:-1].round(6), y[:-1].round(6), strict=True)) <= points


def test_where_no_label_is_unseen_the_seen_ones_stand_beside_it():
    vocabulary = LabelVocabulary(VOCABULARY.names)
    figures = evaluation_figures(torch.rand(9, 7), torch.rand(9, 7).round(), vocabulary, protocols=[FirstLabel()])
    assert set(figures) == {"precision_recall", "scores", "labels", "labels_first"}
    table = results_table({"a": {"seen/mAP": 0.5, "first/mAP": 0.25}}, "test")
    assert list(table.columns[0].cells) == ["seen", "first"]
