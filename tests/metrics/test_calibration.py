"""Probabilities of scores, thresholds, and how far they can be trusted."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_calibration_error

from ovml import LabelVocabulary, OVMultiLabelClassifier, Tagger, UserError
from ovml.data.synthetic.scenes import draw_scene
from ovml.metrics import MultilabelMeanAveragePrecision, OpenVocabularyEvaluation
from ovml.metrics.calibration import Calibration
from ovml.metrics.calibrators import PlattScaling, TemperatureScaling, best_f1_score, evaluate_calibration
from ovml.metrics.tables import calibration_table

LABELS = LabelVocabulary(("a", "b", "c", "d", "e"), ("f", "g"))


def drawn(size=400, known=1.0, slope=6.0, offset=-2.0, seed=0):
    """Scores whose targets are drawn with the probability that a curve gives them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, len(LABELS), generator=generator) / 2
    draws = torch.rand(scores.shape, generator=generator)
    targets = (draws < torch.sigmoid(slope * scores + offset)).long()
    targets[torch.rand(scores.shape, generator=generator) >= known] = -1
    return scores, targets


def metric_of(scores, targets, batch_size=150):
    metric = MultilabelMeanAveragePrecision()
    for some in zip(scores.split(batch_size), targets.split(batch_size), strict=True):
        metric.update(*some)
    return metric


@pytest.mark.parametrize("known", [1.0, 0.5, 0.05])
def test_platt_scaling_is_logistic_regression_on_the_known_targets(known):
    scores, targets = drawn(3000, known)
    calibration = PlattScaling().calibrate(metric_of(scores, targets), LABELS)
    kept = targets >= 0
    theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(scores[kept][:, None].double().numpy(), targets[kept].numpy())
    assert calibration.label_thresholds is None
    assert calibration.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=0.02)
    assert calibration.offset == pytest.approx(float(theirs.intercept_[0]), rel=0.02)


def test_the_curve_that_drew_the_targets_is_found():
    scores, targets = drawn(20_000)
    calibration = PlattScaling().calibrate(metric_of(scores, targets), LABELS)
    assert (calibration.slope, calibration.offset) == pytest.approx((6, -2), rel=0.05)
    temperature = TemperatureScaling().calibrate(metric_of(*drawn(20_000, slope=4.0, offset=0.0)), LABELS)
    assert temperature.slope == pytest.approx(4, rel=0.05)
    assert temperature.offset == 0


def test_scores_that_separate_the_targets_give_a_finite_curve():
    scores = torch.tensor([[-1.0, 1.0]] * 30)
    calibration = PlattScaling().calibrate(metric_of(scores, (scores > 0).long()), LabelVocabulary(("a", "b")))
    assert calibration.probabilities(torch.tensor(1.0)) == pytest.approx(31 / 32, abs=1e-3)
    assert calibration.probabilities(torch.tensor(-1.0)) == pytest.approx(1 / 32, abs=1e-3)


def test_scores_that_mislead_say_no_more_than_the_share_of_present_targets():
    scores, targets = drawn(2000)
    calibration = PlattScaling().calibrate(metric_of(-scores, targets), LABELS)
    assert calibration.slope == 0


@pytest.mark.parametrize("target", [0, 1, -1])
def test_without_both_kinds_of_targets_there_is_no_calibration(target):
    scores, targets = drawn(10)
    assert PlattScaling().calibrate(metric_of(scores, torch.full_like(targets, target)), LABELS) is None


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.35, 0.7, 0.9]), min_size=1, max_size=30),
    bits=st.integers(min_value=1, max_value=2**30 - 1),
)
def test_no_threshold_gives_a_greater_f1(scores, bits):
    present = np.array([bits >> i & 1 == 1 for i in range(len(scores))])
    scores = np.array(scores)
    found = best_f1_score(scores, present)
    if not present.any():
        assert np.isnan(found)
        return
    f1 = {least: f1_score(present, scores >= least) for least in sorted(set(scores))}
    assert f1[found] == pytest.approx(max(f1.values()))


