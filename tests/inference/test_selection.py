"""Labels that exclude each other, and the floor that labels must exceed."""

import csv
import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ovml_here
from PIL import Image

from ovml import OpenVocabularyModel, Tagger, UserError, load_model
from ovml.heads import CosineHead
from ovml.metrics.calibration import Calibration
from ovml.prompts import TemplatePrompt
from ovml.vocabulary import LabelVocabulary, labels_below, packaged_parents, packaged_vocabulary

LABELS = ["indoor|lit", "outdoor", "cat", "dog", "black cat", "sky"]
GROUPS = [["indoor|lit", "outdoor"], ["Cat", "dog", "black  cat"]]
FLOOR = ["photo", "image"]


@pytest.fixture(scope="module")
def model(tiny):
    return OpenVocabularyModel(tiny, head=CosineHead(), prompt=TemplatePrompt("{}")).eval()


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(7)]
    for number, path in enumerate(paths):  # of one colour, or of several
        colours = draw.integers(0, 256, (1 + number % 3, 1 + number % 2, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((50, 60), 0).save(path)
    return paths


def naive(scores, groups, floor):
    """What is given out, with scores by label."""
    loses = {
        name
        for group in groups
        for name, other in itertools.permutations([" ".join(n.lower().split()) for n in group], 2)
        if scores[name] < scores[other]
    }
    best = max((scores[name] for name in floor), default=-9)
    return [n for n in sorted(LABELS, key=lambda n: -scores[n]) if n not in loses and scores[n] > best]


@pytest.mark.parametrize("groups", [[], GROUPS, [*GROUPS, ["dog", "outdoor", "sky"]], [LABELS]])
@pytest.mark.parametrize("floor", [[], FLOOR])
def test_labels_that_are_left_out_are_those_of_a_plain_loop(model, pictures, groups, floor):
    every = Tagger(model, [*LABELS, *floor], top_k=None, batch_size=3)
    tagger = Tagger(model, LABELS, top_k=None, batch_size=2, exclusive=groups, floor=floor)
    expected = [naive(dict(tags), groups, floor) for _, tags in every.tag(pictures)]
    assert [[tag.label for tag in tags] for _, tags in tagger.tag(pictures)] == expected
    assert (sum(map(len, expected)) < 7 * len(LABELS)) == bool(groups or floor)
    two = Tagger(model, LABELS, top_k=2, exclusive=groups, floor=floor)
    assert [[tag.label for tag in tags] for _, tags in two.tag(pictures)] == [labels[:2] for labels in expected]
    assert tagger.score(pictures).shape == (7, len(LABELS))
    assert tagger.score([]).shape == (0, len(LABELS))


def test_a_threshold_holds_for_the_best_of_a_group(model, pictures):
    scores = Tagger(model, LABELS).score(pictures)
    least = scores[:, :2].amax(dim=1).median().item()
    tagged = Tagger(model, LABELS, top_k=None, threshold=least, exclusive=[["indoor|lit", "outdoor"]]).tag(pictures)
    for row, (_, tags) in zip(scores.tolist(), tagged, strict=True):
        found = {tag.label for tag in tags} & {"indoor|lit", "outdoor"}
        assert found == ({LABELS[row.index(max(row[:2]))]} if max(row[:2]) >= least else set())


def test_of_equal_labels_in_a_group_the_first_stays(tiny, pictures):
    class Equal(CosineHead):
        def forward(self, features, label_embeds):
            return super().forward(features, label_embeds) * 0

    model = OpenVocabularyModel(tiny, LABELS, head=Equal()).eval()
    tags = Tagger(model, top_k=None, exclusive=[["dog", "cat"], ["sky", "outdoor"]]).predict(pictures[0])
    assert {tag.label for tag in tags} == {"indoor|lit", "dog", "black cat", "sky"}
    assert Tagger(model, floor=FLOOR).predict(pictures[0]) == []


def test_the_floor_serves_with_probabilities_too(tiny, pictures):
    model = OpenVocabularyModel(tiny, LABELS, head=CosineHead(), prompt=TemplatePrompt("{}")).eval()
    model.calibration = Calibration(2.0, -1.0, 0.1, LabelVocabulary((*LABELS, "another")), (0.1,) * 7)
    for options in ({"probabilities": True}, {"threshold": "calibrated"}):
        tagged = Tagger(model, top_k=None, floor=FLOOR, **options).tag(pictures)
        plain = Tagger(model, top_k=None, floor=FLOOR).tag(pictures)
        assert [[t.label for t in tags] for _, tags in tagged] == [[t.label for t in tags] for _, tags in plain]


def test_labels_below_another_are_those_of_the_tree():
    parents = packaged_parents("everyday")
    below = labels_below("Mammal", parents)
    assert {"dog", "puppy"} <= set(below)
    assert not {"mammal", "animal", "weather"} & set(below)
    assert below == [name for name in packaged_vocabulary("everyday").names if name in below]
    assert labels_below("puppy", parents) == labels_below("nothing", parents) == []
    assert labels_below("a", {"a": "b", "b": "a", "c": "b"}) == ["b", "c"]  # a circle ends


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclusive": [["cat", "lion"]]}, "exclusive: 'lion' is not one of the labels"),
        ({"exclusive": [["cat"]]}, r"exclusive: a group has at least two labels, of which one may win; got \['cat'\]"),
        ({"exclusive": [["cat", "CAT"]]}, "exclusive: .* differ only in case"),
        ({"exclusive": ["cat", "dog"]}, "exclusive: expected lists of labels, got the single string 'cat'"),
        ({"floor": "photo"}, "floor: expected a list of names, got the single string 'photo'"),
        ({"floor": ["Sky"]}, "floor: 'Sky' is one of the labels; leave it out here or there"),
        ({"floor": ["photo", ""]}, "floor: name 2 is empty"),
    ],
)
def test_groups_and_floors_that_are_no_proper_lists_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        Tagger(model, LABELS, **arguments)


