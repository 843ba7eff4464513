"""Open Images: targets as a naive reading gives them; every mistake in the files is named."""

import csv
import logging
import pickle
import pickletools
from collections import Counter

import datasets
import fake_openimages as fake
import numpy as np
import pyarrow as pa
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from ovml.data.openimages.csv import SOURCE, read_annotations
from ovml.data.openimages.datamodule import OpenImagesDataModule
from ovml.data.openimages.unseen import published_unseen, read_biam
from ovml.utils.errors import UserError

LABELS = fake.TRAINABLE + fake.UNSEEN


@pytest.fixture
def root(tmp_path):
    return fake.write(tmp_path / "oi")


@pytest.fixture
def module(tmp_path, tiny):
    """Makes a data module with a cache of its own."""

    def make(root, num_unseen=3, **kwargs):
        return OpenImagesDataModule(
            str(root), num_unseen=num_unseen, cache_dir=str(tmp_path / "cache"), clip=tiny, **kwargs
        )

    return make


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_equal_a_naive_reading(module, root, split):
    rows = module(root).dataset(split)
    naive = fake.naive_targets(fake.annotations(root, split), LABELS)
    assert fake.targets(rows, LABELS) == naive
    assert rows["image_id"][:] == list(naive), "images are not in the order of the file"
    assert rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["path"] == str(
        root / split / f"{rows[0]['image_id']}.jpg"
    )


def test_batches_have_the_targets(module, root):
    data = module(root, batch_size=3)
    (batch,) = data.test_dataloader()
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["image_id"] == ["c1", "c2", "c3"]
    assert batch["labels"].tolist() == list(fake.naive_targets(fake.annotations(root, "test"), LABELS).values())
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert (batch["labels"] == 1).any(dim=1).all()


def test_labels_that_share_a_name_are_told_apart_by_their_id(module, root):
    vocabulary = module(root).vocabulary
    assert vocabulary.seen == ("Dog", "Cat", "Bank (/m/0bank1)", "Ducks, geese and swans")
    assert vocabulary.unseen == ("Bank (/m/0bank2)", "Tree", "Sky")
    assert vocabulary.texts[2] == vocabulary.texts[4] == "Bank"


def test_what_was_left_out_is_counted(module, root):
    assert module(root).annotations("train").counts == {
        "images": 4,
        "rows": 11,
        "rows outside the vocabulary": 1,
        "rows that repeat an annotation": 1,
        "pairs annotated both ways (unknown)": 1,
        "present annotations": 5,
        "absent annotations": 2,
    }


