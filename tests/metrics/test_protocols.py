"""Which labels a protocol scores, and that they are scored among themselves."""

import csv

import pytest
import torch
from commands import SMALL
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader

from ovml import LabelVocabulary, OVMultiLabelClassifier, UserError
from ovml.cli.main import main
from ovml.heads import GlobalHead
from ovml.metrics.protocols import (
    EvaluationProtocol,
    NamedLabels,
    NewWords,
    TextLabels,
    ZeroShot,
    chosen_protocols,
    label_columns,
    shown_protocols,
)
from ovml.metrics.tables import results_table

VOCABULARY = LabelVocabulary(
    ("cat", "Black dog", "red  car", "sky"), ("black CAT", "sea", "red sky", "blue sky", "dog", "black cat sky")
)


def names(protocol, vocabulary=VOCABULARY):
    return [vocabulary.names[i] for i in protocol.columns(vocabulary)]


def test_text_labels_are_unseen_phrases():
    assert names(TextLabels()) == ["black CAT", "red sky", "black cat sky"]
    assert names(TextLabels(known_words=False)) == ["black CAT", "red sky", "blue sky", "black cat sky"]
    assert names(NewWords()) == ["sea", "blue sky"]


def test_words_are_those_that_the_text_tower_reads():
    vocabulary = LabelVocabulary(("red (/m/1)", "car"), ("red car", "Bank (/m/2)"), ("red", "car", "red car", "Bank"))
    assert names(TextLabels(), vocabulary) == ["red car"]
    assert names(TextLabels(known_words=False), vocabulary) == ["red car"]


def test_text_labels_of_open_images_are_the_published_number():
    lists = SHARED / "data"
    if not lists.is_dir():
        pytest.skip(f"the real class lists are not here: {lists}")
    with open(lists / "openimages_class_descriptions.csv", newline="", encoding="utf-8") as file:
        name_of = {label: name.strip() for label, name in csv.reader(file)}
    seen, unseen = ((lists / f"openimages_{name}.txt").read_text().split() for name in ("trainable7186", "unseen400"))
    columns = TextLabels(known_words=False, seen=True).columns(LabelVocabulary.from_ids(seen, unseen, name_of))
    assert (sum(i < 7186 for i in columns), sum(i >= 7186 for i in columns)) == (3525, 231)


LABEL = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map(" ".join)


@given(st.lists(LABEL, min_size=2, max_size=12, unique=True), st.data())
def test_each_unseen_label_is_text_or_new_or_a_single_known_word(labels, data):
    cut = data.draw(st.integers(1, len(labels) - 1))
    vocabulary = LabelVocabulary(tuple(labels[:cut]), tuple(labels[cut:]))
    text, new = (set(protocol.columns(vocabulary)) for protocol in (TextLabels(), NewWords()))
    known = set(" ".join(labels[:cut]).split())
    rest = {i for i, label in enumerate(labels) if i >= cut and label in known}
    assert not text & new
    assert text | new | rest == set(ZeroShot().columns(vocabulary))
    assert not rest & (text | new)


class Odd(EvaluationProtocol):
    name = "odd"

    def columns(self, vocabulary):
        return range(1, len(vocabulary), 2)