# ---------------------------------------------------------------------- the command

OPTIONS = ["--exclusive", "indoor|lit,outdoor", "--exclusive", "Cat,dog,black  cat", "--floor", "photo,image"]


@pytest.fixture
def command(pictures, tmp_path, tiny):
    """The command with a file of labels, and the labels that it finds in each picture."""
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    model = load_model(tiny)
    tagger = Tagger(model.eval(), LABELS, exclusive=GROUPS, floor=FLOOR)
    expected = {str(path): [tag.label for tag in tags] for path, tags in tagger.tag(pictures)}
    images = list(map(str, pictures))
    return ["tag", *images, "--labels-file", str(tmp_path / "labels.txt"), "--model", tiny, *OPTIONS], expected


def printed(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["image"]: [label["label"] for label in row["labels"]] for row in rows}


def test_each_form_of_output_has_the_same_labels(command, tmp_path, capsys):
    arguments, expected = command
    assert ovml_here(*arguments, "--format", "jsonl") == 0
    assert printed(capsys.readouterr().out) == expected
    assert len({len(labels) for labels in expected.values()}) > 1
    assert ovml_here(*arguments, "--format", "tsv") == 0
    lines = [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [[image, label] for image, labels in expected.items() for label in labels]
    assert ovml_here(*arguments, "--format", "table", "--threshold", "9") == 0
    assert capsys.readouterr().out.splitlines() == [line for image in expected for line in (image, "no label")]
    for suffix in ("jsonl", "csv", "parquet"):
        assert ovml_here(*arguments, "--out", str(tmp_path / f"tags.{suffix}")) == 0
    assert printed((tmp_path / "tags.jsonl").read_text()) == expected
    with open(tmp_path / "tags.csv", newline="") as file:
        rows = {row["image"]: [row[f"label_{k}"] for k in range(1, 6)] for row in csv.DictReader(file)}
    assert {image: [label for label in labels if label] for image, labels in rows.items()} == expected
    rows = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    assert {row["image"]: [label["label"] for label in row["labels"]] for row in rows} == expected
    assert ovml_here(*arguments, "--out-format", "xmp") == 0
    for image, labels in expected.items():
        sidecar = tmp_path / "pictures" / f"{image}.xmp"
        assert sidecar.is_file() == bool(labels)
        assert all(f">{label}<" in sidecar.read_text() for label in labels)


def test_a_run_is_resumed_with_the_same_groups_and_floor_only(command, tmp_path, capsys, monkeypatch):
    arguments, expected = command
    out, ends = tmp_path / "tags.jsonl", "ovml.inference.tag_output._finish"
    arguments = [*arguments, "--out", str(out), "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(ends, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert ovml_here(*arguments) != 0
    part = tmp_path / "tags.jsonl.part"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:4]))
    capsys.readouterr()
    for option, name in (("--floor", "floor"), ("--exclusive", "exclusive")):
        at = arguments.index(option)
        assert ovml_here(*arguments[:at], *arguments[at + 2 :]) == 2
        assert f"tags.jsonl.part: begun with another {name}; give the same" in capsys.readouterr().err
    assert ovml_here(*arguments) == 0
    assert "4 of them before" in " ".join(capsys.readouterr().err.split())
    assert printed(out.read_text()) == expected


def test_labels_come_through_a_pipe(command, pictures, tiny):
    expected = command[1]
    command = [sys.executable, "-m", "ovml", "tag", *map(str, pictures), "--labels-file", "/dev/stdin", "--model", tiny]
    command += [*OPTIONS, "--format", "jsonl"]
    run = subprocess.run(command, input="\n".join(LABELS), capture_output=True, text=True, check=True)
    assert printed(run.stdout) == expected


def test_a_label_of_the_vocabulary_names_those_below_it(pictures, tiny, capsys):
    command = ["tag", str(pictures[0]), "--model", tiny, "--format", "jsonl", "--top-k", "2000"]
    below = {name: set(labels_below(name, packaged_parents("everyday"))) for name in ("weather", "animal")}
    for vocabulary in (["--vocabulary", "everyday"], []):
        assert ovml_here(*command, *vocabulary, "--exclusive", "weather", "--exclusive", "animal") == 0
        (labels,) = printed(capsys.readouterr().out).values()
        assert [len(below[name] & set(labels)) for name in below] == [1, 1]
        assert len(labels) == 1560 - sum(len(names) - 1 for names in below.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "cat,dog", "--exclusive", "cat,lion"], "--exclusive: 'lion' is not one of the labels"),
        (
            ["--labels", "cat,dog", "--exclusive", "cat"],
            "--exclusive: no label is below 'cat'; give two labels or more",
        ),
        (["--vocabulary", "coco", "--exclusive", "animal"], "--exclusive: no label is below 'animal'"),
        (["--labels", "cat,dog", "--exclusive", ","], "--exclusive: expected names, separated by commas"),
        (["--labels", "cat,dog", "--floor", "cat"], "--floor: 'cat' is one of the labels; leave it out here or there"),
        (
            ["--labels", "cat,dog", "--floor", "photo,Photo"],
            "--floor: 'Photo' (name 2) and 'photo' differ only in case",
        ),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(picture, capsys, monkeypatch, more, message):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ovml.cli.models.load_model", loaded)
    assert ovml_here("tag", str(picture), "--model", "ovml-demo", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