@pytest.mark.parametrize("known", [1.0, 0.05])
def test_thresholds_are_the_best_for_all_labels_together_and_for_each(known):
    scores, targets = drawn(150 if known == 1 else 800, known)
    metric = metric_of(scores, targets)
    calibration = PlattScaling("per-label", min_present=12).calibrate(metric, LABELS)
    kept = targets >= 0
    probabilities = calibration.probabilities(scores)
    all_together = probabilities[kept].numpy(), targets[kept].numpy()
    best = max(f1_score(all_together[1], all_together[0] >= least) for least in np.unique(all_together[0]))
    returned = all_together[0] >= calibration.threshold - 1e-4
    assert f1_score(all_together[1], returned) == pytest.approx(best, abs=2e-3)
    for label, least in enumerate(calibration.thresholds(LABELS).tolist()):
        column = kept[:, label]
        if (targets[:, label] == 1).sum() < 12:
            assert least == pytest.approx(calibration.threshold)
            continue
        p, t = probabilities[column, label].numpy(), targets[column, label].numpy()
        best = max(f1_score(t, p >= value) for value in p)
        assert f1_score(t, p >= least - 1e-6) == pytest.approx(best)


@pytest.mark.parametrize("known", [1.0, 0.05])
def test_calibration_error_is_that_of_torchmetrics(known):
    scores, targets = drawn(600, known)
    metric = metric_of(scores, targets)
    calibration = Calibration(4.0, -1.0, 0.3, LABELS)
    found = evaluate_calibration(calibration, metric)
    kept = targets >= 0
    probabilities, known = calibration.probabilities(scores[kept]), targets[kept]
    assert found["ECE"] == pytest.approx(float(binary_calibration_error(probabilities, known, n_bins=15)), abs=1e-6)
    returned = probabilities >= 0.3
    theirs = binary_calibration_error(probabilities[returned], known[returned], n_bins=15)
    assert found["ECE given"] == pytest.approx(float(theirs), abs=1e-6)
    assert found["F1"] == pytest.approx(f1_score(known, returned))


def test_thresholds_of_other_labels_are_the_global_one():
    calibration = Calibration(1.0, 0.0, 0.25, LABELS, tuple(0.1 * i for i in range(7)))
    asked = LabelVocabulary(("new", "C", "a"))
    assert calibration.thresholds(asked).tolist() == pytest.approx([0.25, 0.2, 0.0])
    assert calibration.together(asked).names == ("new", "C", "a", "b", "d", "e", "f", "g")
    assert calibration.together(LABELS) is LABELS


def test_plain_values_and_back():
    calibration = Calibration(1.5, -0.5, 0.25, LABELS, (0.5,) * 7)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    broken = {**calibration.to_dict(), "label_thresholds": [0.5]}
    for values in (broken, {}, None):
        with pytest.raises(UserError, match="x: not a calibration: .*evaluate the model again"):
            Calibration.from_dict(values, "x")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("slope", "steep", "slope must be a finite number; got 'steep'"),
        ("slope", float("nan"), "slope must be a finite number; got nan"),
        ("slope", -1, "slope must be 0 or greater"),
        ("slope", 1e300, "slope must be at most"),
        ("offset", float("inf"), "offset must be a finite number"),
        ("offset", -(10**400), "offset must be a finite number"),
        ("offset", True, "offset must be a finite number; got True"),
        ("threshold", 99, "threshold must be from 0 to 1; got 99"),
        ("threshold", None, "threshold must be a finite number; got None"),
        ("label_thresholds", [0.5] * 6 + [2], "label_thresholds, 6 must be from 0 to 1; got 2"),
        ("label_thresholds", "abc", "label_thresholds must be a list or null; got 'abc'"),
        ("vocabulary", 5, "vocabulary must be a mapping; got 5"),
        ("vocabulary", {"seen": "abc"}, "seen must be a list"),
        ("vocabulary", {"seen": []}, "the list is empty"),
        ("other", 1, "without the key 'other'"),
    ],
)
def test_damaged_values_end_in_one_line(name, value, message):
    values = Calibration(1.5, -0.5, 0.25, LABELS, (0.5,) * 7).to_dict()
    with pytest.raises(UserError, match=f"x: not a calibration: .*{message}.*; evaluate the model again") as info:
        Calibration.from_dict({**values, name: value}, "x")
    assert "\n" not in str(info.value)


