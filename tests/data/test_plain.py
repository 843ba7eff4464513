"""Data sets of one's own, whose rows are plain dicts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovml.data import FolderDataModule, MultiLabelDataModule
from ovml.data.plain import plain_dataset
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

VOCABULARY = LabelVocabulary(seen=("sea", "sand"), unseen=("palm",))


class InFolder(FolderDataModule):
    vocabulary = VOCABULARY
    has_validation = False
    rows = ()

    def read_annotations(self, split):
        yield from self.rows


class InMemory(MultiLabelDataModule):
    vocabulary = VOCABULARY
    exhaustive = False
    rows = ()

    def dataset(self, split):
        return self.rows


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (60, 50), (60 * i,) * 3).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


@pytest.fixture
def in_folder(folder, tiny):
    def make(*rows):
        data = InFolder(str(folder), cache_dir=str(folder / "cache"), clip=tiny, max_missing=0.5)
        data.rows = rows
        return data

    return make


def test_rows_of_a_folder_have_names_or_ids_and_paths_from_its_root(in_folder, folder):
    data = in_folder(
        {"image": "images/0.png", "positive": ["Palm", "sea"]},
        {"image": str(folder / "images" / "1.png"), "positive": [1], "negative": [0], "image_id": 7},
        {"image": Path("images/none.png"), "positive": []},
        {"image": "images/3.png", "positive": None, "negative": ["sand"]},
    )
    rows = data.dataset("train")
    assert rows["positive"][:] == [[0, 2], [1], []]
    assert rows["negative"][:] == [[], [0], [1]]
    assert rows["image_id"][:] == ["images/0.png", "7", "images/3.png"]
    assert [np.asarray(image)[0, 0, 0] for image in rows["image"][:]] == [0, 60, 180]
    assert data.check("train").missing.tolist() == [2]
    batch = next(iter(data.test_dataloader()))
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_rows_of_a_folder_are_kept_until_they_change(in_folder, folder):
    first = {"image": "images/0.png", "positive": ["sea"]}
    folders = [in_folder(*rows).annotations("train").folder for rows in ([first], [first], [first, first])]
    assert folders[0] == folders[1] != folders[2]
    assert {path.parent for path in folders} == {folder / "cache"}


def test_rows_in_memory_give_batches(folder, tiny):
    data = InMemory(tiny, batch_size=3)
    path = str(folder / "images" / "2.png")
    image = Image.open(path)
    data.rows = [
        {"image": path, "positive": ["sand"]},
        {"image": image, "positive": [0, 2], "negative": ["sand"]},
        {"image": Path(path).read_bytes(), "positive": (), "image_id": "bytes"},
    ]
    (batch,) = data.val_dataloader()
    assert batch["labels"].tolist() == [[-1, 1, -1], [1, 0, 1], [-1, -1, -1]]
    assert batch["image_id"] == [path, "1", "bytes"]
    assert (batch["pixel_values"] == batch["pixel_values"][:1]).all()
    assert len(next(iter(data.train_dataloader()))["image_id"]) == 3
    assert data.rows_of("train")._fingerprint == data.rows_of("train")._fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": "a.png"},
            r"set, index 1: has 'image'; a row has 'image', 'positive' and, if wanted, 'negative'",
        ),
        ({"image": "a.png", "positives": []}, r"set, index 1: has 'image', 'positives'; a row has"),
        ({"image": "a.png", "positive": [], "split": "test"}, r"set, index 1: has 'image', 'positive', 'split'; a row"),
        ({"image": "a.png", "positive": ["shell"]}, r"set, index 1: label 'shell' is not in the vocabulary; add it"),
        ({"image": "a.png", "positive": [], "negative": [3]}, r"set, index 1: label id 3 is out of range 0..2"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, message):
    with pytest.raises(UserError, match=message):
        plain_dataset([{"image": "a.png", "positive": [0]}, row], VOCABULARY, "set")


def test_an_image_of_a_folder_must_be_a_path(in_folder):
    data = in_folder({"image": Image.new("RGB", (9, 9)), "positive": []})
    with pytest.raises(UserError, match=r"train split: image 0 is no path"):
        data.dataset("train")
