"""One set of labelled images in every form that people have them in, read as one; and the errors."""

import csv
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from commands import ovml_here
from PIL import Image

from ovml import UserError
from ovml.data import OwnDataModule
from ovml.data.own.find import find_set
from ovml.data.own.labelled import ImageIndex
from ovml.data.own.tables import cells_of_labels

NAMES = ["black cat", "moon", "palm", "sea"]
TRAIN = [["sea"], ["sea", "palm"], [], ["black cat"], ["moon", "sea"], ["palm"], ["black cat", "moon"], ["moon"]]
TEST = [["sea", "black cat"], ["moon"], ["palm"], []]
SPLITS = {"train": TRAIN, "test": TEST}
ONE_EACH = {"train": [labels[:1] for labels in TRAIN if labels], "test": [labels[:1] for labels in TEST if labels]}


def picture(split, number):
    return Image.new("RGB", (40, 30), (20 * number, 99, 200 if split == "test" else 0))


def write(path, split, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(split, number).save(path)
    return path


def encoded(split, number):
    buffer = io.BytesIO()
    picture(split, number).save(buffer, "PNG")
    return buffer.getvalue()


def all_rows(splits=SPLITS):
    return [(split, i, labels) for split, rows in splits.items() for i, labels in enumerate(rows)]


def table(path, header, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def csv_of_lists(root, separator=";", delimiter=","):
    rows = [
        (write(root / f"images/{split}{i}.png", split, i).name, separator.join(labels), split)
        for split, i, labels in all_rows()
    ]
    table(root / "labels.csv", ("file", "labels", "split"), rows, delimiter)


def csv_per_split(root):
    for split, labels_of in SPLITS.items():
        rows = [
            (write(root / f"{split}/{i}.png", split, i).relative_to(root), json.dumps(labels))
            for i, labels in enumerate(labels_of)
        ]
        table(root / f"{split}.csv", ("path", "tags"), rows)


def csv_one_hot(root):
    rows = []
    for split, i, labels in all_rows():
        stem = write(root / f"{split}/{split}_{i}.jpg", split, i).stem
        rows.append((stem, split, *(int(name in labels) for name in NAMES)))
    table(root / "classes.csv", ("image_id", "subset", *NAMES), rows)


def csv_row_per_label(root):
    rows = []
    for split, i, labels in all_rows():
        path = write(root / f"{split}{i}.png", split, i)
        rows += [(path.name, label, split) for label in labels or [""]]
    table(root / "annotations.tsv", ("filename", "label", "set"), rows, "\t")


def metadata_jsonl(root):
    for split, labels_of in SPLITS.items():
        for i, labels in enumerate(labels_of):
            write(root / split / f"{i}.png", split, i)
            with open(root / split / "metadata.jsonl", "a") as file:
                file.write(json.dumps({"file_name": f"{i}.png", "labels": labels}) + "\n")


def metadata_csv(root):
    for split, labels_of in SPLITS.items():
        rows = [(write(root / split / f"{i}.png", split, i).name, ";".join(own)) for i, own in enumerate(labels_of)]
        table(root / split / "metadata.csv", ("file_name", "labels"), rows)


def coco(root):
    categories = [{"id": 10 + i, "name": name, "supercategory": "thing"} for i, name in enumerate(NAMES)]
    (root / "annotations").mkdir()
    for split, labels_of in SPLITS.items():
        images, annotations = [], []
        for i, labels in enumerate(labels_of):
            images.append({"id": 100 + i, "file_name": write(root / f"{split}2017/{i:012}.jpg", split, i).name})
            for name in [*labels, *labels]:  # two objects of a class are one label
                annotations.append({"id": len(annotations), "image_id": 100 + i, "category_id": 10 + NAMES.index(name)})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
        (root / f"annotations/captions_{split}2017.json").write_text('{"annotations": [{"caption": "a"}]}')


def voc(root):
    lists = {}
    for split, i, labels in all_rows():
        stem = write(root / f"JPEGImages/{split}_{i}.jpg", split, i).stem
        objects = "".join(f"<object><name>{name}</name><difficult>0</difficult></object>" for name in labels)
        (root / "Annotations").mkdir(exist_ok=True)
        text = f"<annotation><filename>{stem}.jpg</filename>{objects}</annotation>"
        (root / f"Annotations/{stem}.xml").write_text(text)
        lists.setdefault(split, []).append(stem)
    for split, stems in lists.items():
        file = root / f"ImageSets/Main/{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(stems))


def yolo(root):
    for split, i, labels in all_rows():
        write(root / f"images/{split}/{i}.png", split, i)
        own = root / f"labels/{split}/{i}.txt"
        own.parent.mkdir(parents=True, exist_ok=True)
        if labels:
            own.write_text("".join(f"{NAMES.index(name)} 0.5 0.5 0.1 0.1\n" for name in labels))
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"path: ../somewhere\ntrain: ../images/train\ntest: images/test\nnames:\n{names}\n")


def class_folders(root):
    for split, i, (label,) in all_rows(ONE_EACH):
        write(root / split / label / f"{i}.png", split, i)


def frames(labels=lambda names: names):
    return {
        split: [
            {"image": {"bytes": encoded(split, i), "path": f"{i}.png"}, "labels": labels(own)}
            for i, own in enumerate(rows)
        ]
        for split, rows in SPLITS.items()
    }


def parquet(root):
    for split, rows in frames().items():
        pd.DataFrame(rows).to_parquet(root / f"{split}-00000-of-00001.parquet")


def parquet_of_ids(root):
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=NAMES))},
    )
    for split, rows in frames(lambda names: [NAMES.index(name) for name in names]).items():
        datasets.Dataset.from_list(rows, features=features).to_parquet(root / f"{split}.parquet")


def saved_to_disk(root):
    parts = {split: datasets.Dataset.from_list(rows) for split, rows in frames().items()}
    datasets.DatasetDict(parts).save_to_disk(root)


