"""Benchmarks whose labels their users divide, against what the writers of the tiny trees wrote."""

import json

import numpy as np
import pytest
from conftest import SHARED
from fake_divided import (
    COVERS,
    PA100K,
    RAP,
    SCENES,
    write_coco,
    write_mlrsnet,
    write_multiscene,
    write_pa100k,
    write_rap,
    write_table,
    write_voc,
)

from ovml import UserError
from ovml.data import (
    COCODataModule,
    MLRSNetDataModule,
    MultiSceneDataModule,
    PA100KDataModule,
    RAPDataModule,
    VOCDataModule,
)
from ovml.data.divided.coco import UNSEEN, UNUSED
from ovml.vocabulary import packaged_vocabulary

SETS = {
    "coco": (COCODataModule, write_coco, set(packaged_vocabulary("coco").names) - set(UNUSED)),
    "multiscene": (MultiSceneDataModule, write_multiscene, set(SCENES)),
    "mlrsnet": (MLRSNetDataModule, write_mlrsnet, set(COVERS)),
    "pa100k": (PA100KDataModule, write_pa100k, set(PA100K)),
    "rap": (RAPDataModule, write_rap, set(RAP[:51])),
}
SIZES = {"coco": (9, 6), "multiscene": (8, 8), "pa100k": (9, 5), "rap": (9, 3)}


def made(name, root, **arguments):
    cls, write, _ = SETS[name]
    if name in ("pa100k", "rap"):
        pytest.importorskip("scipy", reason="files of MATLAB need scipy")
    truth = write(root)
    return cls(str(root), cache_dir=str(root / "cache"), clip="ovml-demo", **arguments), truth


def read(data, split):
    """The labels of each image, by its path from the root."""
    names = data.vocabulary.names
    rows = data.annotations(split).rows.remove_columns("image")
    return {row["image_id"]: {names[i] for i in row["positive"]} for row in rows}


@pytest.mark.parametrize("name", SETS)
def test_rows_are_what_the_files_say(name, tmp_path):
    data, truth = made(name, tmp_path)
    assert set(data.vocabulary.names) == SETS[name][2]
    train, test = read(data, "train"), read(data, "test")
    assert not set(train) & set(test)
    for path, labels in {**train, **test}.items():
        assert labels == truth[path] & SETS[name][2]
    assert len(data.dataset("train")) == len(train)  # each image is there
    if name in SIZES:
        assert (len(train), len(test)) == SIZES[name]
    else:
        assert {**train, **test}.keys() == truth.keys()


@pytest.mark.parametrize("name", SETS)
def test_unseen_labels_are_chosen_or_drawn(name, tmp_path):
    data, _ = made(name, tmp_path, unseen=4)
    cls, _, _ = SETS[name]
    again = [cls(str(tmp_path), unseen=4, unseen_seed=seed).vocabulary.unseen for seed in (0, 1)]
    assert data.vocabulary.unseen == again[0] != again[1]
    assert len(again[1]) == 4
    two = [name.upper() for name in data.vocabulary.seen[:2]]
    assert cls(str(tmp_path), unseen=two).vocabulary.unseen == data.vocabulary.seen[:2]
    assert cls(str(tmp_path), unseen=[]).vocabulary.unseen == ()
    with pytest.raises(UserError, match="'unicorn' is no label of"):
        _ = cls(str(tmp_path), unseen=["unicorn"]).vocabulary
    with pytest.raises(UserError, match=r"unseen must be less than its \d+ labels; got 99"):
        _ = cls(str(tmp_path), unseen=99).vocabulary


def test_coco_is_divided_as_in_the_literature(tmp_path):
    data, _ = made("coco", tmp_path)
    assert set(data.vocabulary.unseen) == set(UNSEEN)
    assert (len(data.vocabulary.seen), len(data.vocabulary.unseen)) == (48, 17)
    assert len(COCODataModule(str(tmp_path), unseen=[]).vocabulary.seen) == 80
    assert COCODataModule(str(tmp_path), classes=["cat", "bear"]).vocabulary.names == ("bear", "cat")
    with pytest.raises(UserError, match="'dragon' is no class of COCO"):
        _ = COCODataModule(str(tmp_path), classes=["dragon"]).vocabulary


def test_coco_s_division_is_that_of_the_published_lists():
    lists = SHARED / "benchmark_files" / "ram_json"
    if not lists.is_dir():
        pytest.skip(f"the published lists are not here: {lists}")
    unseen, both = (json.loads((lists / f"test_{n}_filtered.json").read_text())["classes"] for n in (17, 65))
    assert set(unseen) == set(UNSEEN)
    assert set(both) == set(packaged_vocabulary("coco").names) - set(UNUSED)


@pytest.mark.parametrize(("year", "trainval"), [("2014", True), ("2017", False)])
def test_coco_s_images_lie_in_a_folder_per_split_or_in_one(year, trainval, tmp_path):
    write_coco(tmp_path, year, trainval)
    data = COCODataModule(str(tmp_path), year=year, cache_dir=str(tmp_path / "cache"))
    assert len(data.dataset("test")) == 6


