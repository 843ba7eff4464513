"""`ovml labels`, `--vocabulary`, and the packaged vocabularies themselves."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_command import without_torch

from ovml import OpenVocabularyModel, Tagger, UserError
from ovml.cli.main import main
from ovml.inference.label_embeddings import read_label_embeddings
from ovml.saving import save_model
from ovml.utils.lists import read_list
from ovml.utils.resources import RESOURCES, VOCABULARIES, vocabulary_path
from ovml.vocabulary import label_key, packaged_parents, packaged_vocabulary, read_vocabulary

EVERYDAY = packaged_vocabulary("everyday").names
SIZES = {"everyday": len(EVERYDAY), "coco": 80, "voc": 20, "nuswide": 81, "openimages": 601}
SHARED = Path(__file__).resolve().parents[3] / "shared"


def ancestors(name, parents):
    """The chain from a name's parent to its group; a circle never ends, so it is cut."""
    chain = []
    while name in parents and len(chain) < 9:
        chain.append(name := parents[name])
    return chain


def test_everyday_is_as_large_as_said_and_has_about_twenty_groups():
    assert 1_400 <= len(EVERYDAY) <= 1_700
    assert 18 <= len(set(EVERYDAY) - set(packaged_parents("everyday"))) <= 26


def test_everyday_names_are_plain_and_named_once():
    assert len({label_key(name) for name in EVERYDAY}) == len(EVERYDAY)
    assert [name for name in EVERYDAY if name != label_key(name) or not name.isascii() or len(name.split()) > 5] == []
    joined = Counter(name.replace("-", "").replace(" ", "") for name in EVERYDAY)  # hot-dog, hotdog
    turned = Counter(" ".join(sorted(name.split())) for name in EVERYDAY)  # fruit orange, orange fruit
    assert max(joined.values()) == max(turned.values()) == 1
    assert [name for name in EVERYDAY if {f"{name}s", f"{name}es"} & set(EVERYDAY)] == []


def test_everyday_parents_are_names_in_trees_of_at_most_four_levels():
    parents = packaged_parents("everyday")
    assert set(parents) | set(parents.values()) <= set(EVERYDAY)
    assert max(len(ancestors(name, parents)) for name in EVERYDAY) == 3
    position = {name: i for i, name in enumerate(EVERYDAY)}
    assert [name for name in parents if position[parents[name]] > position[name]] == []


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_packaged_vocabulary_is_a_small_file_that_reads_as_any_other(name):
    path = vocabulary_path(name)
    assert path.stat().st_size < 100_000
    assert len(packaged_vocabulary(name)) == SIZES[name]
    assert read_vocabulary(path) == packaged_vocabulary(name)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert packaged_vocabulary(name).names == tuple(row["name"] for row in rows)


def test_each_vocabulary_has_its_file():
    assert {path.stem for path in (RESOURCES / "vocabularies").iterdir()} == set(VOCABULARIES)
    with pytest.raises(UserError, match=r"vocabulary '\.\./x': not one that ovml ships; those are everyday, coco"):
        packaged_vocabulary("../x")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the benchmarks' own files are not here")
def test_names_of_benchmarks_are_their_own():
    classes = json.loads((SHARED / "photos/coco/annotations/instances_val2017.json").read_text())["categories"]
    assert packaged_vocabulary("coco").names == tuple(c["name"] for c in sorted(classes, key=lambda c: c["id"]))
    assert packaged_vocabulary("nuswide").names == tuple(read_list(SHARED / "data/nuswide_unseen81.txt").names)
    with (SHARED / "data/openimages_class_descriptions.csv").open(encoding="utf-8", newline="") as file:
        described = dict(csv.reader(file))
    boxable = read_list(vocabulary_path("openimages"))
    assert boxable.names == [described[machine_id] for machine_id in boxable.ids]


def test_labels_lists_the_vocabularies_without_torch():
    done = without_torch("labels")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [[n, str(size)] for n, size in SIZES.items()]
    docs = Path(__file__).resolve().parents[2] / "docs/tagging.md"
    assert all(f"    {line}\n" in docs.read_text() for line in done.stdout.splitlines())


def test_labels_prints_names_a_line_each(capsys):
    assert main(["labels", "everyday"]) == 0
    assert capsys.readouterr().out.splitlines() == list(EVERYDAY)


def test_labels_indents_names_below_their_parents(capsys):
    assert main(["labels", "everyday", "--tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("animal")
    assert lines[start : start + 4] == ["animal", "  mammal", "    dog", "      puppy"]
    last = {}
    for line in lines:  # the last name of each smaller depth is the parent
        name, depth = line.lstrip(), (len(line) - len(line.lstrip())) // 2
        last[depth] = name
        assert packaged_parents("everyday").get(name) == (last[depth - 1] if depth else None)
    assert main(["labels", "coco", "--tree"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["person", "bicycle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "every"], "NAME: invalid choice: 'every'"),
        (["labels", "--tree"], "--tree: of which vocabulary?"),
        (["tag", "x.png", "--vocabulary", "every"], "--vocabulary: invalid choice: 'every'"),
        (["tag", "x.png", "--vocabulary", "coco", "--labels", "a"], "not allowed with"),
        (["explain", "x.png", "--vocabulary", "coco", "--labels-file", "a"], "not allowed with"),
        (["export", "--vocabulary", "coco", "--labels", "a"], "not allowed with"),
        (["app", "--vocabulary", "coco", "--labels", "a"], "not allowed with"),
        (["embed-labels", "--labels-file", "names.txt", "--vocabulary", "coco"], "not allowed with"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert message in line


def tagged(out):
    return {line.split("\t")[1] for line in out.splitlines()}


def test_a_plain_clip_tags_with_everyday_and_says_so(picture, tiny, capsys):
    assert main(["tag", str(picture), "--model", tiny, "--top-k", "2000"]) == 0
    done = capsys.readouterr()
    assert tagged(done.out) == set(EVERYDAY)
    assert done.err.splitlines() == [
        f"ovml: no labels given: --vocabulary everyday, {len(EVERYDAY):,} labels; 'ovml labels' lists others"
    ]


def test_a_vocabulary_that_is_asked_for_is_used_instead(picture, tiny, capsys):
    assert main(["tag", str(picture), "--model", tiny, "--vocabulary", "voc", "--top-k", "99"]) == 0
    done = capsys.readouterr()
    assert tagged(done.out) == set(packaged_vocabulary("voc"))
    assert done.err == ""


def test_a_model_with_labels_of_its_own_keeps_them(picture, tiny, tmp_path, capsys):
    save_model(OpenVocabularyModel(tiny, ["cat", "dog"]), tmp_path / "model")
    assert main(["tag", str(picture), "--model", str(tmp_path / "model")]) == 0
    done = capsys.readouterr()
    assert (tagged(done.out), done.err) == ({"cat", "dog"}, "")


def test_embeddings_of_a_vocabulary_are_those_of_its_names(tiny, tmp_path):
    out = tmp_path / "voc.safetensors"
    assert main(["embed-labels", "--vocabulary", "voc", "--model", tiny, "--out", str(out)]) == 0
    found = read_label_embeddings(out)
    tagger = Tagger(OpenVocabularyModel(tiny), packaged_vocabulary("voc"))
    assert found.labels == tagger.labels
    torch.testing.assert_close(found.embeds, tagger.label_embeds(), rtol=0, atol=1e-6)


def test_explain_takes_a_vocabulary(picture, tmp_path):
    out = tmp_path / "why.png"
    assert main(["explain", str(picture), "--vocabulary", "voc", "--top-k", "2", "--out", str(out)]) == 0
    assert out.stat().st_size > 0
