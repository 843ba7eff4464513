import copy
import pickle

import pytest
import torch

from ovml.metrics import MultilabelMeanAveragePrecision, OpenVocabularyEvaluation, PrecisionRecallF1AtK


def example(images=40, labels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (images, labels), generator=generator)
    return torch.rand(images, labels, generator=generator), targets


def filled(**kwargs):
    evaluation = OpenVocabularyEvaluation(**kwargs)
    for seed, name in enumerate(evaluation.protocols):
        evaluation.update(name, *example(labels=6 + seed, seed=seed))
    return evaluation


def plain(evaluation):
    return {name: float(value) for name, value in evaluation.compute().items()}


def test_keys():
    per_protocol = ["mAP", *(f"{name}@{k}" for name in ("P", "R", "F1") for k in (3, 5))]
    expected = {f"{protocol}/{name}" for protocol in ("zsl", "gzsl", "seen") for name in per_protocol}
    assert set(plain(filled())) == expected


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_values_are_those_of_the_single_metrics(rule):
    evaluation = OpenVocabularyEvaluation(ks=(2, 4), empty_labels=rule)
    expected = {}
    for seed, name in enumerate(("zsl", "gzsl")):
        preds, targets = example(seed=seed)
        targets[:, 3] = 0
        for piece in zip(preds.split(15), targets.split(15), strict=True):
            evaluation.update(name, *piece)
        single = MultilabelMeanAveragePrecision(rule)
        expected[f"{name}/mAP"] = float(single(preds, targets))
        for k in (2, 4):
            values = PrecisionRecallF1AtK(k)(preds, targets)
            expected |= {f"{name}/{key}": float(value) for key, value in values.items()}
    assert plain(evaluation) == pytest.approx(expected, abs=1e-7)


def test_protocols_have_label_sets_of_their_own():
    evaluation = OpenVocabularyEvaluation(ks=(1,))
    evaluation.update("zsl", torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 0]]))
    evaluation.update("gzsl", torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[1, 0, 0]]))
    values = plain(evaluation)
    assert values["zsl/P@1"] == 1
    assert values["gzsl/P@1"] == 0


def test_only_what_was_updated_is_computed():
    evaluation = OpenVocabularyEvaluation()
    assert evaluation.compute() == {}
    evaluation.update("gzsl", *example())
    assert {name.split("/")[0] for name in evaluation.compute()} == {"gzsl"}


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"one of \['zsl', 'gzsl', 'seen'\]; got 'unseen'"):
        OpenVocabularyEvaluation().update("unseen", *example())
    with pytest.raises(ValueError, match="got 'seen'"):
        OpenVocabularyEvaluation(protocols=("zsl",)).update("seen", *example())


def test_k_beyond_the_labels():
    with pytest.raises(ValueError, match="k=5 and 4 labels"):
        OpenVocabularyEvaluation().update("zsl", *example(labels=4))


def test_reset():
    evaluation = filled()
    evaluation.reset()
    assert evaluation.compute() == {}
    evaluation.update("zsl", *example(seed=7))
    fresh = OpenVocabularyEvaluation()
    fresh.update("zsl", *example(seed=7))
    assert plain(evaluation) == plain(fresh)


def test_moving_to_another_dtype_changes_no_value():
    evaluation = filled()
    expected = plain(evaluation)
    moved = filled().to(torch.float64)
    assert plain(moved) == pytest.approx(expected, abs=1e-6)
    moved.update("zsl", *example(labels=6, seed=9))
    evaluation.update("zsl", *example(labels=6, seed=9))
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
    other.update("zsl", *example(labels=6, seed=5))
    assert plain(other) != expected
    assert plain(evaluation) == expected


def test_images_without_a_present_label_in_the_setting_scored_can_be_left_out():
    preds, targets = example(images=30, labels=7)
    targets[::3] = targets[::3].clamp(max=0)
    targets[1, 4:] = 0  # no unseen label, though a seen one
    targets[1, 0] = 1
    every, labelled = (OpenVocabularyEvaluation(ks=(2,), images=images) for images in ("all", "labelled"))
    for evaluation in (every, labelled):
        for piece in zip(preds.split(8), targets.split(8), strict=True):
            evaluation.update("gzsl", *piece)
            evaluation.update("zsl", *(part[:, 4:] for part in piece))
    for protocol, columns in (("gzsl", slice(None)), ("zsl", slice(4, None))):
        kept = [i for i in range(30) if (targets[i, columns] == 1).any()]
        for evaluation, rows in ((every, slice(None)), (labelled, kept)):
            values = {k: v for k, v in plain(evaluation).items() if k.startswith(f"{protocol}/")}
            part = preds[rows][:, columns], targets[rows][:, columns]
            expected = {"mAP": MultilabelMeanAveragePrecision()(*part), **PrecisionRecallF1AtK(2)(*part)}
            assert values == pytest.approx({f"{protocol}/{k}": float(v) for k, v in expected.items()}, abs=1e-7)
    assert plain(every) != plain(labelled)
    with pytest.raises(ValueError, match="images must be 'all' or 'labelled'"):
        OpenVocabularyEvaluation(images="some")