def test_voc_s_difficult_objects_are_unknown(tmp_path):
    truth = write_voc(tmp_path)
    data = VOCDataModule(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    names = data.vocabulary.names
    rows = {split: data.annotations(split).rows.remove_columns("image") for split in ("train", "test")}
    assert (len(rows["train"]), len(rows["test"])) == (8, 5)
    for row in [*rows["train"], *rows["test"]]:
        present, difficult = truth[row["image_id"]]
        assert {names[i] for i in row["positive"]} == present
        assert {names[i] for i in row["negative"]} == set(names) - present - difficult
    with pytest.raises(UserError, match="no XML files of Pascal VOC"):
        VOCDataModule(str(tmp_path / "JPEGImages"), cache_dir=str(tmp_path / "cache")).annotations("train")


def test_attributes_are_read_as_phrases(tmp_path):
    data, _ = made("pa100k", tmp_path, unseen=["HandBag"])
    texts = dict(zip(data.vocabulary.names, data.vocabulary.texts, strict=True))
    assert texts["AgeOver60"] == "person over 60"
    assert texts["HandBag"] == "handbag"
    assert all(text[0].islower() and text.replace(" ", "").isalnum() for text in texts.values())
    own = tmp_path / "own.csv"
    own.write_text("label,phrase\nage over 60,an old person\n")
    texts = PA100KDataModule(str(tmp_path), phrases=str(own)).vocabulary.texts
    assert texts[:2] == ("Female", "an old person")


def test_rap_counts_the_first_attributes_and_has_five_divisions(tmp_path):
    data, _ = made("rap", tmp_path)
    assert len(data.vocabulary) == 51
    assert data.vocabulary.texts[:3] == ("woman", "long hair", "handbag")
    first, third = (
        read(RAPDataModule(str(tmp_path), partition=k, cache_dir=str(tmp_path / "cache")), "test") for k in (0, 2)
    )
    assert set(first) == {f"RAP_dataset/CAM{i:02d}_line1.png" for i in (9, 10, 11)}
    assert set(third) == {f"RAP_dataset/CAM{i:02d}_line1.png" for i in (7, 8, 9)}


def test_phrases_cover_the_attributes_of_the_published_lists():
    lists = SHARED / "benchmark_files" / "ram_json"
    if not lists.is_dir():
        pytest.skip(f"the published lists are not here: {lists}")
    from ovml.data.divided.phrases import phrases_of, read_phrases

    for name, table in (("PA100K", "pa100k"), ("RAP", "rap")):
        names = json.loads((lists / name / "test.json").read_text())["classes"]
        texts = phrases_of(names, read_phrases(None, table))
        assert [n for n, text in zip(names, texts, strict=True) if n == text and n.lower() != n] == []


def test_mlrsnet_s_real_tables_are_read(tmp_path):
    tables = SHARED / "benchmark_files" / "mlrsnet"
    if not tables.is_dir():
        pytest.skip(f"the published tables are not here: {tables}")
    (tmp_path / "labels").symlink_to(tables)
    data = MLRSNetDataModule(str(tmp_path), cache_dir=str(tmp_path / "cache"), max_missing=1)
    train, test = (data.annotations(split).rows for split in ("train", "test"))
    assert len(data.vocabulary) == 60
    assert len(train) + len(test) == 8454
    assert 0.18 < len(test) / 8454 < 0.22
    table = np.genfromtxt(tables / "airport.csv", delimiter=",", skip_header=1)[:, 1:]
    airport = [
        len(row["positive"])
        for rows in (train, test)
        for row in rows.remove_columns("image")
        if row["image_id"].startswith("Images/airport/")
    ]
    assert sum(airport) == table.sum()


DAMAGED = {
    "no column": ("image\nimg_0\n", "has no column of a label"),
    "too few cells": (None, "line 10: expected 37 cells"),
    "no number": (None, "line 10: '2' is not 0 or 1"),
    "empty cell": (None, "line 10: '' is not 0 or 1"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_tables_end_in_one_line(fault, tmp_path):
    data, _ = made("multiscene", tmp_path)
    text, message = DAMAGED[fault]
    table = tmp_path / "train.csv"
    last = {
        "too few cells": "img_9,1,0\n",
        "no number": "img_9" + ",2" * 36 + "\n",
        "empty cell": "img_9" + "," * 36 + "\n",
    }
    table.write_text(text or table.read_text() + last[fault])
    with pytest.raises(UserError, match=message):
        data.annotations("train")


def test_tables_of_one_set_have_the_same_labels(tmp_path):
    data, _ = made("multiscene", tmp_path)
    write_table(tmp_path / "test.csv", SCENES[::-1], [("img_50", [])])
    with pytest.raises(UserError, match="its labels are not those of train.csv"):
        data.annotations("test")


@pytest.mark.parametrize("name", ["pa100k", "rap"])
@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file", b"\x89HDF\r\n\x1a\n" + bytes(600), None])
def test_damaged_files_of_matlab_end_in_one_line(name, content, tmp_path):
    data, _ = made(name, tmp_path)
    (path,) = data.files("train")
    if content is None:
        from scipy.io import savemat

        savemat(path, {"something": np.zeros(3)})
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name) as error:
        _ = data.vocabulary
    assert "\n" not in str(error.value)


def test_marks_of_another_shape_end_in_one_line(tmp_path):
    from scipy.io import loadmat, savemat

    data, _ = made("pa100k", tmp_path)
    content = {k: v for k, v in loadmat(tmp_path / "annotation.mat").items() if not k.startswith("__")}
    savemat(tmp_path / "annotation.mat", {**content, "train_label": content["train_label"][:, :5]})
    with pytest.raises(UserError, match=r"marks of shape \[9, 5\] for 9 images and 26 attributes"):
        data.annotations("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,phrase\na,b\n", "the columns are name, phrase"),
        ("label,phrase\nHat,\n", "line 2: a label or its phrase is missing"),
        ("label,phrase\nHat,hat\nhat,cap\n", "line 3: 'hat' has another phrase already"),
    ],
)
def test_damaged_phrases_end_in_one_line(text, message, tmp_path):
    data, _ = made("pa100k", tmp_path)
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        _ = PA100KDataModule(str(tmp_path), phrases=str(tmp_path / "own.csv")).vocabulary
    assert data.vocabulary.texts[7] == "hat"