@pytest.fixture(scope="module")
def model():
    vocabulary = LabelVocabulary(("red circle", "blue star", "heart"), ("green moon",))
    model = OVMultiLabelClassifier("ovml-demo", labels=vocabulary, stages=[])
    model.model.calibration = Calibration(3.0, -1.0, 0.4, vocabulary, (0.05, 0.9, 0.4, 0.4))
    return model.eval()


IMAGES = [draw_scene(0, "test", i).image for i in range(3)]


def test_a_probability_does_not_depend_on_which_known_labels_are_asked_for(model):
    one = dict(model.predict_labels(IMAGES[0], labels=["heart"], probabilities=True))
    others = dict(model.predict_labels(IMAGES[0], labels=["green moon", "heart"], top_k=None, probabilities=True))
    everything = dict(model.predict_labels(IMAGES[0], top_k=None, probabilities=True))
    assert one["heart"] == pytest.approx(everything["heart"], abs=1e-6)
    assert others == pytest.approx({name: everything[name] for name in others}, abs=1e-6)
    with torch.no_grad():
        logits = model(torch.stack([Tagger(model.model).transform(IMAGES[0])]))[0]
    expected = torch.sigmoid(3 * logits - 1).tolist()
    assert everything == pytest.approx(dict(zip(model.model.vocabulary.names, expected, strict=True)), abs=1e-6)


def test_a_probability_of_a_new_label_is_that_among_the_known_ones(model):
    new = dict(model.predict_labels(IMAGES[1], labels=["pink square"], probabilities=True))
    joint = LabelVocabulary(("pink square", *model.model.vocabulary.names))
    with torch.no_grad():
        logits = model(torch.stack([Tagger(model.model).transform(IMAGES[1])]), joint)[0]
    assert new["pink square"] == pytest.approx(float(torch.sigmoid(3 * logits[0] - 1)), abs=1e-6)


def test_calibrated_thresholds_choose_what_is_returned(model):
    tagger = Tagger(model.model, top_k=None, threshold="calibrated")
    least = dict(zip(model.model.vocabulary.names, (0.05, 0.9, 0.4, 0.4), strict=True))
    for image, tags in tagger.tag(IMAGES):
        everything = dict(model.predict_labels(image, top_k=None, probabilities=True))
        assert {name for name, _ in tags} == {name for name, p in everything.items() if p >= least[name]}


def test_a_model_that_was_never_calibrated_says_so(model):
    plain = OVMultiLabelClassifier("ovml-demo", stages=[])
    for options in ({"probabilities": True}, {"threshold": "calibrated"}):
        (asked,) = options
        with pytest.raises(UserError, match=f"^{asked}: this model was never calibrated; .*ovml fit does"):
            Tagger(plain.model, ["heart"], **options)
    assert model.zero_shot().model.calibration is None
    assert model.model.calibration is not None


def test_interrupted_output_of_scores_is_none_of_probabilities(model):
    scores, probabilities = Tagger(model.model), Tagger(model.model, probabilities=True)
    assert scores.settings() != probabilities.settings()


def test_wrong_settings_end_in_one_line():
    with pytest.raises(UserError, match="PlattScaling: thresholds must be 'global' or 'per-label'; got 'some'"):
        PlattScaling(thresholds="some")
    with pytest.raises(UserError, match="PlattScaling: min_present must be greater than 0; got 0"):
        PlattScaling(min_present=0)


def test_without_a_returned_label_there_is_nothing_to_judge():
    found = evaluate_calibration(Calibration(4.0, -1.0, 1.1, LABELS), metric_of(*drawn(50)))
    assert np.isnan(found["ECE given"])
    assert found["F1"] == 0
    metrics = {f"calibration/{name}": value for name, value in found.items() if not np.isnan(value)}
    table = calibration_table({"zero-shot": {"zsl/mAP": 0.2}, "prompt": metrics}, "test")
    assert [next(iter(column.cells)) for column in table.columns[2:]] == ["", "0.00"]
    assert calibration_table({"zero-shot": {"zsl/mAP": 0.2}}, "test") is None


