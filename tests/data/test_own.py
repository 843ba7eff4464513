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
    assert ("2 without a label" in err) == (form != "folder per label")


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
    assert data.test_dataloader().dataset[(0, 0)]["pixel_values"].shape == (3, 72, 72)


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
    assert len(list(Path(cache).glob("features-*/features.npy"))) == 2
