import copy
import logging
import pickle

import pytest
import torch

from ovml import LabelVocabulary, UserError
from ovml.metrics import (
    MultilabelMeanAveragePrecision,
    OpenVocabularyEvaluation,
    PrecisionRecallF1AtK,
    TemperatureScaling,
)
from ovml.metrics.calibrators import PlattScaling, evaluate_calibration
from ovml.metrics.protocols import EvaluationProtocol

VOCABULARY = LabelVocabulary(tuple(f"seen {i}" for i in range(8)), tuple(f"unseen {i}" for i in range(5)))
COLUMNS = {"zsl": slice(8, None), "gzsl": slice(None), "seen": slice(0, 8)}


def example(images=40, labels=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (images, labels), generator=generator)
    return torch.rand(images, labels, generator=generator), targets


def made(vocabulary=VOCABULARY, **kwargs):
    evaluation = OpenVocabularyEvaluation(**kwargs)
    evaluation.prepare(vocabulary)
    return evaluation


def update(evaluation, preds, targets):
    evaluation.update(lambda columns: preds[:, columns], targets)


def filled(seed=0, **kwargs):
    evaluation = made(**kwargs)
    update(evaluation, *example(seed=seed))
    return evaluation


def plain(evaluation):
    return {name: float(value) for name, value in evaluation.compute().items()}


def test_keys():
    per_protocol = ["mAP", *(f"{name}@{k}" for name in ("P", "R", "F1") for k in (3, 5))]
    expected = {f"{protocol}/{name}" for protocol in ("zsl", "gzsl", "seen") for name in per_protocol}
    assert set(plain(filled())) == expected


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_values_are_those_of_the_single_metrics(rule):
    evaluation = made(ks=(2, 4), empty_labels=rule)
    preds, targets = example()
    targets[:, 3] = 0
    targets[:, 10] = 0
    for piece in zip(preds.split(15), targets.split(15), strict=True):
        update(evaluation, *piece)
    expected = {}
    for name, columns in COLUMNS.items():
        part = preds[:, columns], targets[:, columns]
        expected[f"{name}/mAP"] = float(MultilabelMeanAveragePrecision(rule)(*part))
        for k in (2, 4):
            values = PrecisionRecallF1AtK(k)(*part)
            expected |= {f"{name}/{key}": float(value) for key, value in values.items()}
    assert plain(evaluation) == pytest.approx(expected, abs=1e-7)


def test_each_protocol_is_scored_by_itself():
    evaluation = made(LabelVocabulary(("cat",), ("dog", "horse")), ks=(1,))
    scores = {1: [[0.5]], 2: [[0.9, 0.1]], 3: [[0.1, 0.2, 0.9]]}
    asked = []

    def score(columns):
        asked.append(columns)
        return torch.tensor(scores[len(range(3)[columns])])

    evaluation.update(score, torch.tensor([[0, 1, 0]]))
    assert asked == [slice(1, 3), slice(0, 3), slice(0, 1)]
    values = plain(evaluation)
    assert values["zsl/P@1"] == 1
    assert values["gzsl/P@1"] == 0


def test_only_what_was_updated_is_computed():
    evaluation = made()
    assert evaluation.compute() == {}
    update(evaluation, *example())
    assert {name.split("/")[0] for name in evaluation.compute()} == {"zsl", "gzsl", "seen"}


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"one of \['zsl', 'gzsl', 'seen'\]; got 'unseen'"):
        made().scores_of("unseen")


def test_targets_of_other_labels_and_a_missing_vocabulary():
    with pytest.raises(ValueError, match=r"targets must be \[B, L\] \(13 labels\); got \[4, 5\]"):
        update(made(), *example(images=4, labels=5))
    with pytest.raises(ValueError, match=r"call prepare\(vocabulary\) first"):
        update(OpenVocabularyEvaluation(), *example())
    with pytest.raises(ValueError, match=r"call prepare\(vocabulary\) first"):
        OpenVocabularyEvaluation().update_empty()


def test_a_k_beyond_a_protocols_labels_is_dropped_for_that_protocol_alone_and_said_once(caplog):
    vocabulary = LabelVocabulary(tuple(f"s{i}" for i in range(23)), ("u0", "u1", "u2", "u3"))
    batch = example(labels=len(vocabulary))
    evaluation = made(vocabulary, ks=(3, 4, 5, 21))
    assert not caplog.records  # a model that only predicts says nothing
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            update(evaluation, *batch)
            results = evaluation.compute()
            evaluation.reset()
    assert [record.getMessage() for record in caplog.records] == [
        "zsl has 4 labels: left out are P, R and F1 at 5, 21",
    ]
    measured = {name for name in results if "P@" in name}
    assert measured == {"zsl/P@3", "zsl/P@4"} | {f"{name}/P@{k}" for name in ("gzsl", "seen") for k in (3, 4, 5, 21)}