FOLDERS = {
    "CSV": csv_of_lists,
    "CSV with semicolons": lambda root: csv_of_lists(root, "|", ";"),
    "CSV per split": csv_per_split,
    "one-hot": csv_one_hot,
    "row per label": csv_row_per_label,
    "metadata.jsonl": metadata_jsonl,
    "metadata.csv": metadata_csv,
    "COCO": coco,
    "VOC": voc,
    "YOLO": yolo,
    "folder per label": class_folders,
    "Parquet": parquet,
    "Parquet of ids": parquet_of_ids,
    "saved to disk": saved_to_disk,
}


class Pairs(torch.utils.data.Dataset):
    """A torch data set with targets in the form of torchvision's."""

    classes = NAMES

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(SPLITS[self.split])

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        target = torch.tensor([name in SPLITS[self.split][index] for name in NAMES], dtype=torch.float32)
        return picture(self.split, index), target


OBJECTS = {
    "DatasetDict": lambda: datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in frames().items()}),
    "data frames": lambda: {
        split: pd.DataFrame({"image": [encoded(split, i) for i in range(len(rows))], "labels": rows})
        for split, rows in SPLITS.items()
    },
    "pairs": lambda: {s: [(picture(s, i), labels) for i, labels in enumerate(rows)] for s, rows in SPLITS.items()},
    "pairs of arrays": lambda: {
        s: [(np.asarray(picture(s, i)), labels) for i, labels in enumerate(rows)] for s, rows in SPLITS.items()
    },
    "torch": lambda: {split: Pairs(split) for split in SPLITS},
}


def content(data, split):
    """The colour and the labels of each image of a split, in any order."""
    rows = data.rows_of(split)
    found = []
    for row in rows:
        pixel = row["image"].convert("RGB").getpixel((20, 15))
        number, own = round(pixel[0] / 20), "test" if pixel[2] > 100 else "train"
        found.append((own, number, sorted(data.vocabulary.names[i] for i in row["positive"])))
    return sorted(found)


def expected(split, splits=SPLITS):
    return sorted((split, i, sorted(labels)) for i, labels in enumerate(splits[split]))


def module(root, tmp_path, **options):
    return OwnDataModule(root, clip="ovml-demo", cache_dir=str(tmp_path / "cache"), **options)


def check(data, truth=SPLITS):
    assert data.vocabulary.seen == tuple(NAMES)
    assert data.vocabulary.unseen == ()
    assert content(data, "test") == expected("test", truth)
    training = content(data, "train") + content(data, "validation")
    assert sorted(training) == expected("train", truth)
    assert len(content(data, "validation")) == 2