def test_the_calibrator_of_a_model_fits_its_probabilities(tiny):
    vocabulary = LabelVocabulary(("cat", "dog"), ("sea",))
    model = OVMultiLabelClassifier(tiny, vocabulary, stages=[], calibrator=TemperatureScaling("per-label", 2))
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]] * 2)
    batch = {"pixel_values": torch.randn(4, 3, 48, 48), "labels": labels, "image_id": ["x"] * 4}
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(model, DataLoader([batch], batch_size=None), verbose=False)
    found = model.model.calibration
    assert found.offset == 0
    assert len(found.label_thresholds) == 3
    trainer.test(model, DataLoader([{**batch, "labels": 1 - labels}], batch_size=None), verbose=False)
    assert model.model.calibration is found, "a test judges the calibration, and fits none"
    assert {f"test/calibration/{name}" for name in ("ECE", "F1")} <= set(trainer.callback_metrics)


def test_scores_far_out_count_in_the_outermost_bins():
    """Probabilities of exactly 0 and 1."""
    scores, targets = torch.tensor([[1e4, -1e4, 1e4, 0.0]] * 3), torch.tensor([[1, 0, 0, 1]] * 3)
    found = evaluate_calibration(Calibration(4.0, 0.0, 0.9, LabelVocabulary(tuple("abcd"))), metric_of(scores, targets))
    # Two of probability 1, one of them present; one of one half, present.
    assert found == pytest.approx({"ECE": (2 * 0.5 + 0.5) / 4, "ECE given": 0.5, "F1": 2 * 1 / (2 + 2)})
    probabilities = torch.sigmoid(4 * scores).flatten()
    theirs = binary_calibration_error(probabilities, targets.flatten(), n_bins=15)
    assert found["ECE"] == pytest.approx(float(theirs), abs=1e-6)


def test_a_probability_equal_to_the_threshold_is_returned():
    scores, targets = torch.zeros(4, 2), torch.tensor([[1, 0]] * 4)
    found = evaluate_calibration(Calibration(1.0, 0.0, 0.5, LabelVocabulary(("a", "b"))), metric_of(scores, targets))
    assert found == pytest.approx({"ECE": 0.0, "ECE given": 0.0, "F1": 2 * 4 / (8 + 4)})


def test_of_thresholds_that_are_equally_good_the_highest_is_taken():
    scores, present = np.array([0.9, 0.8, 0.7, 0.3]), np.array([True, False, False, True])
    assert f1_score(present, scores >= 0.9) == f1_score(present, scores >= 0.3)
    assert best_f1_score(scores, present) == 0.9


def test_labels_are_embedded_by_their_texts_when_they_are_scored_together():
    own = LabelVocabulary.from_ids(["/m/1", "/m/2"], ["/m/3"], {"/m/1": "bank", "/m/2": "cat", "/m/3": "bank"})
    asked = LabelVocabulary.from_ids(["/m/4", "/m/5"], [], {"/m/4": "sea", "/m/5": "sea"})
    assert own.texts != own.names
    joint = Calibration(1.0, 0.0, 0.5, own).together(asked)
    assert joint.names == (*asked.names, *own.names)
    assert joint.texts == ("sea", "sea", "bank", "cat", "bank")


def test_a_calibration_of_other_labels_is_not_evaluated():
    evaluation = OpenVocabularyEvaluation()
    evaluation.prepare(LABELS)
    scores, targets = drawn(50)
    evaluation.update(lambda columns: scores[:, columns], targets)
    own, other = (Calibration(4.0, -1.0, 0.3, names) for names in (LABELS, LabelVocabulary(LABELS.names[::-1])))
    assert set(evaluation.calibration_metrics(own)) == {f"calibration/{name}" for name in ("ECE", "ECE given", "F1")}
    assert evaluation.calibration_metrics(other) == {}
    assert evaluation.calibration_metrics(None) == {}
