"""Annotation files with random changes give valid rows or an error of one line, nothing else."""

import json
import shutil
import tempfile
from pathlib import Path

import datasets
import fake_openimages
import pytest
from fake_json import GZSL, SEEN, TRAIN, UNSEEN, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from ovml.data import JSONDataModule, OpenImagesDataModule
from ovml.utils.errors import UserError

PIECES = [
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b",",
    b";",
    b"\\",
    b"{",
    b"]",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
]
PIECES += [b"null", b"NaN", b"1e999", b"-1", b"../", b"/etc/", b"=1+1", b"classes", b'"\\ud800"', "\u2028".encode()]
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(PIECES)), min_size=1, max_size=4)
"""Place, number of bytes removed there, bytes put there instead."""

FILES = ["train-annotations-human-imagelabels.csv", "class-descriptions.csv", "classes-trainable.txt"]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*SEEN, *UNSEEN]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def changed(content, edits):
    for place, removed, piece in edits:
        place %= len(content) + 1
        content = content[:place] + piece + content[place + removed :]
    return content


def check(make):
    """Read all that a data set says; either it holds together, or one line says what is wrong."""
    message, tables = "", []
    try:
        data = make()
        num_labels = len(data.vocabulary)
        tables = [data.annotations(split).rows for split in data.own_splits]
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == (not tables)
    for rows in tables:
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            assert row["image"]["path"].startswith(str(data.root))
            for ids in (row["positive"], row["negative"]):
                assert ids == sorted(set(ids))
                assert all(0 <= label < num_labels for label in ids)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    return write_tree(root / "json"), fake_openimages.write(root / "openimages")


def read_json(trees, tiny, content):
    with tempfile.TemporaryDirectory() as cache:
        file = Path(cache) / "train.json"
        file.write_bytes(content)
        check(lambda: JSONDataModule(**{**trees[0], "train_file": str(file), "cache_dir": cache}, clip=tiny))


@settings(deadline=None, max_examples=60)
@given(EDITS)
def test_bytes_of_a_json_file(trees, tiny, edits):
    read_json(trees, tiny, changed(json.dumps({"classes": SEEN, "images": TRAIN}).encode(), edits))


@settings(deadline=None, max_examples=60)
@given(VALUES, st.sampled_from(["whole", "classes", "class", "images", "image", "path", "labels", "label"]))
def test_values_of_a_json_file(trees, tiny, value, place):
    content = {"classes": [*SEEN], "images": [[path, [*labels]] for path, labels in (*TRAIN, *GZSL)]}
    row = content["images"][1]
    match place:
        case "whole":
            content = value
        case "classes" | "images":
            content[place] = value
        case "class":
            content["classes"][1] = value
        case "image":
            content["images"][1] = value
        case "path" | "labels":
            row[place == "labels"] = value
        case "label":
            row[1][:1] = [value]
    read_json(trees, tiny, json.dumps(content).encode())


@settings(deadline=None, max_examples=60)
@given(
    EDITS,
    st.sampled_from(["train-annotations-human-imagelabels.csv", "class-descriptions.csv", "classes-trainable.txt"]),
)
def test_bytes_of_the_csv_files_of_open_images(trees, tiny, edits, name):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(trees[1], Path(folder) / "set"))
        (file,) = (path for path in root.rglob(name))
        file.write_bytes(changed(file.read_bytes(), edits))
        check(lambda: OpenImagesDataModule(str(root), num_unseen=3, cache_dir=f"{folder}/cache", clip=tiny))