@pytest.mark.parametrize("form", FOLDERS)
def test_every_folder_is_read_as_the_same_images_and_labels(form, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    FOLDERS[form](root)
    data = module(str(root), tmp_path, held_out=0.25)
    if form == "folder per label":
        data.held_out = 0.29
        check(data, ONE_EACH)
    else:
        check(data)


@pytest.mark.parametrize("form", OBJECTS)
def test_every_object_in_memory_is_read_as_the_same_images_and_labels(form, tmp_path):
    check(module(OBJECTS[form](), tmp_path, held_out=0.25))


@pytest.mark.parametrize("form", FOLDERS)
def test_fit_trains_on_every_folder_and_says_what_it_found(form, tmp_path, capfd, monkeypatch):
    root = tmp_path / "photos"
    root.mkdir()
    FOLDERS[form](root)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    options = ["--model.clip", "ovml-demo", "--model.head.top_k", "3", "--data.num_workers", "0"]
    options += ["--trainer.fast_dev_run", "true", "--data.cache_dir", str(tmp_path / "cache"), "--data.batch_size", "4"]
    options += ["--model.ks", "[1]", "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert ovml_here("fit", "--config", "own.yaml", "--data.root", str(root), *options) == 0
    out, err = capfd.readouterr()
    assert "every stage ran" in out
    training = 7 if form == "folder per label" else 8
    assert f": {training} train, " in err.replace(";", ":")
    assert "; 4 labels; " in err
    assert f"; {round(training / 5)} of the training images are held out for validation" in err
    assert ("2 of them have no label" in err) == (form != "folder per label")


def test_images_without_splits_validate_and_test_on_those_held_out(tmp_path, capsys):
    pairs = [(picture("train", i), labels) for i, labels in enumerate(TRAIN)]
    data = module(pairs, tmp_path, held_out=0.25)
    assert content(data, "validation") == content(data, "test")
    assert len(content(data, "train")) == 6
    assert "2 of the training images are held out for validation and test" in capsys.readouterr().err
    again = module(pairs, tmp_path, held_out=0.25)
    assert content(again, "test") == content(data, "test")


def test_every_label_keeps_a_training_image(tmp_path):
    rare = [["sea"]] * 20 + [["palm"], ["moon"], ["black cat"]]
    data = module([(picture("train", 0), labels) for labels in rare], tmp_path, held_out=0.9)
    assert data.vocabulary.unseen == ()
    assert {name for _, _, labels in content(data, "train") for name in labels} == set(NAMES)


def test_unseen_labels_are_given_by_name_by_number_or_in_a_file(tmp_path):
    objects = OBJECTS["pairs"]()
    (tmp_path / "unseen.txt").write_text("Palm\n")
    for unseen in (["palm"], str(tmp_path / "unseen.txt")):
        vocabulary = module(objects, tmp_path, unseen=unseen).vocabulary
        assert (vocabulary.seen, vocabulary.unseen) == (("black cat", "moon", "sea"), ("palm",))
    two = module(objects, tmp_path, unseen=2).vocabulary
    assert len(two.unseen) == 2
    assert set(two.names) == set(NAMES)
    assert module(objects, tmp_path, unseen=2).vocabulary == two
    assert set(module(objects, tmp_path, unseen=1).vocabulary.unseen) < set(two.unseen)


def test_a_test_label_that_training_lacks_is_unseen_and_said(tmp_path, capsys):
    objects = OBJECTS["pairs"]()
    objects["test"] = [*objects["test"], (picture("test", 4), ["star"])]
    assert module(objects, tmp_path).vocabulary.unseen == ("star",)
    assert "no training image has 'star', so they count as unseen" in capsys.readouterr().err


def test_labels_restrict_what_is_read(tmp_path):
    data = module(OBJECTS["pairs"](), tmp_path, labels=["sea", "moon"])
    assert data.vocabulary.seen == ("sea", "moon")
    assert content(data, "test") == [("test", 0, ["sea"]), ("test", 1, ["moon"]), ("test", 2, []), ("test", 3, [])]


def test_labels_name_ids(tmp_path):
    pairs = [(picture("train", i), [NAMES.index(name) for name in labels]) for i, labels in enumerate(TRAIN)]
    assert module(pairs, tmp_path, labels=NAMES).vocabulary.seen == tuple(NAMES)
    with pytest.raises(UserError, match="label id 3 has no name; give labels=FILE"):
        _ = module(pairs, tmp_path).vocabulary


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda row: torch.tensor(row, dtype=torch.bool), tuple])
@pytest.mark.parametrize("rows", [[[1, 0], [0, 1], [1, 0], [0, 1]], [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
def test_vectors_of_zeros_and_ones_are_no_ids(form, rows, tmp_path):
    pairs = [(picture("train", number), form(row)) for number, row in enumerate(rows * 2)]
    data = module(pairs, tmp_path, labels=["sea", "palm"], held_out=0.1)
    wanted = [[name for name, value in zip(("sea", "palm"), row, strict=True) if value] for row in rows * 2]
    assert data.found.splits["train"].labels == wanted
    frame = pd.DataFrame({"image": [image for image, _ in pairs], "labels": [row for _, row in pairs]})
    if form is not torch.tensor:
        assert module(frame, tmp_path, labels=["sea", "palm"]).found.splits["train"].labels == wanted


def test_ids_may_be_of_any_type_of_numbers(tmp_path):
    pairs = [(picture("train", i), [number(i % 3)]) for number in (int, float, np.int64) for i in range(3)]
    data = module(pairs, tmp_path, labels=["sea", "palm", "moon"])
    assert data.found.splits["train"].labels == [["sea"], ["palm"], ["moon"]] * 3


def test_unjudged_labels_are_unknown(tmp_path):
    root = tmp_path / "photos"
    rows = [(write(root / f"{i}.png", "train", i).name, *cells) for i, cells in enumerate([(1, 0, ""), (0, -1, 1)] * 3)]
    table(root / "labels.csv", ("image", "sea", "palm", "moon"), rows)
    data = module(str(root), tmp_path)
    batch = next(iter(data.test_dataloader()))
    assert data.vocabulary.names == ("sea", "moon")
    targets = [tuple(row) for row in batch["labels"].tolist()]
    assert set(targets) <= {(1, -1), (0, 1)}


def test_difficult_objects_of_voc_are_unknown(tmp_path):
    root = tmp_path / "photos"
    for i in range(4):
        write(root / f"{i}.jpg", "train", i)
        second = f"<object><name>palm</name><difficult>{i % 2}</difficult></object>"
        (root / f"{i}.xml").write_text(f"<annotation><object><name>sea</name></object>{second}</annotation>")
    data = module(str(root), tmp_path, held_out=0.5)
    rows = [row for split in ("train", "validation") for row in data.dataset(split)]
    assert sorted(map(len, (row["positive"] for row in rows))) == [1, 1, 2, 2]
    assert all(row["negative"] == [] for row in rows)
    assert not data.exhaustive


def test_the_coco_photographs_are_read(tmp_path):
    root = Path(__file__).parents[3] / "shared/photos/coco"
    if not root.is_dir():
        pytest.skip("../shared/photos is not here")
    data = module(str(root), tmp_path)
    assert [len(data.dataset(split)) for split in ("train", "validation")] == [50, 50]
    truth = json.loads((root / "annotations/instances_val2017.json").read_text())
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    file_of = {image["id"]: image["file_name"] for image in truth["images"]}
    present = {(file_of[a["image_id"]], name_of[a["category_id"]]) for a in truth["annotations"]}
    names = data.vocabulary.names
    rows = data.dataset("validation")
    assert {(Path(row["image_id"]).name, names[i]) for row in rows for i in row["positive"]} == present
    assert data.test_dataloader().dataset[(0, 0)]["pixel_values"].shape == (3, 96, 96)


def test_photographs_in_parquet_are_read(tmp_path):
    file = Path(__file__).parents[3] / "shared/photos/coco_photos.parquet"
    if not file.is_file():
        pytest.skip("../shared/photos is not here")
    data = module(str(file), tmp_path)
    assert len(data.vocabulary) == 78
    assert len(data.dataset("train")) + len(data.dataset("test")) == 355


def rows_of(root, columns, **options):
    """The labels of each image of a table whose images are `0.png`, `1.png`, ..."""
    for i in range(len(next(iter(columns.values())))):
        write(root / f"{i}.png", "train", i)
    table(root / "labels.csv", columns, zip(*columns.values(), strict=True))
    data = OwnDataModule(str(root), clip="ovml-demo", **options)
    rows = data.found.splits["train"]
    return {Path(image).name: sorted(labels) for image, labels in zip(rows.images, rows.labels, strict=True)}, data


FILES = ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("columns", "options", "labels"),
    [
        ({"image": FILES, "label": ["0", "1", "1", "0"]}, {"labels": ["cat", "dog"]}, ["cat", "dog", "dog", "cat"]),
        ({"id": ["1", "2", "3", "4"], "name": FILES, "label": list("abca")}, {}, list("abca")),
        ({"image": FILES, "label": ["a", "nan", "b", "NaN"]}, {}, ["a", None, "b", None]),
        ({"file": ["./0.png", " 1.png".strip(), "2.png", "3.png"], "tags": list("abca")}, {}, list("abca")),
    ],
    ids=["ids of one column", "id and name", "written NaN", "dots"],
)
def test_tables_as_people_write_them(tmp_path, columns, options, labels):
    found, _ = rows_of(tmp_path / "photos", columns, **options)
    assert found == {f"{i}.png": [label] if label else [] for i, label in enumerate(labels)}


def test_a_table_beside_that_lists_no_images_is_passed_over(tmp_path):
    table_of_classes = tmp_path / "photos/classes.csv"
    write(tmp_path / "photos/0.png", "train", 0)
    table(table_of_classes, ("id", "name"), [("c0", "sea"), ("c1", "palm")])
    assert rows_of(tmp_path / "photos", {"image": FILES, "label": list("abca")})[0]["1.png"] == ["b"]


def test_a_repeated_row_may_judge_what_the_first_did_not(tmp_path):
    columns = {"image": ["0.png", "0.png", "1.png"], "sea": ["1", "", "0"], "sand": ["", "1", "1"]}
    found, data = rows_of(tmp_path / "photos", columns)
    assert found == {"0.png": ["sand", "sea"], "1.png": ["sand"]}
    assert data.exhaustive


def test_objects_have_the_labels_of_their_categories():
    cells = [{"bbox": [[0, 0, 1, 1]] * 2, "categories": [3, 5]}, [{"name": "sea"}, {"name": "palm"}], None]
    assert cells_of_labels(cells) == [[3, 5], ["sea", "palm"], []]


def test_a_parquet_without_paths_is_read(tmp_path):
    rows = [{"image": {"bytes": encoded("train", i), "path": None}, "labels": labels} for i, labels in enumerate(TRAIN)]
    pd.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    data = module(str(tmp_path), tmp_path / "cache", held_out=0.25)
    assert sorted(content(data, "train") + content(data, "test")) == expected("train")


def test_an_error_about_the_data_asks_for_no_checkpoint(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("ovml.data.base.load_image_processor", asked.append)
    assert ovml_here("fit", "--config", "own.yaml", "--data.root", str(tmp_path / "none")) == 2
    assert "no such folder" in capsys.readouterr().err
    assert asked == []
    assert str(module(str(tmp_path), tmp_path)) == "<OwnDataModule>"


def test_unseen_labels_on_the_command_line(tmp_path, capsys):
    csv_of_lists(tmp_path)
    options = [
        "--trainer.fast_dev_run",
        "true",
        "--data.num_workers",
        "0",
        "--model.clip",
        "ovml-demo",
        "--model.ks",
        "[1]",
    ]
    options += ["--data.cache_dir", str(tmp_path / "cache"), "--model.stages", "[PromptStage]"]
    command = ["fit", "--config", "own.yaml", "--data.root", str(tmp_path), *options]
    assert ovml_here(*command, "--data.unseen", "2") == 0
    assert "4 labels, 2 of them unseen" in capsys.readouterr().err
    assert ovml_here(*command, "--data.unseen", "black cat") == 2
    assert (
        "--data.unseen: there is no file 'black cat'; names are given as a list: '[black cat]'"
        in capsys.readouterr().err
    )


def damaged(root, form):
    FOLDERS[form](root)
    return root


def empty(root):
    pass


def images_alone(root):
    write(root / "a.png", "train", 0)


def no_label_column(root):
    write(root / "a.png", "train", 0)
    table(root / "labels.csv", ("image", "width", "height"), [("a.png", "40", "30")])


def missing_images(root):
    csv_of_lists(root)
    for path in list(root.rglob("*.png"))[:3]:
        path.unlink()


def outside(root):
    write(root / "a.png", "train", 0)
    write(root.parent / "b.png", "train", 0)
    table(root / "labels.csv", ("image", "label"), [("a.png", "sea"), ("../b.png", "palm")])


def torn_coco(root):
    coco(root)
    file = root / "annotations/instances_train2017.json"
    file.write_text(file.read_text()[:-40])


def torn_voc(root):
    voc(root)
    (root / "Annotations/train_0.xml").write_text("<annotation><object>")


def yolo_of_other_classes(root):
    yolo(root)
    (root / "labels/train/0.txt").write_text("17 0.5 0.5 0.1 0.1\n")


def yolo_of_a_negative_class(root):
    yolo(root)
    (root / "labels/train/0.txt").write_text("-1 0.5 0.5 0.1 0.1\n")


def yolo_bomb(root):
    yolo(root)
    lines = [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9)]
    (root / "data.yaml").write_text("\n".join(["a0: &a0 [x]", *lines, "names: *a9"]))


def voc_list_in_another_encoding(root):
    voc(root)
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/train.txt").write_bytes(b"caf\xe9\n")


def unknown_split(root):
    write(root / "a.png", "train", 0)
    table(root / "labels.csv", ("image", "label", "split"), [("a.png", "sea", "train"), ("a.png", "sea", "unlabelled")])


def two_tables(root):
    csv_of_lists(root)
    table(root / "extra.csv", ("file", "labels"), [("train0.png", "sea")])


def two_columns_of_one_name(root):
    write(root / "a.png", "train", 0)
    table(root / "labels.csv", ("image", "label", "label"), [("a.png", "sea", "palm")])


def zero_bytes(root):
    write(root / "a.png", "train", 0)
    (root / "labels.csv").write_bytes(b"image,label\na.png,se\0a\n")


def pipe(root):
    write(root / "a.png", "train", 0)
    os.mkfifo(root / "labels.csv")


def wide_row(root):
    csv_of_lists(root)
    with open(root / "labels.csv", "a") as file:
        file.write("a.png,sea,train,more\n")


def parquet_outside(root):
    write(root.parent / "b.png", "train", 0)
    rows = [{"image": {"bytes": None, "path": str(root.parent / "b.png")}, "labels": ["sea"]}] * 4
    pd.DataFrame(rows).to_parquet(root / "train.parquet")


def parquet_of_a_server(root):
    rows = [{"image": {"bytes": None, "path": "http://10.0.0.1/a.png"}, "labels": ["sea"]}] * 4
    pd.DataFrame(rows).to_parquet(root / "train.parquet")


DAMAGES = {
    empty: "no labelled images; root=FOLDER holds a table",
    images_alone: "no labelled images",
    no_label_column: r"labels.csv: cannot tell the column; give label_column=NAME, one of 'width', 'height'",
    missing_images: r"of the (4|8) (test|train) images are missing",
    outside: r"labels.csv: image path '../b.png' leaves the folder .*; give paths below",
    parquet_outside: "leaves the folder .*; give paths below",
    parquet_of_a_server: "is an address on a server",
    torn_coco: "instances_train2017.json: not COCO annotations",
    torn_voc: "train_0.xml: not an annotation of Pascal VOC",
    yolo_of_other_classes: "0.txt: not labels of data.yaml",
    yolo_of_a_negative_class: "0.txt: not labels of data.yaml",
    yolo_bomb: "data.yaml: names no labels .*more than 2,000,000 values",
    voc_list_in_another_encoding: "train.txt: not UTF-8 text",
    unknown_split: "labels.csv: row 2: 'unlabelled' in column 'split' names no split",
    two_tables: "has several tables, 'extra.csv', 'labels.csv'; give the one",
    two_columns_of_one_name: "labels.csv: two columns have the same name; rename one of 'image', 'label', 'label'",
    zero_bytes: "labels.csv: has a NUL character",
    pipe: "labels.csv: not a file",
    wide_row: "row 14 has 4 cells for 3 columns",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_with_a_folder_is_one_line(damage, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    damage(root)
    with pytest.raises(UserError, match=DAMAGES[damage]) as error:
        _ = module(str(root), tmp_path).vocabulary
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0}, "held_out must be between 0 and 1"),
        ({"unseen": 9}, "unseen must be from 1 to 4"),
        ({"unseen": ["pal"]}, "no image has the label 'pal'"),
        ({"unseen": NAMES}, "no label is left to train"),
        ({"label_column": "tags"}, "there is no column 'tags'"),
    ],
)
def test_options_out_of_range_are_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        _ = module(OBJECTS["data frames"](), tmp_path, **options).vocabulary


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(UserError, match="data: a int; give a folder"):
        _ = module(17, tmp_path).vocabulary