def test_reset():
    evaluation = filled()
    evaluation.reset()
    assert evaluation.compute() == {}
    update(evaluation, *example(seed=7))
    assert plain(evaluation) == plain(filled(seed=7))


def test_a_new_vocabulary_begins_anew_and_the_same_does_not():
    evaluation = filled()
    evaluation.prepare(LabelVocabulary(VOCABULARY.seen, VOCABULARY.unseen))
    assert plain(evaluation) == plain(filled())
    evaluation.prepare(LabelVocabulary(VOCABULARY.names))
    assert evaluation.compute() == {}
    assert evaluation.columns == {"seen": range(13)}


def test_a_batch_of_no_images_changes_nothing():
    evaluation = made()
    evaluation.update_empty()
    assert {name for name, value in plain(evaluation).items() if value == value} == {
        f"{protocol}/{name}@{k}" for protocol in COLUMNS for name in ("P", "R", "F1") for k in (3, 5)
    }
    update(evaluation, *example())
    evaluation.update_empty()
    assert plain(evaluation) == plain(filled())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_metrics_follow_the_device_of_the_scores():
    evaluation = made()
    update(evaluation, *(part.cuda() for part in example()))
    assert plain(evaluation) == pytest.approx(plain(filled()), abs=1e-6)


def test_moving_to_another_dtype_changes_no_value():
    evaluation = filled()
    expected = plain(evaluation)
    moved = filled().to(torch.float64)
    assert plain(moved) == pytest.approx(expected, abs=1e-6)
    update(moved, *example(seed=9))
    update(evaluation, *example(seed=9))
    assert plain(moved) == pytest.approx(plain(evaluation), abs=1e-6)


def test_metrics_stay_out_of_checkpoints():
    evaluation = filled()
    assert evaluation.state_dict() == {}
    assert list(evaluation.parameters()) == []
    assert str(evaluation.load_state_dict({})) == "<All keys matched successfully>"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_are_independent(clone):
    evaluation = filled()
    expected = plain(evaluation)
    other = clone(evaluation)
    assert plain(other) == expected
    update(other, *example(seed=5))
    assert plain(other) != expected
    assert plain(evaluation) == expected


def test_images_without_a_present_label_in_the_protocol_scored_can_be_left_out():
    vocabulary = LabelVocabulary(VOCABULARY.seen[:4], VOCABULARY.unseen[:3])
    preds, targets = example(images=30, labels=7)
    targets[::3] = targets[::3].clamp(max=0)
    targets[1, 4:] = 0  # no unseen label, though a seen one
    targets[1, 0] = 1
    every, labelled = (made(vocabulary, ks=(2,), images=images) for images in ("all", "labelled"))
    for evaluation in (every, labelled):
        for piece in zip(preds.split(8), targets.split(8), strict=True):
            update(evaluation, *piece)
    for protocol, columns in (("gzsl", slice(None)), ("zsl", slice(4, None))):
        kept = [i for i in range(30) if (targets[i, columns] == 1).any()]
        for evaluation, rows in ((every, slice(None)), (labelled, kept)):
            values = {k: v for k, v in plain(evaluation).items() if k.startswith(f"{protocol}/")}
            part = preds[rows][:, columns], targets[rows][:, columns]
            expected = {"mAP": MultilabelMeanAveragePrecision()(*part), **PrecisionRecallF1AtK(2)(*part)}
            assert values == pytest.approx({f"{protocol}/{k}": float(v) for k, v in expected.items()}, abs=1e-7)
    assert plain(every) != plain(labelled)
    with pytest.raises(UserError, match="images must be 'all' or 'labelled'"):
        OpenVocabularyEvaluation(images="some")


@pytest.mark.parametrize("calibrator", [None, TemperatureScaling("per-label", 3)])
def test_calibration_is_that_of_all_labels(calibrator):
    evaluation = filled(calibrator=calibrator)
    whole = MultilabelMeanAveragePrecision()
    whole.update(*example())
    calibration = evaluation.calibrate()
    assert calibration == (calibrator or PlattScaling()).calibrate(whole, VOCABULARY)
    expected = {f"calibration/{name}": value for name, value in evaluate_calibration(calibration, whole).items()}
    assert {k: float(v) for k, v in evaluation.calibration_metrics(calibration).items()} == pytest.approx(expected)
    assert evaluation.calibration_metrics(None) == {}
    evaluation.prepare(LabelVocabulary(("other",)))
    assert evaluation.calibration_metrics(calibration) == {}


class Wrong(EvaluationProtocol):
    name = "wrong"

    def __init__(self, *found):
        self.found = found

    def columns(self, vocabulary):
        return self.found


@pytest.mark.parametrize("columns", [(0, 0), (13,), (-1,)])
def test_columns_that_do_not_fit_are_named(columns):
    with pytest.raises(UserError, match="protocol 'wrong': columns must differ and be from 0 to 12; got"):
        made(protocols=[Wrong(*columns)])