def test_every_protocol_is_scored_among_its_own_labels(tiny):
    """Scores of the head depend on the label set, so that columns of all scores would give another figure."""
    torch.manual_seed(0)
    model = OVMultiLabelClassifier(
        tiny, VOCABULARY, head=GlobalHead(), stages=[], ks=[1], protocols=[Odd(), TextLabels()]
    )
    labels = torch.randint(0, 2, (12, len(VOCABULARY)), dtype=torch.int8)
    labels[0], labels[1] = 0, 1
    rows = [{"pixel_values": torch.randn(3, 48, 48), "labels": y, "image_id": str(i)} for i, y in enumerate(labels)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(model, DataLoader(rows, 5), verbose=False)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    for name, columns in (("odd", [1, 3, 5, 7, 9]), ("text", [4, 6, 9])):
        with torch.no_grad():
            scores = model(pixels, [VOCABULARY.names[i] for i in columns])
        targets = labels[:, columns]
        expected = average_precision_score(targets.numpy(), scores.double().numpy(), average="macro")
        assert float(trainer.callback_metrics[f"test/{name}/mAP"]) == pytest.approx(expected, abs=1e-6)
        hits = targets[torch.arange(12), scores.argmax(1)].float().mean()
        assert float(trainer.callback_metrics[f"test/{name}/P@1"]) == pytest.approx(float(hits), abs=1e-6)


def test_a_vocabulary_without_such_labels_leaves_a_protocol_out(tiny):
    vocabulary = LabelVocabulary(("cat", "dog"), ("sea",))
    model = OVMultiLabelClassifier(tiny, vocabulary, stages=[], protocols=[TextLabels()])
    rows = [{"pixel_values": torch.randn(3, 48, 48), "labels": torch.tensor([1, 0, 1]), "image_id": "x"}]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(model, DataLoader(rows), verbose=False)
    measured = {name.split("/")[1] for name in trainer.callback_metrics if name.startswith("test/")}
    assert measured >= {"seen", "zsl", "gzsl"}
    assert "text" not in measured


def test_named_labels_come_from_a_file(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("sea\n CAT\n")
    assert names(NamedLabels(str(file), "some")) == ["sea", "cat"]
    file.write_text("sea\nlake\n")
    with pytest.raises(UserError, match="some.txt: 'lake' is no label of the data set"):
        NamedLabels(str(file), "some").columns(VOCABULARY)


@pytest.mark.parametrize("name", ["zsl", "", "a/b", "a.b", "calibration"])
def test_names_of_protocols_are_checked(name):
    odd = Odd()
    odd.name = name
    with pytest.raises(UserError, match="protocols: names"):
        chosen_protocols([odd])


def test_the_table_has_a_block_for_each_protocol():
    rows = {"vision": {"zsl/mAP": 0.25, "zsl/P@3": 0.5, "gzsl/mAP": 0.1, "gzsl/P@3": 0.2, "new_words/mAP": 0.3}}
    table = results_table(rows, "test")
    assert [list(column.cells) for column in table.columns] == [
        ["ZSL", "GZSL", "new words"],
        ["vision stage"] * 3,
        ["25.0", "10.0", "30.0"],
        ["50.0", "20.0", ""],
    ]


def test_text_labels_from_the_command_line(tmp_path, capsys):
    command = ["test", "--config", "demo.yaml", "--model.protocols+", "ovml.metrics.TextLabels", *SMALL]
    assert main([*command, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert "text" in capsys.readouterr().out


class Turned(EvaluationProtocol):
    """Its columns in any order."""

    name = "turned"

    def __init__(self, found):
        self.found = found

    def columns(self, vocabulary):
        return self.found


@pytest.mark.parametrize("found", [[3, 2, 1], [1, 3, 2], [2, 1, 3], [1, 3], [5, 0]])
def test_columns_keep_their_order(found):
    assert list(label_columns(Turned(found), VOCABULARY)) == found


@pytest.mark.parametrize("found", [[1, 1], [-1, 0], [9, 10], [0, 1, 0]])
def test_columns_that_are_repeated_or_none_of_the_vocabulary_are_refused(found):
    with pytest.raises(UserError, match="protocol 'turned': columns must differ and be from 0 to 9"):
        label_columns(Turned(found), VOCABULARY)


def test_seen_labels_are_shown_where_no_label_is_unseen():
    rows = {"vision": {"seen/mAP": 0.25}}
    assert [list(column.cells) for column in results_table(rows, "test").columns] == [
        ["seen"],
        ["vision stage"],
        ["25.0"],
    ]
    assert shown_protocols(["seen"]) == ["seen"]
    assert shown_protocols(["seen", "gzsl"]) == ["gzsl"]