@pytest.mark.parametrize(
    ("cells", "separator", "labels"),
    [
        (["a, b", "c"], None, [["a", "b"], ["c"]]),
        (["a, b|c"], None, [["a, b", "c"]]),
        (["a b"], " ", [["a", "b"]]),
        (["['a', 'b']", "[]"], None, [["a", "b"], []]),
        ([float("nan"), None, ""], None, [[], [], []]),
        ([np.array(["a", "b"]), ("c",)], None, [["a", "b"], ["c"]]),
        ([3, [4, 5]], None, [[3], [4, 5]]),
    ],
)
def test_cells_of_labels(cells, separator, labels):
    assert cells_of_labels(cells, separator) == labels


def test_shots_are_the_same_images_and_grow(tmp_path):
    rng = np.random.default_rng(1)
    labels = [[NAMES[i] for i in np.flatnonzero(row)] for row in rng.random((60, 4)) < (0.5, 0.3, 0.2, 0.1)]
    pairs = {"train": [(picture("train", 0), own) for own in labels], "test": OBJECTS["pairs"]()["test"]}
    found = {}
    for shots in (1, 3, 100):
        data = module(pairs, tmp_path, shots=shots, unseen=["sea"], held_out=0.1)
        rows = data.rows_of("train")
        found[shots] = set(rows["image_id"])
        again = module(pairs, tmp_path, shots=shots, unseen=["sea"], held_out=0.1)
        assert found[shots] == set(again.rows_of("train")["image_id"])
        counts = [sum(column in row for row in rows["positive"]) for column in range(3)]
        assert min(counts) >= min(shots, 5)
        assert len(rows) <= 3 * shots
    assert found[1] < found[3] < found[100]
    with pytest.raises(UserError, match="shots must be at least 1"):
        module(pairs, tmp_path, shots=0)