def test_unseen_labels_are_the_most_frequent_outside_the_seen_ones_ties_by_id(module, root, caplog):
    rows = [("c1", "/m/0tree", "1"), ("c1", "/g/11sky", "1"), ("c2", "/m/0cat", "1"), ("c2", "/m/0rare", "0")]
    fake.write_annotations(root, "test", [*rows, ("c2", "/m/0bank2", "1"), ("c3", "/m/0bank2", "1")])
    assert module(root, num_unseen=2).unseen_ids == ["/m/0bank2", "/g/11sky"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert module(root).unseen_ids == ["/m/0bank2", "/g/11sky", "/m/0tree"]
        assert not caplog.records
        assert len(module(root, num_unseen=400).unseen_ids) == 3
    assert "3 labels outside the seen ones are present in test images, fewer than num_unseen 400" in caplog.text


def test_unseen_labels_may_be_given(module, root, tmp_path):
    (tmp_path / "unseen.txt").write_text("/m/0rare\n\n/g/11sky\n")
    data = module(root, unseen_file=str(tmp_path / "unseen.txt"))
    assert data.vocabulary.unseen == ("Jeu de paume", "Sky")
    naive = fake.naive_targets(fake.annotations(root, "train"), [*fake.TRAINABLE, "/m/0rare", "/g/11sky"])
    assert fake.targets(data.dataset("train"), [*fake.TRAINABLE, "/m/0rare", "/g/11sky"]) == naive


def test_training_images_are_counted_again_for_longer_lists(module, root):
    assert module(root, min_train_images=2).seen_ids == ["/m/0dog"]  # the second mark of the cat contradicts the first
    assert module(root, min_train_images=1).seen_ids == fake.TRAINABLE
    with pytest.raises(UserError, match=r"no label is present in 5 training images"):
        _ = module(root, min_train_images=5).vocabulary


def test_listed_images_without_a_mark_are_rows_of_the_evaluation_splits_alone(module, tmp_path):
    root = fake.write(tmp_path / "listed", image_lists=True)
    (root / "train-images-with-labels-with-rotation.csv").write_text("ImageID,Subset\na9,train\n")
    data = module(root)
    assert data.dataset("validation")["image_id"][:] == ["b3", "b1", "b2"]
    assert data.dataset("test")["image_id"][:] == ["c1", "c2", "c3", "c4"]
    assert data.dataset("train")["image_id"][:] == ["a1", "a2", "a3", "a4"]
    naive = fake.naive_targets(fake.annotations(root, "test"), LABELS)
    assert fake.targets(data.dataset("test"), LABELS) == {**naive, "c4": [-1] * len(LABELS)}


def test_one_list_of_all_images_serves_as_well(module, root):
    lines = ["ImageID,Subset,Title", "a8,train,x", "b2,validation,x", "c9,test,x", "b7,validation,x"]
    (root / "image_ids_and_rotation.csv").write_text("\n".join(lines) + "\n")
    assert module(root).annotations("validation").rows["image_id"][:] == ["b2", "b7", "b1"]
    assert module(root).annotations("train").rows["image_id"][:] == ["a1", "a2", "a3", "a4"]


def test_files_may_have_the_names_and_headers_of_later_versions(module, root):
    expected = fake.targets(module(root).dataset("validation"), LABELS)
    for name in ("class-descriptions.csv", "classes-trainable.txt"):
        (root / name).rename(root / f"oidv7-{name}")
    path = root / "oidv7-class-descriptions.csv"
    path.write_text("\ufeffLabelName,DisplayName\r\n" + path.read_text(), encoding="utf-8")
    fake.annotations(root, "validation").rename(root / "oidv7-val-annotations-human-imagelabels.csv")
    fake.annotations(root, "train").rename(root / "oidv6-train-annotations-human-imagelabels.csv")
    fake.annotations(root, "test").rename(root / "test" / fake.annotations(root, "test").name)
    data = module(root)
    assert data.vocabulary.names[:2] == ("Dog", "Cat")
    assert fake.targets(data.dataset("validation"), LABELS) == expected
    assert len(data.dataset("train")) == 4
    assert len(data.dataset("test")) == 3


def test_annotations_are_read_once(module, root, monkeypatch):
    first = module(root)
    expected = [fake.targets(first.dataset(split), LABELS) for split in ("train", "test")]
    monkeypatch.setattr("ovml.data.openimages.files.read_annotations", None)
    again = module(root)
    assert again.vocabulary is again.vocabulary
    assert [fake.targets(again.dataset(split), LABELS) for split in ("train", "test")] == expected


# An image, a label and how it was marked; few of each, so that pairs recur.
ROWS = st.lists(st.tuples(*map(st.sampled_from, ("abcde", "vwxyz", ("0", "1", "0.0", "1.0", "1.000000")))), max_size=40)


@given(rows=ROWS, labels=st.permutations("vwxy"), listed=st.lists(st.sampled_from("cdefg"), unique=True))
def test_any_rows_in_any_order_give_what_a_naive_reading_gives(tmp_path_factory, rows, labels, listed):
    folder = tmp_path_factory.mktemp("rows")
    path = fake.write_annotations(folder, "train", rows)
    vocabulary = labels[:3]
    images, annotations = read_annotations(path, vocabulary, pa.array(listed, pa.string()))
    counts = {}
    positive, negative = (lists.slice(0, len(images)).to_pylist() for lists in annotations.lists(3, counts))
    naive = fake.naive_targets(path, vocabulary)
    assert images.to_pylist() == list(dict.fromkeys([*listed, *naive]))
    for image, is_in, is_not_in in zip(images.to_pylist(), positive, negative, strict=True):
        row = naive.get(image, [-1] * 3)
        assert (is_in, is_not_in) == tuple([n for n, value in enumerate(row) if value == v] for v in (1, 0))
    every = fake.naive_targets(path, list("vwxyz"))
    present = Counter(label for row in every.values() for label, value in zip("vwxyz", row, strict=True) if value == 1)
    assert {label: number for label, number in annotations.positives().items() if number} == present
    distinct = {(image, label, float(mark)) for image, label, mark in rows if label in vocabulary}
    both = len(distinct) - len({row[:2] for row in distinct})
    assert counts["rows"] == len(rows)
    assert counts["pairs annotated both ways (unknown)"] == both
    assert counts["rows outside the vocabulary"] == sum(label not in vocabulary for _, label, _ in rows)
    assert counts["rows that repeat an annotation"] == sum(label in vocabulary for _, label, _ in rows) - len(distinct)


def test_many_blocks_are_read_as_one(monkeypatch, tmp_path):
    monkeypatch.setattr("ovml.data.openimages.csv.BLOCK_BYTES", 256)
    monkeypatch.setattr("ovml.data.openimages.annotations.PIECE", 7)
    draw = np.random.default_rng(0)
    rows = [(f"i{i}", f"/m/{n}", str(v)) for i, n, v in draw.integers(0, (40, 9, 2), (700, 3))]
    path = fake.write_annotations(tmp_path, "train", rows)
    labels = [f"/m/{n}" for n in (3, 1, 4, 0, 5)]
    images, annotations = read_annotations(path, labels)
    positive, negative = (lists.slice(0, len(images)).to_pylist() for lists in annotations.lists(5, {}))
    naive = fake.naive_targets(path, labels)
    assert images.to_pylist() == list(naive)
    for row, is_in, is_not_in in zip(naive.values(), positive, negative, strict=True):
        assert (is_in, is_not_in) == tuple([n for n, value in enumerate(row) if value == v] for v in (1, 0))


def test_the_real_lists_have_7586_names(module, root):
    lists = {name: SHARED / "data" / f"openimages_{name}" for name in ("trainable7186.txt", "unseen400.txt")}
    described = SHARED / "data" / "openimages_class_descriptions.csv"
    if not described.is_file():
        pytest.skip(f"the real class lists are not here: {described}")
    seen, unseen = lists.values()
    data = module(
        root, classes_trainable=str(seen), unseen_file=str(unseen), class_descriptions=str(described), num_unseen=400
    )
    vocabulary = data.vocabulary
    assert (len(vocabulary.seen), len(vocabulary.unseen)) == (7186, 400)
    assert len(set(vocabulary.names)) == 7586
    with described.open(newline="", encoding="utf-8") as file:
        names = {label: name.strip() for label, name in csv.reader(file)}
    assert vocabulary.texts == tuple(names[label] for label in seen.read_text().split() + unseen.read_text().split())
    assert len(set(vocabulary.texts[:7186])) < 7100
    assert len(data.names) == 19_995


PUBLISHED = ["/m/0tree", "/g/11sky"]


@pytest.fixture
def published(monkeypatch):
    """Lets the published list be two labels of the tiny tree."""
    monkeypatch.setattr("ovml.data.openimages.datamodule.published_unseen", lambda: list(PUBLISHED))


def test_unseen_labels_are_the_published_ones_unless_they_are_counted(module, root, published):
    assert module(root, num_unseen=None).unseen_ids == PUBLISHED
    assert module(root, num_unseen=1).unseen_ids == ["/m/0bank2"]
    seen = root / "classes-trainable.txt"
    seen.write_text(seen.read_text() + "/m/0tree\n")
    with pytest.raises(UserError, match=r"the published list of unseen labels: /m/0tree \(Tree\) is a seen label"):
        _ = module(root, num_unseen=None).vocabulary


def test_descriptions_without_the_published_labels_say_so(module, root):
    with pytest.raises(UserError, match=r"lack /m/011v5tq3 and 399 others of the published unseen labels"):
        _ = module(root, num_unseen=None).vocabulary


def test_the_published_unseen_labels_are_those_of_biam_s_files():
    folder = SHARED / "benchmark_files" / "openimages_biam"
    if not folder.is_dir():
        pytest.skip(f"BiAM's files are not here: {folder}")
    names = [
        value
        for code, value, _ in pickletools.genops((folder / "unseen_labels.pkl").read_bytes())
        if code.name == "BINUNICODE" and value.startswith("/m/")
    ]
    rows = [int(line) for line in (folder / "top_400_unseen.csv").read_text(encoding="utf-8-sig").split()]
    assert read_biam(folder / "top_400_unseen.csv") == [names[row] for row in rows]
    assert published_unseen() == sorted(names[row] for row in rows)
    listed = (SHARED / "data" / "openimages_unseen400.txt").read_text().split()
    assert published_unseen() == sorted(listed)


class Opened:
    def __reduce__(self):
        return (open, ("opened.txt", "w"))


@pytest.mark.parametrize("rows", ["0\n1\n", "0\n7\n", "zero\n"])
def test_biam_s_pickle_is_never_executed(module, root, tmp_path, monkeypatch, rows):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unseen_labels.pkl").write_bytes(pickle.dumps([*PUBLISHED, Opened()]))
    (tmp_path / "top.csv").write_text(rows)
    data = module(root, unseen_file=str(tmp_path / "top.csv"))
    if rows == "0\n1\n":
        assert data.unseen_ids == PUBLISHED
    else:
        with pytest.raises(UserError, match=r"top.csv, line \d: '\w+' is no row of .*unseen_labels.pkl"):
            _ = data.unseen_ids
    assert not (tmp_path / "opened.txt").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_biam_s_files_are_both_needed(module, root, tmp_path, content):
    (tmp_path / "top.csv").write_text("0\n")
    if content is not None:
        (tmp_path / "unseen_labels.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"unseen_labels.pkl"):
        _ = module(root, unseen_file=str(tmp_path / "top.csv")).unseen_ids


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TRAIN = "train-annotations-human-imagelabels.csv"
TRAINABLE, DESCRIPTIONS = "classes-trainable.txt", "class-descriptions.csv"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TRAIN, ",LabelName,", ",Label,", r"train-annotations.*: no column LabelName; its first line is 'ImageID,So"),
        (
            TRAIN,
            ",Confidence\n",
            ",Confidence,Colour\n",
            r"train-ann.*: unknown column 'Colour' beside ImageID, LabelName",
        ),
        (TRAIN, "a2,verification,/m/0dog,1", "a2,verification,/m/0dog", r"train-ann.*, line 5: 3 fields where 4"),
        (TRAIN, "a2,verification,/m/0dog,1", 'a2,verification,"/m/0dog,1', r"line 5: unexpected end of data"),
        (TRAIN, "/m/0dog,0", "/m/0dog,0.7", r"line 3: Confidence is '0.7', but human-verified labels have 0 or 1"),
        (TRAIN, "/m/0dog,0", "/m/0dog,yes", r"line 3: Confidence is 'yes'"),
        (TRAIN, "a1,verification,/m/0dog", ",verification,/m/0dog", r"line 3: ImageID is empty"),
        (TRAIN, "/m/0dog,0", ",0", r"line 3: LabelName is empty"),
        (TRAINABLE, "/m/0cat", "/m/0cow", r"classes-trainable.txt, line 2: /m/0cow is not in the class descr"),
        (TRAINABLE, "/m/0cat", "/m/0dog", r"classes-trainable.txt, line 2: /m/0dog is repeated \(line 1\)"),
        (DESCRIPTIONS, "/m/0dog,Dog", "/m/0dog", r"class-desc.*, line 2: expected a machine id and a name, got '/m/0d"),
        (DESCRIPTIONS, "/m/0dog,Dog", '/m/0dog,"Dog"s', r"class-descriptions.csv, line 2: "),
        (DESCRIPTIONS, "/m/0dog", "/m/0cat", r"class-desc.*, line 2: /m/0cat is described twice"),
        (DESCRIPTIONS, "/m/0tree,Tree", "/m/0bush,Bush", r"test annotations have /m/0tree, which is not in the cl"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(module, root, file, old, new, message):
    replace(root / file, old, new)
    with pytest.raises(UserError, match=message) as error:
        module(root).dataset("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TRAIN, fake.HEADER + "\n", r"the train split of Open Images lists no image"),
        (TRAIN, "", r"train-annotations.*: is empty; fix it or download it again from https"),
        (TRAIN, "\udcff", r"train-annotations.*: cannot be read \('utf-8' codec"),
        (TRAIN, fake.HEADER + "\na1,verification,/m/0c\udcffat,1\n", r"line 2: 'utf-8' codec"),
        (TRAINABLE, "\n", r"classes-trainable.txt: lists no class"),
        (TRAINABLE, "\udcff\n", r"classes-trainable.txt: not UTF-8 text; save the class file as UTF-8, one machine id"),
        (DESCRIPTIONS, "LabelName,DisplayName\n", r"class-descriptions.csv: describes no class"),
        (
            DESCRIPTIONS,
            "\udcff\n",
            r"class-descriptions.csv: not UTF-8 text; save the description file as UTF-8, a machine id",
        ),
        ("test-annotations-human-imagelabels.csv", fake.HEADER + "\n", r"no label outside the 4 seen ones is present"),
        ("test-images.csv", "ImageID\n", r"test-images.csv: lists no image of the test split"),
        ("test-images.csv", "Image\nc1\n", r"test-images.csv: no column ImageID; its first line is 'Image'"),
        # pyarrow names the row only where it reads in one thread.
        (
            "test-images.csv",
            "ImageID,Subset\nc1\n",
            r"test-images.csv: CSV parse error: (Row #2: )?Expected 2 columns, got 1",
        ),
    ],
)
def test_an_empty_or_unreadable_file_is_named(module, root, file, content, message):
    (root / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        module(root).dataset("test" if "test" in file else "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [TRAIN, TRAINABLE, DESCRIPTIONS])
def test_a_missing_file_is_named_with_where_to_get_it(module, root, name):
    (root / name).unlink()
    with pytest.raises(UserError, match=rf"oi: no {name} there.*{SOURCE}"):
        module(root).dataset("train")


def test_two_versions_of_a_file_are_an_error(module, root):
    (root / f"oidv7-{TRAIN}").write_text(fake.HEADER + "\n")
    with pytest.raises(UserError, match=rf"oidv7-{TRAIN} and .*{TRAIN}: two files of the same kind"):
        module(root).dataset("train")


def test_an_unseen_label_must_not_be_seen(module, root, tmp_path):
    (tmp_path / "unseen.txt").write_text("/m/0rare\n/m/0dog\n")
    with pytest.raises(UserError, match=r"unseen.txt: /m/0dog \(Dog\) is a seen label"):
        _ = module(root, unseen_file=str(tmp_path / "unseen.txt")).vocabulary


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_unseen": 0}, "OpenImagesDataModule: num_unseen must be at least 1; got 0"),
        ({"min_train_images": 0}, "OpenImagesDataModule: min_train_images must be at least 1; got 0"),
        ({"streaming": True}, "a folder of images cannot be streamed"),
    ],
)
def test_arguments_are_checked(module, root, kwargs, message):
    with pytest.raises(UserError, match=message):
        module(root, **kwargs)


def test_a_root_that_is_not_there_is_named(module, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; root=FOLDER is the folder of Open Images"):
        module(tmp_path / "nowhere")


def test_missing_pictures_are_left_out_up_to_a_share(module, root):
    (root / "test" / "c2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 3 images of the test split"):
        module(root).dataset("test")
    assert module(root, max_missing=0.5).dataset("test")["image_id"][:] == ["c1", "c3"]


def test_another_choice_of_labels_has_a_cache_of_its_own(module, root):
    for number in (3, 1, 2):
        labels = fake.TRAINABLE + fake.UNSEEN[:number]
        data = module(root, num_unseen=number)
        for split in ("train", "test"):
            assert fake.targets(data.dataset(split), labels) == fake.naive_targets(
                fake.annotations(root, split), labels
            )


def test_no_missing_image_is_fine_where_none_may_be_missing(module, root):
    assert len(module(root, max_missing=0.0).dataset("test")) == 3