def test_few_shots_learn_a_prompt_from_kept_features(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    root = tmp_path / "photos"
    root.mkdir()
    metadata_jsonl(root)
    cache = str(tmp_path / "cache")
    options = ["--data.root", str(root), "--data.shots", "1", "--model.clip", "ovml-demo", "--model.ks", "[1]"]
    options += ["--model.stages.init_args.epochs", "2", "--data.num_workers", "0", "--data.cache_dir", cache]
    options += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.callbacks.cache_dir", cache]
    assert ovml_here("fit", "--config", "few.yaml", *options) == 0
    assert "training images have 1 of each seen label" in capsys.readouterr().err
    run = tmp_path / "runs/version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "prompt"}
    assert len(list(Path(cache).glob("features-*/features-000.npy"))) == 2


# Odd folders, as editors, exporters and other machines leave them.


def small(root):
    """Four images."""
    for i, name in enumerate("abcd"):
        write(root / f"images/{name}.png", "train", i)
    return root


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(root):
    """The labels of each image by split, its path relative to the folder."""
    found = find_set(root, dict.fromkeys(("image_column", "label_column", "separator")))
    base = root if root.is_dir() else root.parent
    return found, {
        role: {os.path.relpath(image, base): labels for image, labels in zip(rows.images, rows.labels, strict=True)}
        for role, rows in found.splits.items()
    }


ROWS = {"a": ["sea"], "b": ["palm"], "c": ["sea", "palm"], "d": []}
TRUTH = {"train": {f"images/{name}.png": labels for name, labels in ROWS.items()}}
BY_LABEL = {"train": {f"{label}/{name}.png": [label] for label in ("palm", "sea") for name in "ab"}}


def small_csv(root):
    small(root)
    table(root / "labels.csv", ("image", "labels"), [(f"{name}.png", ";".join(own)) for name, own in ROWS.items()])


def coco_content(**changes):
    ids = {"sea": 1, "palm": 2}
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(ROWS)],
        "annotations": [
            {"image_id": i, "category_id": ids[label]} for i, own in enumerate(ROWS.values()) for label in own
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    return {**content, **changes}


def small_coco(root):
    put(small(root) / "annotations/instances.json", coco_content())


def voc_file(root, name, labels):
    objects = "".join(f"<object><name>{label}</name></object>" for label in labels)
    put(root / f"Annotations/{name}.xml", f"<annotation>{objects}</annotation>")


def small_voc(root):
    small(root)
    for name, own in ROWS.items():
        voc_file(root, name, own)


def yolo_labels(root, ids=(0, 1)):
    id_of = dict(zip(("sea", "palm"), ids, strict=True))
    for name, own in ROWS.items():
        put(small(root) / f"labels/{name}.txt", "".join(f"{id_of[label]} .5 .5 .1 .1\n" for label in own))


def small_yolo(root):
    yolo_labels(root)
    put(root / "data.yaml", {"names": ["sea", "palm"], "train": "images"})


def small_parquet(root):
    small(root)
    rows = [{"image": f"{name}.png", "labels": own} for name, own in ROWS.items()]
    pd.DataFrame(rows).to_parquet(root / "TRAIN.PARQUET")


def label_folders(root):
    for path in BY_LABEL["train"]:
        write(root / path, "train", 0)


FORMS = {
    small_csv: TRUTH,
    small_coco: TRUTH,
    small_voc: TRUTH,
    small_yolo: TRUTH,
    small_parquet: TRUTH,
    label_folders: BY_LABEL,
}
STRANGERS = {
    "checkpoint of a notebook": (".ipynb_checkpoints/labels-checkpoint.csv", "image,labels\na.png,old\n"),
    "resource fork": ("._labels.csv", b"\0\5\x16\7"),
    "old COCO": (".old/instances.json", coco_content()),
    "editor": (".idea/workspace.xml", "<annotation><object><name>old</name></object></annotation>"),
    "archive of macOS": ("__MACOSX/labels.csv", "image,labels\na.png,old\n"),
    "hidden Parquet": (".cache/train.parquet", b""),
    "hidden YAML": (".dvc/data.yaml", "names: [old]"),
    "report": ("report.xml", "<testsuites/>"),
    "torn report": ("report.xml", "<testsuites>"),
    "environment": ("env.yml", "filenames: 3\n"),
    "torn environment": ("env.yml", "filenames: [\n"),
    "other encoding": ("env.yml", "title: m\xe5r\n".encode("latin-1")),
    "nested names": ("compose.yaml", "services:\n  names: [web]\n"),
    "categories alone": ("dataset-info.json", {"title": "x", "categories": ["photo"]}),
    "list": ("list.json", ["images", "annotations"]),
    "torn JSON": ("package.json", '{"title": '),
    "captions": ("captions_train.json", {"images": [], "annotations": [{"caption": "a"}]}),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_and_hidden_files_do_not_count(form, stranger, tmp_path):
    form(tmp_path)
    put(tmp_path / STRANGERS[stranger][0], STRANGERS[stranger][1])
    assert read(tmp_path)[1] == FORMS[form]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_folders_and_links_named_as_files_do_not_count(form, tmp_path):
    form(tmp_path)
    for suffix in (".json", ".xml", ".yaml", ".csv", ".parquet", ".txt", ".jpg"):
        (tmp_path / f"folder{suffix}").mkdir()
        (tmp_path / f"link{suffix}").symlink_to("nowhere")
    assert read(tmp_path)[1] == FORMS[form]


DAMAGED = {
    "empty COCO": ("annotations/x.json", b"", "x.json: not COCO annotations .it is empty"),
    "torn COCO": ("annotations/x.json", json.dumps(coco_content())[:150], "x.json: not COCO annotations"),
    "no categories": (
        "x.json",
        {"images": [], "annotations": []},
        "not COCO annotations .it has no categories",
    ),
    "no annotations": (
        "x.json",
        {"images": [], "categories": []},
        "not COCO annotations .it has no annotations",
    ),
    "images of text": ("x.json", coco_content(images=["a.png"]), "images is not a list of objects"),
    "empty YAML": ("data.yaml", b"", "data.yaml: is empty"),
    "torn YAML": ("data.yaml", "names: [sea, palm", "data.yaml: names no labels .line 2"),
    "YAML in another encoding": ("data.yaml", b"names: [m\xe5r]", "data.yaml: not UTF-8 text"),
    "empty XML": ("Annotations/a.xml", b"", "a.xml: not an annotation of Pascal VOC .it is empty"),
    "torn XML": ("Annotations/a.xml", "<annotation><object>", "a.xml: not an annotation of Pascal VOC"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("beside", [small, label_folders], ids=lambda form: form.__name__)
def test_damaged_annotations_are_no_folders_per_label(damage, beside, tmp_path):
    file, content, message = DAMAGED[damage]
    beside(tmp_path)
    put(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)
    table(tmp_path / "labels.csv", ("image", "labels"), [(path, "moon") for path in TRUTH["train"]])
    assert read(tmp_path)[0].form == "table (labels.csv)"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", [small_csv, small_coco, small_yolo], ids=lambda form: form.__name__)
def test_byte_order_marks_are_read(form, encoding, tmp_path):
    form(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".csv", ".json", ".yaml", ".txt") and path.stat().st_size:
            path.write_text(path.read_text(), encoding=encoding)
    assert read(tmp_path)[1] == TRUTH


def folder_images(root, *paths):
    for path in paths:
        write(root / path, "train", 0)


ARRANGED = {
    "wrapped": (["photos/sea/1.png", "photos/palm/1.png"], {"train": ["palm", "sea"]}, ""),
    "wrapped twice": (["x/y/sea/1.png", "x/y/palm/1.png"], {"train": ["palm", "sea"]}, ""),
    "wrapped splits": (
        ["photos/train/sea/1.png", "photos/test/palm/1.png"],
        {"train": ["sea"], "test": ["palm"]},
        "",
    ),
    "one split": (["train/sea/1.png", "train/palm/1.png"], {"train": ["palm", "sea"]}, ""),
    "case": (["Train/sea/1.png", "VAL/palm/1.png"], {"train": ["sea"], "validation": ["palm"]}, ""),
    "deep": (["sea/2020/may/1.png", "palm/1.png"], {"train": ["palm", "sea"]}, ""),
    "stray": (["sea/1.png", "palm/1.png", "cover.png", "back.png"], {"train": ["palm", "sea"]}, "2 images outside"),
    "stray in a split": (["train/sea/1.png", "train/palm/1.png", "test/1.png"], {"train": ["palm", "sea"]}, "1 images"),
    "words": (["test tube/1.png", "train station/1.png"], {"train": ["test tube", "train station"]}, ""),
    "vehicles": (["train/1.png", "car/1.png"], {"train": ["car", "train"]}, ""),
}


@pytest.mark.parametrize("case", ARRANGED)
def test_folders_name_labels_in_every_arrangement(case, tmp_path):
    paths, labels, left_out = ARRANGED[case]
    folder_images(tmp_path, *paths)
    found, rows = read(tmp_path)
    assert {role: sorted({name for own in part.values() for name in own}) for role, part in rows.items()} == labels
    assert found.left_out.startswith(left_out)
    assert bool(found.left_out) == bool(left_out)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["images/1.png", "images/2.png"], "all images stand in 'images/', so no labels; give"),
        (["images/train/1.png", "images/val/2.png"], "all images stand in 'train/', 'val/', so no labels; give"),
        (["train/sea/1.png", "val/sea/2.png", "extra/sea/1.png"], "'train', 'val' seem to be splits and 'extra' not"),
    ],
)
def test_folders_that_name_no_labels_are_one_line(paths, message, tmp_path):
    folder_images(tmp_path, *paths)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["sea", "palm"], (0, 1)),
        ({0: "sea", 1: "palm"}, (0, 1)),
        ({"0": "sea", "10": "palm", "2": "moon"}, (0, 10)),
        ({1: "sea", 2: "palm"}, (1, 2)),
        ({0: "sea", 7: "palm"}, (0, "7.0")),
    ],
)
def test_names_of_yolo_go_by_their_ids(names, ids, tmp_path):
    yolo_labels(tmp_path, ids)
    keys = "".join(f"  {json.dumps(key)}: {name}\n" for key, name in names.items()) if isinstance(names, dict) else ""
    put(tmp_path / "data.yaml", f"'names':\n{keys}" if keys else {"names": names})
    assert read(tmp_path)[1] == TRUTH


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: sea", "names is 'sea'"),
        ("names: names.txt", "names is 'names.txt'"),
        ("names: 5", "names is 5"),
        ("names:", "names is empty"),
        ("names: []", "names is empty"),
        ("names: [sea, Sea]", "names 0 and 1 are both 'Sea'"),
        ("names: [sea, yes]", "name 1 is True, not a text; put it in quotes"),
        ("names: [sea, null]", "name 1 is None"),
        ("names: [sea, [palm]]", "name 1 is"),
        ("names: {-1: sea}", "the id -1 is not 0 or a positive number"),
        ("names: {0: sea, x: palm}", "the id 'x' is not 0"),
        ("names: {1: sea, '1': palm}", "the id 1 has two names|the key '1' is given twice"),
        ("names: [sea]", "b.txt: not labels of data.yaml .line 1: no name has the id 1"),
        ("names: [sea, palm]\ntrain: pictures", "train: there is no folder pictures"),
        ("names: [sea, palm]\ntrain: [[images]]", "train: .* is not a folder"),
    ],
)
def test_what_is_wrong_with_yolo_is_one_line(content, message, tmp_path):
    yolo_labels(tmp_path)
    put(tmp_path / "data.yaml", content)
    with pytest.raises(UserError, match=f"({message})") as error:
        read(tmp_path)
    assert len(str(error.value).splitlines()) == 1


PLACES = {
    "folders": {"train": "images/train", "val": "images/val"},
    "folder and all": {"train": ".", "val": "images/val"},
    "lists of folders": {"train": ["images/train"], "val": ["images/val"]},
    "above": {"train": "../images/train", "val": "../images/val"},
    "path elsewhere": {"path": "../datasets/x", "train": "images/train", "val": "images/val"},
    "another machine": {"train": "/home/test/x/images/train", "val": "/home/test/x/images/val"},
    "Windows": {"train": "C:\\x\\images\\train", "val": "C:\\x\\images\\val"},
    "lists of images": {"train": "train.txt", "val": "lists/val.txt"},
    "no test": {"train": "images/train", "val": "images/val", "test": "images/test"},
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_places_of_yolo_are_found(case, given, tmp_path):
    root = tmp_path / "photos"
    write(tmp_path / "images/train/other.png", "train", 0)
    for split, name in (("train", "sea"), ("val", "palm")):
        write(root / f"images/{split}/a.png", "train", 0)
        put(root / f"labels/{split}/a.txt", f"{['sea', 'palm'].index(name)} 1 1 1 1\n")
    put(root / "train.txt", "/home/joe/x/images/train/a.png\n")
    put(root / "lists/val.txt", "./images/val/a.png\n")
    file = put(root / "data.yaml", {"names": ["sea", "palm"], **PLACES[case]})
    found, rows = read(root if given == "folder" else file)
    assert rows == {"train": {"images/train/a.png": ["sea"]}, "validation": {"images/val/a.png": ["palm"]}}
    assert found.left_out == ("test: images/test, which is not there" if case == "no test" else "")


def test_a_missing_folder_of_yolo_is_not_another_split(tmp_path):
    yolo_labels(tmp_path)
    put(tmp_path / "data.yaml", {"names": ["sea", "palm"], "train": "images", "val": "../valid/images"})
    assert read(tmp_path)[1] == TRUTH


def with_ids(kind):
    content = coco_content()
    for image in content["images"]:
        image["id"] = kind(image["id"])
    for category in content["categories"]:
        category["id"] = kind(category["id"])
    return content


@pytest.mark.parametrize(
    "content",
    [
        with_ids(str),
        with_ids(float),
        coco_content(images=[*coco_content()["images"], {"id": 9, "file_name": "images/a.png"}]),
        coco_content(annotations=[*coco_content()["annotations"], {"image_id": 99, "category_id": 1}]),
    ],
    ids=["texts", "floats", "repeated image", "annotation of another image"],
)
def test_ids_and_repeated_images_of_coco(content, tmp_path):
    put(small(tmp_path) / "instances.json", content)
    assert read(tmp_path)[1] == TRUTH


def test_a_file_of_coco_without_annotations_is_left_out_and_said(tmp_path):
    small_coco(tmp_path)
    content = coco_content()
    put(tmp_path / "annotations/test.json", {key: content[key] for key in ("images", "categories")})
    found, rows = read(tmp_path)
    assert rows == TRUTH
    assert found.left_out == "test.json, which has no annotations"


@pytest.mark.parametrize("content", [b"", json.dumps(coco_content())[:150]], ids=["empty", "torn"])
def test_a_damaged_file_of_coco_beside_a_good_one_is_an_error(content, tmp_path):
    small_coco(tmp_path)
    put(tmp_path / "annotations/val.json", content)
    with pytest.raises(UserError, match="val.json: not COCO annotations"):
        read(tmp_path)


def test_files_of_coco_of_one_split_are_joined(tmp_path):
    put(small(tmp_path) / "annotations/instances.json", coco_content())
    more = coco_content(categories=[{"id": 1, "name": "sky"}, {"id": 2, "name": "grass"}])
    put(tmp_path / "annotations/stuff.json", more)
    found, rows = read(tmp_path)
    assert rows["train"]["images/c.png"] == ["sea", "palm", "sky", "grass"]
    assert (len(rows["train"]), found.names) == (4, ("sea", "palm", "sky", "grass"))


@pytest.mark.parametrize("name", ["test_coco", "my dev photos"])
def test_the_folder_itself_is_no_split(name, tmp_path):
    root = tmp_path / name
    put(small(root) / "x.json", coco_content())
    assert read(root)[1] == TRUTH


def test_a_file_of_coco_finds_the_images_beside_its_folder(tmp_path):
    file = put(small(tmp_path) / "annotations/x.json", coco_content())
    assert read(file)[1] == {"train": {f"../{path}": labels for path, labels in TRUTH["train"].items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, "annotation of category 9, which is not among the"),
        ({"annotations": [{"image_id": 1, "category_id": None}]}, "category_id of an annotation is null"),
        ({"annotations": [{"image_id": [1], "category_id": 1}]}, r"image_id of an annotation is \[1\]"),
        ({"images": [{"id": {}, "file_name": "a.png"}]}, "id of an image is {}"),
        ({"images": [{"id": 1}]}, "an image without file_name"),
        ({"images": [{"id": 1, "file_name": None}]}, "file_name of an image is null"),
        ({"categories": [{"id": 1, "name": ""}]}, 'name of a category is ""'),
        ({"categories": {"1": "sea"}}, "categories is not a list of objects"),
    ],
)
def test_what_is_wrong_with_coco_is_one_line(changes, message, tmp_path):
    put(small(tmp_path) / "x.json", coco_content(**changes))
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        lambda name: name,
        lambda name: f"{name} ",
        lambda name: f"{name}.jpg",
        lambda name: f"{name}  1",
        lambda name: f"{name} -1",
        lambda name: f"JPEGImages/{name}.jpg",
        lambda name: name.upper(),
    ],
    ids=["plain", "blank", "suffix", "1", "-1", "path", "case"],
)
def test_lists_of_voc_name_images_in_every_way(line, tmp_path):
    names = {"train": ["a", "b b"], "val": ["c 1"], "test": ["d"]}
    for number, name in enumerate(["a", "b b", "c 1", "d", "e"]):
        write(tmp_path / f"JPEGImages/{name}.jpg", "train", number)
        voc_file(tmp_path, name, [NAMES[number % 4]])
    for split, own in names.items():
        put(tmp_path / f"ImageSets/Main/{split}.txt", "\ufeff" + "\r\n".join(map(line, own)))
    put(tmp_path / "ImageSets/Main/trainval.txt", "a\nc 1\nmissing\n")
    found, rows = read(tmp_path)
    assert rows == {
        "train": {"JPEGImages/a.jpg": ["black cat"], "JPEGImages/b b.jpg": ["moon"]},
        "validation": {"JPEGImages/c 1.jpg": ["palm"]},
        "test": {"JPEGImages/d.jpg": ["sea"]},
    }
    assert found.left_out == ("1 XML files that no list of ImageSets names, 1 names in ImageSets without an XML file")


NFC, NFD = "\u00f6.png", "o\u0308.png"


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        (" a.png ", ["a.png"], "a.png"),
        ("A.PNG", ["a.png"], "a.png"),
        ("a", ["x/A.JPG"], "x/A.JPG"),
        ("x\\a.png", ["X/a.png"], "X/a.png"),
        (NFC, [NFD], NFD),
        (NFD, [f"x/{NFC}"], f"x/{NFC}"),
        ("a.png", ["a.png", "A.png"], "a.png"),
        ("A.png", ["x/a.png", "x/A.png"], "x/A.png"),
        (NFD, [NFC, NFD], NFD),
        ("a.PNG", ["a.png", "A.png"], None),
        ("a", ["a.png", "a.jpg"], None),
        ("./a.png", ["a.png", "x/a.png"], "a.png"),
        ("a.png", ["x/a.png", "y/a.png"], None),
    ],
)
def test_names_of_images_match_where_one_file_fits(name, files, found, tmp_path):
    folder_images(tmp_path, *files)
    index = ImageIndex(tmp_path)
    assert index.find(name, tmp_path) == (None if found is None else str(tmp_path / found))


def test_a_stray_table_beside_label_folders_is_passed_over(tmp_path, capsys):
    class_folders(tmp_path)
    table(tmp_path / "class_counts.csv", ("class", "count"), [("sea", "2"), ("palm", "1")])
    write(tmp_path / "cover.png", "train", 0)
    data = module(str(tmp_path), tmp_path / "cache")
    assert data.found.form == "one folder per label"
    assert set(data.vocabulary.names) == set(NAMES)
    assert "left out: 1 image" in capsys.readouterr().err


@pytest.mark.parametrize("image", [1, {"a": 1}, [1, 2]])
def test_cells_of_other_types_are_no_images(tmp_path, image):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": image, "labels": ["sea"]}) + "\n")
    write(tmp_path / "a.png", "train", 0)
    with pytest.raises(UserError, match="1 of the 1 train images are missing"):
        _ = module(str(tmp_path), tmp_path / "cache").vocabulary
